import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other


@pytest.fixture
def float64_softmax(monkeypatch):
    """Eager attention casts its weights to float32 even in a float64 model; without that cast it is exact."""
    softmax = torch.nn.functional.softmax

    def uncast(logits, dim=None, _stacklevel=3, dtype=None):
        return softmax(logits, dim=dim, dtype=logits.dtype if logits.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", uncast)
