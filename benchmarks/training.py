"""What packing, stored features and the trainer are worth on this machine.

    python benchmarks/training.py [--steps 5] [--tiny]

Both sides of every comparison run in one process, with HF `Trainer`, on the same samples:

- captions packed to rows, beside one caption a row with padding, at equal captions in an update;
- the same with stored features, beside a vision tower of DINOv2-base's shape that runs in every step;
- text: FLOPs of the model (6 for each parameter and token, and attention) a second, beside this machine's matrix
  multiplication in the same precision.

`--tiny` shows in a minute that all of it runs; its numbers mean nothing.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import Dataset
from transformers import (
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import babylm_vlm.demo.demo as demo
from babylm_vlm.data.captions import CaptionRows
from babylm_vlm.data.packing import PackingCollator
from babylm_vlm.data.text import TextBlocks, read_sentences
from babylm_vlm.data.tokenizer import train_tokenizer
from babylm_vlm.model import BabylmVlmConfig, BabylmVlmForConditionalGeneration
from babylm_vlm.training.recipe import bf16_is_fast
from babylm_vlm.training.speed import flops_per_token, hardware, matmul_rate

SHAPE = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 4, "num_attention_heads": 5}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_TOWER = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1}
BLOCK = 128  # tokens in a row


class PixelRows(Dataset):
    """Captions whose picture comes as pixels, so that the tower runs in every step."""

    def __init__(self, rows: CaptionRows, size: int):
        self.rows, self.pixels = rows, torch.randn(3, size, size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index]["input_ids"], "pixel_values": self.pixels}


class PixelCollator(PackingCollator):
    """Packs as its parent, and stacks the pictures."""

    def __call__(self, given: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = super().__call__([{"input_ids": sample["input_ids"]} for sample in given])
        return batch | {"pixel_values": torch.stack([sample["pixel_values"] for sample in given])}


class Clock(TrainerCallback):
    """Times a run from the end of update `warmup` to its end."""

    def __init__(self, warmup: int):
        self.warmup, self.start, self.seconds = warmup, 0.0, 0.0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Read the clock, with the GPU's work done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == self.warmup:
            self.start = time.perf_counter()
        self.seconds = time.perf_counter() - self.start


def seconds(model: torch.nn.Module, rows: Dataset, collator, batch: int, steps: int, warmup: int, **keys) -> float:
    """Wall-clock time of `steps` updates, after `warmup` others."""
    clock = Clock(warmup)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=warmup + steps,
            per_device_train_batch_size=batch,
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            **keys,
        )
        Trainer(model, arguments, data_collator=collator, train_dataset=rows, callbacks=[clock]).train()
    return clock.seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    lines = read_sentences(str(Path(demo.HERE) / "data" / "text" / "train.txt.gz"))
    lines = lines[:2000] if options.tiny else lines
    tokenizer = train_tokenizer(lines, 400 if options.tiny else 8192)
    shape = (TINY if options.tiny else SHAPE) | {"vocab_size": len(tokenizer), "tie_word_embeddings": True}
    language = LlamaForCausalLM(LlamaConfig(**shape))
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ids["image_token_id"] = tokenizer.convert_tokens_to_ids("<image>")
    batch, pixels = (8, 28) if options.tiny else (160, 224)  # captions in an update, and their pictures' sides
    captions = CaptionRows(list(enumerate(lines[: batch * 4])), torch.randn(batch * 4, 1, 768), tokenizer)
    words = options.steps * batch * captions.words.mean()
    packed, alone = PackingCollator(tokenizer, BLOCK), PackingCollator(tokenizer, 1)

    with tempfile.TemporaryDirectory() as tower:
        Dinov2Model(Dinov2Config(image_size=pixels, **(TINY_TOWER if options.tiny else {}))).save_pretrained(tower)
        eyes = BabylmVlmForConditionalGeneration(
            BabylmVlmConfig(vision_tower=tower, vision_hidden_size=768, **ids, **shape)
        )
        sides = {
            "captions packed, stored features": (captions, packed),
            "captions one a row, padded": (captions, alone),
            "captions packed, tower in every step": (PixelRows(captions, pixels), PixelCollator(tokenizer, BLOCK)),
        }
        times = {
            name: seconds(eyes, *side, batch, options.steps, 1, bf16=bf16_is_fast()) for name, side in sides.items()
        }
    text = TextBlocks(lines, tokenizer, BLOCK)
    taken = seconds(language, text, packed, 32, options.steps, warmup=1, bf16=bf16_is_fast())
    tokens = options.steps * 32 * BLOCK
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    peak = matmul_rate(torch.bfloat16 if bf16_is_fast() else torch.float32, device)
    rate = tokens * flops_per_token(language, BLOCK) / taken / peak

    table = Table(title=f"{hardware()}, torch {torch.__version__}: {options.steps} updates")
    for column in ("side", "words/s", "packed is faster by"):
        table.add_column(column, justify="left" if column == "side" else "right")
    ours = times["captions packed, stored features"]
    for name, time_taken in times.items():
        table.add_row(name, f"{words / time_taken:,.0f}", f"{time_taken / ours:.1f}x")
    table.add_row("text", f"{tokens / taken * text.words.sum() / text.tokens.sum():,.0f}", "")
    console = Console(width=110)
    console.print(table)
    precision = "bf16" if bf16_is_fast() else "fp32"
    console.print(
        f"Text, {language.num_parameters() / 1e6:.1f}M parameters: {rate:.0%} of the {precision} matmul rate. "
        f"Peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB."
    )


if __name__ == "__main__":
    main()
