"""Shared by the benchmarks of whole passes: flags, clocks, hardware rates, and the description of a run.

In: flags; things to run. Out: options, times, figures for the JSON line. Knows nothing of what is measured.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import transformers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PEAK_SIZE = {"cuda": 8192, "cpu": 512}  # of the matrix product whose rate counts as the hardware's


def make_parser(description: str | None, presets: Iterable[str]) -> argparse.ArgumentParser:
    """Returns a parser with the flags for shape, device and dtype."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", choices=list(presets), default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 on a GPU, float32 elsewhere if left out")
    return parser


def read_flags(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the flags as given (the process's, if None), the dtype filled in."""
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    return options


def figures_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the flags, the device, versions and the date."""
    on_gpu = options.device.startswith("cuda")
    return vars(options) | {
        "device_name": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def clock(run: Callable[[], Any], repeats: int, device: torch.device, warm: bool = True) -> tuple[float, float]:
    """Median seconds of `run` by the host's clock and by the device's, the device idle before; after one warm-up."""
    if warm:
        run()
    host, on_device = [], []
    for _ in range(repeats):
        if device.type != "cuda":
            began = time.perf_counter()
            run()
            host.append(time.perf_counter() - began)
            continue
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        began = time.perf_counter()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        host.append(time.perf_counter() - began)
        on_device.append(start.elapsed_time(end) / 1e3)
    return statistics.median(host), statistics.median(on_device or host)


def peak_rate(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """FLOP/s of a large matrix product of random numbers."""
    size = PEAK_SIZE[device.type]
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / clock(lambda: one @ other, repeats, device)[1]


def linear_weights(decoder: torch.nn.Module) -> list[torch.Tensor]:
    """Returns the weights of all matrix products in a decoder."""
    return [module.weight for module in decoder.modules() if isinstance(module, torch.nn.Linear)]


@torch.no_grad()
def products_seconds(weights: list[torch.Tensor], rows: list[int], repeats: int) -> float:
    """Seconds of the products of the weights with random states, the n-th with `rows[n]` of them."""
    device, dtype = weights[0].device, weights[0].dtype
    widths = {weight.shape[1] for weight in weights}
    states = {width: torch.randn(max(rows), width, device=device).to(dtype) for width in widths}

    def run() -> None:
        for weight, count in zip(weights, rows, strict=True):
            torch.nn.functional.linear(states[weight.shape[1]][:count], weight)

    return clock(run, repeats, device)[1]
