"""How fast is scoring, against the official pipeline and minicons, on the same items and one thread?

    git clone https://github.com/babylm/evaluation-pipeline-2025 pipeline
    pip install statsmodels wandb nlopt minicons
    python benchmarks/scoring.py pipeline evaluation_data/full_eval [--limit 100] [--tasks reading,…] [--model DIR]

Every side runs in a process of its own, one after the other, on the same fp32 checkpoint: by default a random Llama
of 10.5M parameters with a vocabulary of 16,384. Each side first runs on one item of each file; that time, its start-
up, is taken off. Processor time says what scoring costs where other programs run too; wall-clock time is shown beside
it. Peak memory is that of the whole process. `--limit` takes so many items of each file.
"""

import argparse
import gzip
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from official_pipeline import Run, copy_data, fp32_copy, predictions, run, run_official, run_ours

from babylm_vlm.evaluation.tasks import FOLDERS

HERE = Path(__file__).resolve().parent
TEXT = HERE.parent / "src/babylm_vlm/demo/data/text/train.txt.gz"
DEFAULT_TASKS = "blimp_filtered,entity_tracking,reading"


@dataclass(frozen=True)
class Side:
    """One side's cost on a task without its start-up, and its choices by item id."""

    cpu: float
    wall: float
    memory: float
    choices: dict


def make_model(folder: Path) -> Path:
    """A random Llama (256 wide, 8 layers, tied embeddings) and a byte-level BPE tokenizer of the demo's text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from babylm_vlm.data.tokenizer import train_tokenizer

    with gzip.open(TEXT, "rt", encoding="utf-8") as lines:
        tokenizer = train_tokenizer(lines, 16_384)
    torch.manual_seed(0)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,
        **ids,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def minicons(model: Path, data: Path, output: Path) -> Run:
    """minicons' `sequence_score` on a folder of minimal pairs, 64 sentences a batch."""
    return run([sys.executable, str(Path(__file__).resolve()), "minicons", str(model), str(data), str(output)])


def score_with_minicons(model: str, data: str, output: str) -> None:
    """The program of minicons' process: choices by `UID_n` into a JSON file."""
    import torch
    from minicons.scorer import IncrementalLMScorer

    torch.set_num_threads(1)
    scorer = IncrementalLMScorer(model, "cpu")
    rows = [json.loads(line) for file in sorted(Path(data).iterdir()) for line in file.open(encoding="utf-8")]
    names = ("sentence_good", "sentence_bad")
    sentences = [row[name] for row in rows for name in names]
    scores = []
    for start in range(0, len(sentences), 64):
        batch = sentences[start : start + 64]
        scores += scorer.sequence_score(batch, reduction=lambda x: x.sum(0).item(), bos_token=False)
    counts: dict[str, int] = {}
    choices = {}
    for i, row in enumerate(rows):
        number = counts[row["UID"]] = counts.get(row["UID"], -1) + 1
        choices[f"{row['UID']}_{number}"] = row[names[int(scores[2 * i] < scores[2 * i + 1])]]
    Path(output).write_text(json.dumps(choices))


def choices_of(tree: Path, folder: str) -> dict:
    """What a side took for each item; for reading the surprisal with two decimals."""
    rows = [row for subset in predictions(tree, folder).values() for row in subset["predictions"]]
    return {row["id"]: round(row["pred"], 2) if isinstance(row["pred"], float) else row["pred"] for row in rows}


def measure(start: Run, whole: Run, choices: dict) -> Side:
    """A side's cost, start-up taken off."""
    return Side(whole.cpu - start.cpu, whole.wall - start.wall, whole.memory, choices)


def measure_task(task: str, options: argparse.Namespace, model: Path, scratch: Path) -> Iterator[tuple[str, Side]]:
    """Name and cost of every side on one task, ours first."""
    one, data = scratch / "one" / task, scratch / "data" / task
    copy_data(options.data / task, one, 1)
    copy_data(options.data / task, data, options.limit)
    start = run_ours(model, one, scratch / "ours-one" / task)
    whole = run_ours(model, data, scratch / "ours" / task)
    yield "babylm-vlm", measure(start, whole, choices_of(scratch / "ours" / task / "predictions", task))
    start = run_official(options.pipeline, model, one, scratch / "official-one" / task)
    whole = run_official(options.pipeline, model, data, scratch / "official" / task)
    yield "official", measure(start, whole, choices_of(scratch / "official" / task, task))
    if FOLDERS[task].name == "blimp" and importlib.util.find_spec("minicons"):
        start = minicons(model, one, scratch / "minicons-one.json")
        whole = minicons(model, data, scratch / "minicons.json")
        yield "minicons", measure(start, whole, json.loads((scratch / "minicons.json").read_text()))


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path, help="clone of the official pipeline")
    parser.add_argument("data", type=Path, help="evaluation_data/full_eval or fast_eval")
    parser.add_argument("--limit", type=int, help="items of each file; default: all")
    parser.add_argument("--tasks", default=DEFAULT_TASKS, help="folders, with commas")
    parser.add_argument("--model", type=Path, help="folder of a checkpoint; default: a random Llama")
    options = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores, one thread used, load {os.getloadavg()[0]:.1f}")
    if not importlib.util.find_spec("minicons"):
        print("minicons is not installed: not compared.")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = fp32_copy(options.model, scratch / "model") if options.model else make_model(scratch / "model")
        head = f"{'task':18}{'side':12}{'items':>7}{'CPU s':>9}{'ratio':>7}{'wall s':>9}{'ratio':>7}{'peak GB':>9}"
        print(f"{head}   choices unlike ours", flush=True)
        for task in options.tasks.split(","):
            ours = None
            for name, side in measure_task(task, options, model, scratch):
                ours = ours or side
                unlike = sum(side.choices[key] != choice for key, choice in ours.choices.items())
                cpu = f"{side.cpu:9.1f}{side.cpu / ours.cpu:7.1f}"
                wall = f"{side.wall:9.1f}{side.wall / ours.wall:7.1f}"
                print(f"{task:18}{name:12}{len(side.choices):7}{cpu}{wall}{side.memory:9.2f}   {unlike}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["minicons"]:
        score_with_minicons(*sys.argv[2:])
    else:
        main()
