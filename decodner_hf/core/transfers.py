"""Copies small tensors between host and device without the host waiting for the work in flight there.

In: integer tensors on the CPU; or a result on the device. Out: the former on the device, all in one copy; the latter
on the CPU once it is asked for. On a device other than a GPU both are plain copies. Recognises errors
for lack of memory, too. Knows nothing of what the tensors mean.
"""

from collections.abc import Sequence

import torch
from accelerate.utils.memory import should_reduce_batch_size

from .arrays import FloatingArray


def copy_to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Returns integer tensors of any shape as int64 on `device`; those on the CPU travel together.

    For a GPU they go through pinned memory: a plain copy would wait until the GPU has done all that came before.
    """
    staged = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if device.type != "cuda" or not staged:
        return [tensor.to(device, torch.int64) for tensor in tensors]
    sizes = [tensor.numel() for tensor in staged]
    flat = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=True)
    for piece, tensor in zip(flat.split(sizes), staged, strict=True):
        piece.copy_(tensor.reshape(-1))
    pieces = iter(flat.to(device, non_blocking=True).split(sizes))
    return [
        next(pieces).view(tensor.shape) if tensor.device.type == "cpu" else tensor.to(device, torch.int64)
        for tensor in tensors
    ]


class HostCopy:
    """A float tensor on its way to the CPU; `array` waits for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        """Starts the copy of `tensor`, half precision as float32, after the work that computes it."""
        self._arrived: torch.cuda.Event | None = None
        self._host = tensor if tensor.dtype == torch.float64 else tensor.float()
        if tensor.is_cuda:
            computed = self._host
            self._host = torch.empty(computed.shape, dtype=computed.dtype, pin_memory=True)
            self._host.copy_(computed, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def array(self) -> FloatingArray:
        """The values, float32 (float64 if the tensor is) in the tensor's shape, in memory that stays valid."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: FloatingArray = self._host.cpu().numpy()
        return values


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device had too little memory: for a tensor, or for what the driver keeps there (code, a graph)."""
    by_driver = "out of memory" in str(error)  # as CUDA and Triton say it
    return by_driver or isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
