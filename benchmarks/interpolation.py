"""Setting alpha on a live model beside one `torch.add(a, b, out=c)` of tensors of the same size and dtype.

    python benchmarks/interpolation.py [--rounds 9] [--sizes 10M 100M]

Both sides run in turn, in one process, on the GPU if there is one. The ratio is the median time of the addition over
the median time of `Interpolation.set`; the addition reads and writes no more than any such pass must.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from babylm_vlm.merging.interpolation import Interpolation
from babylm_vlm.training.speed import hardware

SHAPES = {
    "10M": {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 4, "num_attention_heads": 5},
    "100M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Wall-clock time of a call, the GPU's work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def measure(shape: dict, dtype: torch.dtype, device: torch.device, rounds: int) -> tuple[int, float, float]:
    """Parameters, median seconds of the addition and of setting alpha."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16384, tie_word_embeddings=True, **shape)).to(device, dtype)
    language = {name: tensor + 0.01 for name, tensor in model.state_dict().items()}
    dial = Interpolation(model, model.state_dict(), language)
    del language
    size = sum(parameter.numel() for parameter in model.parameters())
    a, b, c = (torch.ones(size, dtype=dtype, device=device) for _ in range(3))
    additions, settings = [], []
    for i in range(rounds + 1):
        additions.append(seconds(lambda: torch.add(a, b, out=c), device))
        settings.append(seconds(lambda alpha=ALPHAS[i % len(ALPHAS)]: dial.set(alpha), device))
    return size, statistics.median(additions[1:]), statistics.median(settings[1:])  # the first round warms up


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = Table(title=f"{hardware()}, torch {torch.__version__}: medians of {options.rounds} rounds")
    for column in ("parameters", "dtype", "torch.add, ms", "set alpha, ms", "speed of torch.add"):
        table.add_column(column, justify="right")
    for name in options.sizes:
        for dtype in (torch.float32, torch.bfloat16):
            size, addition, setting = measure(SHAPES[name], dtype, device, options.rounds)
            times = (f"{1e3 * addition:.2f}", f"{1e3 * setting:.2f}", f"{addition / setting:.0%}")
            table.add_row(f"{size / 1e6:.1f}M", str(dtype).removeprefix("torch."), *times)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
