"""Setting alpha on a live model beside one `torch.add(a, b, out=c)`: of the same bytes, and of the model's dtype.

    python benchmarks/interpolation.py [--rounds 9] [--sizes 10M 100M] [--json FILE]

The three run in turn, in one process, on the GPU if there is one; a ratio is the median time of an addition over the
median time of `Interpolation.set`. Both ends are kept in fp32 and the live weights in the model's dtype, so
a pass moves 8 bytes for each weight and those of the dtype: the first addition moves as many, in fp32. The second adds
tensors of the model's size and dtype; for bf16 that is 6 bytes a weight instead of 10.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

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


def measure(shape: dict, dtype: torch.dtype, device: torch.device, rounds: int) -> tuple[int, float, float, float]:
    """Parameters, median seconds of the addition of the same bytes, of that of the dtype, and of setting alpha."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16384, tie_word_embeddings=True, **shape)).to(device, dtype)
    language = {name: tensor + 0.01 for name, tensor in model.state_dict().items()}
    dial = Interpolation(model, model.state_dict(), language)
    del language
    size = sum(parameter.numel() for parameter in model.parameters())
    same_bytes = [torch.ones(size * (8 + dtype.itemsize) // 12, device=device) for _ in range(3)]
    same_dtype = [torch.ones(size, dtype=dtype, device=device) for _ in range(3)]
    times: list[list[float]] = [[], [], []]
    for i in range(rounds + 1):
        for (a, b, c), additions in zip((same_bytes, same_dtype), times, strict=False):
            additions.append(seconds(lambda a=a, b=b, c=c: torch.add(a, b, out=c), device))
        times[2].append(seconds(lambda alpha=ALPHAS[i % len(ALPHAS)]: dial.set(alpha), device))
    return size, *(statistics.median(one[1:]) for one in times)  # the first round warms up


def main() -> None:
    """Print a table; with `--json` also write its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine, rows = f"{hardware()}, torch {torch.__version__}", []
    table = Table(title=f"{machine}: medians of {options.rounds} rounds")
    for column in ("parameters", "dtype", "set alpha, ms", "add same bytes, ms", "speed", "add in dtype, ms", "speed"):
        table.add_column(column, justify="right")
    for name in options.sizes:
        for dtype in (torch.float32, torch.bfloat16):
            size, *additions, setting = measure(SHAPES[name], dtype, device, options.rounds)
            cells = [text for one in additions for text in (f"{1e3 * one:.2f}", f"{one / setting:.0%}")]
            kind = str(dtype).removeprefix("torch.")
            table.add_row(f"{size / 1e6:.1f}M", kind, f"{1e3 * setting:.2f}", *cells)
            rows.append(
                {"parameters": size, "dtype": kind, "seconds": setting}
                | {"speed": additions[0] / setting, "speed_in_dtype": additions[1] / setting}
            )
    Console(width=110).print(table)
    if options.json:
        found = {"machine": machine, "rounds": options.rounds, "rows": rows}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
