import os

import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
# The same examples on every run of CI, other ones on every run by hand; no time limits on shared machines.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("by hand", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "by hand")
torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other


def pytest_runtest_setup(item):
    """Tests marked `gpu` run where there is one; under Triton's interpreter kernels do not."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if item.get_closest_marker("gpu") and (interpreted or not torch.cuda.is_available()):
        pytest.skip("needs a CUDA GPU, without TRITON_INTERPRET")


@pytest.fixture
def float64_softmax(monkeypatch):
    """Eager attention casts its weights to float32 even in a float64 model; without that cast it is exact."""
    softmax = torch.nn.functional.softmax

    def uncast(logits, dim=None, _stacklevel=3, dtype=None):
        return softmax(logits, dim=dim, dtype=logits.dtype if logits.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", uncast)
