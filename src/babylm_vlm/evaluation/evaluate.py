"""From a checkpoint and benchmark files to `results.json`.

A task is a folder of minimal-pair files, or one such file. A result says what was measured (accuracy, 95 % interval,
chance level, ties, failures, for each paradigm too) and on what: hashes of the data files and of the weights, and the
versions of the software. It holds no date, so the same measurement gives the same file.
"""

import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from ..files import named_source, sha256
from ..model import BabylmVlmConfig
from .minimal_pairs import SUFFIXES, MinimalPair, file_stem, pair_files, score_pairs, takes_pictures
from .statistics import accuracy

SCHEMA_VERSION = 1
RESULTS_FILE = "results.json"


def load_model(
    path_or_id: str | Path, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin | PreTrainedTokenizerBase]:
    """A causal language model in fp32, and its tokenizer, or for a multimodal model its processor.

    Only safetensors weights are read. The model is on the GPU if there is one.

    Args:
        path_or_id: folder of a checkpoint, or a model's id on the Hub.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run the code that comes with models of other architectures.

    Raises:
        FileNotFoundError: there is no such checkpoint, or it holds no config.json or no safetensors weights.
    """
    name = str(path_or_id)
    if Path(name).exists():
        _check_checkpoint(Path(name))
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    with named_source(name, "the model's name"):
        config = AutoConfig.from_pretrained(name, **options)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **options)
    processor_class = AutoProcessor if config.model_type == BabylmVlmConfig.model_type else AutoTokenizer
    processor = processor_class.from_pretrained(name, **options)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


def _check_checkpoint(folder: Path) -> None:
    """Raise FileNotFoundError where a folder holds no checkpoint that can be read."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; name the folder of a checkpoint.")
    if not _weight_files(folder):
        raise FileNotFoundError(f"{folder} holds no .safetensors weights (pickled weights are not read).")


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def find_tasks(data: Path, names: Sequence[str] | None = None) -> dict[str, Path]:
    """Tasks in a data folder: subfolders that hold minimal-pair files, or such files, by name.

    Args:
        data: the folder; if it holds minimal-pair files itself, it is by default one task, named after the folder.
        names: which tasks (subfolders, or files without their suffix) to take; all subfolders by default.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no such task.
    """
    data = Path(data)
    if not data.exists():
        raise FileNotFoundError(f"the data folder {data} does not exist.")
    if data.is_file():
        tasks = {file_stem(data): data}
        inside = {}
    else:
        tasks = {data.resolve().name: data} if _holds_pairs(data) else {}
        inside = {folder.name: folder for folder in sorted(data.iterdir()) if _holds_pairs(folder)}
    if names is None:
        if not tasks and not inside:
            raise FileNotFoundError(f"neither {data} nor its subfolders hold .jsonl or .jsonl.gz files.")
        return tasks or inside
    if data.is_dir():
        inside |= {file_stem(file): file for file in sorted(data.iterdir()) if file.name.endswith(SUFFIXES)}
    known = tasks | inside
    for name in names:
        if name not in known:
            there = ", ".join(known) or "none"
            raise FileNotFoundError(f"{data} holds no task {name}; tasks there: {there}.")
    return {name: known[name] for name in names}


def _holds_pairs(path: Path) -> bool:
    return path.is_dir() and any(file.name.endswith(SUFFIXES) for file in path.iterdir())


def evaluate_model(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    tasks: dict[str, list[MinimalPair]],
    *,
    name: str | Path,
    revision: str | None = None,
    data: dict[str, Path] | None = None,
    features: dict[Path, torch.Tensor] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> dict:
    """Accuracy of a model on every task, as the dictionary that `results.json` holds.

    Args:
        model: language-only or multimodal; a language-only model reads captions without their pictures.
        processor: a tokenizer, or for a multimodal model its processor.
        tasks: minimal pairs by task name.
        name: checkpoint folder or Hub id that the weights are from; the weights in a folder are hashed. For weights
            that exist in memory only, any other name.
        revision: of the model on the Hub.
        data: file or folder that each task was read from, to be hashed.
        features: `picture_features` for all grounded pairs, where they are known already.
        resamples: number of bootstrap resamples of the 95 % intervals.
        seed: of the bootstrap.
        batch_tokens: see `sequence_scores`.
        progress: show a bar while scoring.
    """
    weights = _weight_files(Path(name)) if Path(name).is_dir() else []
    results = {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "name": str(name),
            "revision": revision,
            "weights_sha256": {file.name: sha256(file) for file in weights},
        },
        "tasks": {},
        "data_sha256": {
            task: {file.name: sha256(file) for file in pair_files(path)} for task, path in (data or {}).items()
        },
        "bootstrap": {"resamples": resamples, "seed": seed},
        "versions": {package: version(package) for package in ("babylm-vlm", "torch", "transformers")},
    }
    for task, pairs in tasks.items():
        scores = score_pairs(model, processor, pairs, features, batch_tokens, progress)
        pictures_used = takes_pictures(model) and any(pair.image is not None for pair in pairs)
        measured = accuracy(scores, pairs, resamples, seed).to_dict()
        paradigms = measured.pop("paradigms")
        results["tasks"][task] = {**measured, "pictures_used": pictures_used, "paradigms": paradigms}
    return results


def check_results_folder(output_dir: Path, overwrite: bool = False) -> None:
    """Raise FileExistsError if `write_results` would: call it before an hour of scoring, not after.

    Raises:
        FileExistsError: there are results already and they are not to be replaced, or `output_dir` is a file.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is a file; name a folder for the results.")
    if (output_dir / RESULTS_FILE).exists() and not overwrite:
        raise FileExistsError(f"{output_dir / RESULTS_FILE} exists; choose another folder, or pass --overwrite.")


def write_results(results: dict, output_dir: Path, overwrite: bool = False) -> Path:
    """Write `results.json` into a folder, whole or not at all, and return its path.

    Raises:
        FileExistsError: as `check_results_folder`.
    """
    check_results_folder(output_dir, overwrite)
    path = Path(output_dir) / RESULTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.incomplete")
    temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def print_results(results: dict, console: Console | None = None) -> None:
    """Print one row per task."""
    table = Table(title=results["model"]["name"])
    table.add_column("task")
    for column in ("accuracy %", "95 % interval", "chance", "items", "ties"):
        table.add_column(column, justify="right")
    for task, row in results["tasks"].items():
        low, high = row["interval"]
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        counts = (str(row["items"]), str(row["ties"]))
        table.add_row(task, f"{100 * row['accuracy']:.1f}", interval, f"{100 * row['chance']:.0f}", *counts)
    console = console or Console()
    console.print(table)
    for task, row in results["tasks"].items():
        if row["nonfinite"]:
            console.print(f"{task}: {row['nonfinite']} pairs have scores that are not finite; they count as wrong.")
