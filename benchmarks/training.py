"""What packing, stored features and the trainer are worth on this machine.

    python benchmarks/training.py [--steps 3] [--rounds 3] [--only padding|even|tower|text] [--json FILE] [--tiny]

Both sides of every comparison run in one process, with HF `Trainer`, on the same samples, in bf16 where the machine
multiplies it in hardware and else in fp32:

- padding: captions packed to rows (in fp32 with our loss in chunks), beside one caption a row, padded to the longest
  of its batch, in plain transformers, at equal captions in an update. No caption set is at hand everywhere, so words
  of the demo's text stand for captions; their lengths are like those of the challenge's, whose trainer pads so too;
- even: the same with the demo's sentences, whose lengths differ less;
- tower: packed captions with stored features, beside a vision tower of DINOv2-base's shape that runs in every step;
- text: FLOPs of a larger model (6 for each parameter and token, and attention) a second, beside this machine's
  multiplication of square matrices in the same precision; in bf16 with `torch.compile`, which needs a C++ compiler.

`--tiny` shows in a minute that all of it runs; its numbers mean nothing.
"""

import argparse
import copy
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import Dataset
from transformers import (
    DataCollator,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
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
from babylm_vlm.training.train import make_fast

SHAPE = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 4, "num_attention_heads": 5}
TEXT_SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 6}
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


def seconds(
    model: PreTrainedModel,
    rows: Dataset,
    collator: DataCollator,
    batch: int,
    steps: int,
    warmup: int,
    ours: bool = True,
    **keys,
) -> float:
    """Wall-clock time of `steps` updates, after `warmup` others; `ours`: as `babylm-vlm train` would do them."""
    clock, model = Clock(warmup), copy.deepcopy(model)  # what another run compiled would not be compiled again
    torch.compiler.reset()
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
        if ours:
            make_fast(model, arguments)
        Trainer(model, arguments, data_collator=collator, train_dataset=rows, callbacks=[clock]).train()
    return clock.seconds


@dataclass
class Setting:
    """What all comparisons share: sizes, data and tokenizer."""

    tiny: bool
    steps: int
    rounds: int
    batch: int  # captions in an update
    lines: list[str]
    tokenizer: PreTrainedTokenizerBase
    shape: dict
    captions: CaptionRows
    sentences: CaptionRows

    @property
    def packed(self) -> PackingCollator:
        return PackingCollator(self.tokenizer, BLOCK)

    def words(self, captions: CaptionRows) -> float:
        """Words of the captions that are read in all steps."""
        return self.steps * self.batch * float(captions.words.mean())


def challenge_captions(lines: list[str], count: int) -> list[str]:
    """Words of a text, cut into pieces as long as the challenge's captions, in random order.

    One in four is a narrative of 36.5 words on average (Localized Narratives; Pont-Tuset et al. 2020), the others have
    10.3 on average, with a standard deviation of 4.5 (Conceptual Captions; Sharma et al. 2018): by words that
    is about half and half, as in the challenge. The narratives' deviation is assumed to be the same share of
    their mean. Lengths are normal, at least 3 and at most 80: the challenge's trainer cuts at 128 tokens.
    """
    draw, words = random.Random(0), iter(" ".join(lines).split())
    means = [36.5 if number % 4 == 0 else 10.3 for number in range(count)]
    draw.shuffle(means)
    lengths = [min(80, max(3, round(draw.gauss(mean, mean * 4.5 / 10.3)))) for mean in means]
    return [" ".join(next(words) for _ in range(length)) for length in lengths]


def setting(tiny: bool, steps: int, rounds: int) -> Setting:
    lines = read_sentences(str(Path(demo.HERE) / "data" / "text" / "train.txt.gz"))
    lines = lines[:2000] if tiny else lines
    tokenizer = train_tokenizer(lines, 400 if tiny else 8192)
    shape = (TINY if tiny else SHAPE) | {"vocab_size": len(tokenizer), "tie_word_embeddings": True}
    batch = 8 if tiny else 160
    captions, sentences = (
        CaptionRows(list(enumerate(texts)), torch.randn(batch * 4, 1, 768), tokenizer)
        for texts in (challenge_captions(lines, batch * 4), lines[: batch * 4])
    )
    return Setting(tiny, steps, rounds, batch, lines, tokenizer, shape, captions, sentences)


def with_eyes(given: Setting, tower: str) -> BabylmVlmForConditionalGeneration:
    ids = {"bos_token_id": given.tokenizer.bos_token_id, "pad_token_id": given.tokenizer.pad_token_id}
    ids["image_token_id"] = given.tokenizer.convert_tokens_to_ids("<image>")
    config = BabylmVlmConfig(vision_tower=tower, vision_hidden_size=768, **ids, **given.shape)
    return BabylmVlmForConditionalGeneration(config)


def best_seconds(given: Setting, *sides: dict, **keys) -> list[float]:
    """Of each side, arguments of `seconds`, the best of some rounds, in which the sides take turns."""
    keys = {"steps": given.steps, "warmup": 1, "bf16": bf16_is_fast()} | keys
    rounds = [[seconds(**side, **keys) for side in sides] for _ in range(given.rounds)]
    return [min(times) for times in zip(*rounds, strict=True)]


def compare_padding(given: Setting, captions: CaptionRows) -> dict:
    """Packed captions, beside one caption a row in plain transformers."""
    alone = PackingCollator(given.tokenizer, 1)
    first = [captions[i] for i in range(given.batch)]
    cells = [collator(first)["input_ids"].numel() for collator in (alone, given.packed)]
    packed, padded = ({"model": with_eyes(given, "none"), "rows": captions, "batch": given.batch} for _ in range(2))
    fast, slow = best_seconds(given, packed | {"collator": given.packed}, padded | {"collator": alone, "ours": False})
    return {
        "packed_words_per_second": given.words(captions) / fast,
        "padded_words_per_second": given.words(captions) / slow,
        "packed_is_faster_by": slow / fast,
        "padded_tokens_for_a_packed_one": cells[0] / cells[1],
    }


def compare_tower(given: Setting) -> dict:
    """Packed captions with stored features, beside a tower in every step."""
    pixels = 28 if given.tiny else 224
    with tempfile.TemporaryDirectory() as tower:
        Dinov2Model(Dinov2Config(image_size=pixels, **(TINY_TOWER if given.tiny else {}))).save_pretrained(tower)
        side, pictures = {"model": with_eyes(given, tower), "batch": given.batch}, PixelRows(given.captions, pixels)
        fast, slow = best_seconds(
            given,
            side | {"rows": given.captions, "collator": given.packed},
            side | {"rows": pictures, "collator": PixelCollator(given.tokenizer, BLOCK)},
        )
    return {
        "stored_words_per_second": given.words(given.captions) / fast,
        "tower_words_per_second": given.words(given.captions) / slow,
        "stored_is_faster_by": slow / fast,
    }


def measure_text(given: Setting) -> dict:
    """Text in full rows, beside the machine's matrix multiplication; in bf16 with `torch.compile`."""
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    shape = given.shape | ({} if given.tiny else TEXT_SHAPE)
    model, text = LlamaForCausalLM(LlamaConfig(**shape)), TextBlocks(given.lines, given.tokenizer, BLOCK)
    before = matmul_rate(dtype, device, rounds=50)
    compiled = bf16_is_fast() and not given.tiny
    side = {"model": model, "rows": text, "collator": given.packed, "batch": 32}
    (taken,) = best_seconds(given, side, torch_compile=compiled, warmup=2)
    peak = max(before, matmul_rate(dtype, device, rounds=50))
    tokens = given.steps * 32 * BLOCK
    return {
        "parameters": model.num_parameters(),
        "compiled": compiled,
        "words_per_second": tokens / taken * float(text.words.sum() / text.tokens.sum()),
        "gflops_per_second": tokens * flops_per_token(model, BLOCK) / taken / 1e9,
        "matmul_gflops_per_second": peak / 1e9,
        "share_of_matmul_rate": tokens * flops_per_token(model, BLOCK) / taken / peak,
    }


COMPARISONS = {
    "padding": lambda given: compare_padding(given, given.captions),
    "even": lambda given: compare_padding(given, given.sentences),
    "tower": compare_tower,
    "text": measure_text,
}


def main() -> None:
    """Print a table of every comparison; with `--json` add the numbers to a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3, help="updates in a round")
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts, on both sides")
    parser.add_argument("--only", choices=COMPARISONS, help="one comparison instead of all")
    parser.add_argument("--json", type=Path, help="file whose entry of each comparison is replaced")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.only is None:  # a process for each, whose peak memory is its own
        for name in COMPARISONS:
            subprocess.run([sys.executable, *sys.argv, "--only", name], check=True)
        return
    given = setting(options.tiny, options.steps, options.rounds)
    precision = "bf16" if bf16_is_fast() else "fp32"
    found = json.loads(options.json.read_text()) if options.json and options.json.is_file() else {}
    table = Table("comparison", "number", title=f"{hardware()}, torch {torch.__version__}, {precision}")
    table.add_column("value", justify="right")
    numbers = COMPARISONS[options.only](given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
    numbers |= {"updates": options.steps, "rounds": options.rounds, "peak_memory_gb": peak}
    found[options.only] = numbers | {"device": hardware(), "torch": torch.__version__, "precision": precision}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for key, value in numbers.items():
        table.add_row(options.only, key.replace("_", " "), f"{value:,.0f}" if value >= 100 else f"{value:.3g}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
