"""Text training on one GPU: tokens/s, share of the GPU's peak (MFU), memory, and the time of the strict track.

    python benchmarks/training_gpu.py [--steps 30] [--batch 64] [--json FILE] [--tiny]

Models of 30M and 100M parameters, rows of 512 tokens; bf16 autocast and `torch.compile`, beside plain `Trainer`
defaults (fp32, batches of 8) in the same process. MFU counts the model's FLOPs against the peak of the GPU's
data sheet (dense bf16) if it is listed below, else against its measured matrix multiplication. `--tiny` runs the same
on a CPU with a tiny model; its numbers mean nothing.
"""

import argparse
import gc
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from training import seconds
from transformers import LlamaConfig, LlamaForCausalLM, default_data_collator

from babylm_vlm.training.recipe import bf16_is_fast
from babylm_vlm.training.speed import flops_per_token, hardware, matmul_rate

SHAPES = {
    "30M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 13, "num_attention_heads": 6},
    "100M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
TINY = {"tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}}
PEAK = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12}  # FLOP/s, dense bf16; first match
PEAK |= {"A100": 312e12, "L40S": 362e12}
STRICT_WORDS = 1_000_000_000  # 100M, ten passes
TOKENS_A_WORD = 1.56  # and ends of sentences, with 16k tokens trained on 4.5M words of the challenge's text
OURS = {"bf16": True, "torch_compile": True}


def measure(shape: dict, vocabulary: int, length: int, batch: int, steps: int, keys: dict) -> tuple[float, float, int]:
    """Tokens a second, FLOPs a second and peak bytes of GPU memory."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **shape))
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(vocabulary, (batch * 4, length))]
    gc.collect()  # the model before, whose memory would count as this one's
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    taken, tokens = seconds(model, rows, default_data_collator, batch, steps, 5, **keys), steps * batch * length
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return tokens / taken, tokens * flops_per_token(model, length) / taken, memory


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("There is no GPU here: pass --tiny to see the benchmark run on a CPU.")
    vocabulary, length = (256, 32) if options.tiny else (16384, 512)
    peak = next((rate for name, rate in PEAK.items() if name in hardware()), None)
    if peak is None:
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        peak = matmul_rate(torch.bfloat16 if bf16_is_fast() else torch.float32, device)
    ours = OURS | ({"torch_compile": False} if options.tiny else {})
    rows = []
    for name, shape in (TINY if options.tiny else SHAPES).items():
        for side, batch, keys in (("ours", options.batch, ours), ("defaults", 8, {"ours": False})):
            tokens, flops, memory = measure(shape, vocabulary, length, batch, options.steps, keys)
            hours = STRICT_WORDS * TOKENS_A_WORD / tokens / 3600
            numbers = {"tokens_per_second": tokens, "mfu": flops / peak, "memory_gb": memory / 1e9}
            rows.append({"model": name, "trainer": side, "batch": batch, **numbers, "hours_for_strict": hours})
    run = {"device": hardware(), "torch": torch.__version__, "peak_tflops": peak / 1e12, "updates": options.steps}
    if options.json:
        options.json.write_text(json.dumps(run | {"rows": rows}, indent=2) + "\n", encoding="utf-8")
    title = "{device}, torch {torch}, peak {peak_tflops:.1f} TFLOP/s: {updates} updates".format(**run)
    table = Table("model", "trainer", title=title)
    for column in ("tokens/s", "MFU", "GPU memory, GB", "hours for 100M words x 10"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = f"{row['tokens_per_second']:,.0f}", f"{row['mfu']:.1%}", f"{row['memory_gb']:.1f}"
        table.add_row(row["model"], row["trainer"], *numbers, f"{row['hours_for_strict']:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
