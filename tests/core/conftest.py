import pytest
import torch

from decodner_hf.core import attention


@pytest.fixture
def kernel_on_cpu(monkeypatch):
    """Passes without gradients take the kernel's way, with `compiled_models.dense_attention` in its place."""

    def choose(*_):
        with_gradient = torch.is_grad_enabled()
        return attention.forest_attention if with_gradient else attention.forest_attention_triton

    monkeypatch.setattr(attention, "choose_backend", choose)
    torch._dynamo.reset()
