"""From a checkpoint and benchmark files to `results.json`.

A result says what was measured (value, 95 % interval, chance level, ties, failures, for each paradigm too) and on
what: hashes of the data files and of the weights, and the versions of the software. It holds no date, so the same
measurement gives the same file. The scores of a task are kept as soon as it is done, and taken up again when the same
model, data, rule and versions come back: a run that was cut off, or in which a task failed, is simply repeated.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import cached_file, extract_commit_hash

from ..files import named_source, sha256
from ..model import BabylmVlmConfig
from .choices import Item, Picture, picture_features, takes_pictures
from .minimal_pairs import MinimalPair
from .output import check_results_folder, items_file, read_items, write_items, write_results
from .predictions import check_sizes, official_predictions, predictions_tree, write_collated, write_predictions
from .tasks import AOA, FOLDERS, Outcome, Sampling, Task, task_of

SCHEMA_VERSION = 2
PACKAGES = ("babylm-vlm", "torch", "transformers")


def load_model(
    path_or_id: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    kind: type = AutoModelForCausalLM,
) -> tuple[PreTrainedModel, ProcessorMixin | PreTrainedTokenizerBase]:
    """A causal language model in fp32, and its tokenizer, or for a multimodal model its processor.

    Only safetensors weights are read. The model is on the GPU if there is one.

    Args:
        path_or_id: folder of a checkpoint, or a model's id on the Hub.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run the code that comes with models of other architectures.
        kind: the Auto class to load with; `AutoModel` gives the body without its head.

    Raises:
        FileNotFoundError: there is no such checkpoint, or it holds no config.json or no safetensors weights.
    """
    name = str(path_or_id)
    if Path(name).exists():
        _check_checkpoint(Path(name))
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    with named_source(name, "the model's name"):
        file = Path(cached_file(name, "config.json", revision=revision))
        commit = None if Path(name).exists() else extract_commit_hash(str(file), None)
        if trust_remote_code:
            _announce_code(name, commit, json.loads(file.read_text(encoding="utf-8")))
        config = AutoConfig.from_pretrained(name, **options)
    model = kind.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **options)
    processor_class = AutoProcessor if config.model_type == BabylmVlmConfig.model_type else AutoTokenizer
    processor = processor_class.from_pretrained(name, **options)
    model.config._commit_hash = commit  # some releases of transformers do not say it
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


def _announce_code(name: str, commit: str | None, config: dict) -> None:
    """Say whose code is about to run, and which revision of it. Checkpoints of our kind run the package's own."""
    if config.get("model_type") == BabylmVlmConfig.model_type:
        return
    for reference in sorted(set(config.get("auto_map", {}).values())):
        other, _, module = str(reference).rpartition("--")  # "user/name--module.Class" is code of another repository
        where = other or name
        revision = "main" if other else commit or "on this disk"
        print(f"Running {module} of {where}, revision {revision}.", file=sys.stderr)


def _check_checkpoint(folder: Path) -> None:
    """Raise FileNotFoundError where a folder holds no checkpoint that can be read."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; name the folder of a checkpoint.")
    if not _weight_files(folder):
        raise FileNotFoundError(f"{folder} holds no .safetensors weights (pickled weights are not read).")


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@dataclass
class Benchmarks:
    """What is read of the tasks' data, once for any number of checkpoints.

    Attributes:
        items, data_sha256: by task.
        failed: why a task could not be read.
        prepared: by task, what its `score` keeps between models of the same tokenizer and tower.
        features: pooled features of the pictures of all tasks.
    """

    items: dict[str, list[Item] | list[MinimalPair]] = field(default_factory=dict)
    data_sha256: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    prepared: dict[str, dict] = field(default_factory=dict)
    features: dict[Picture, torch.Tensor] = field(default_factory=dict)


def read_benchmarks(tasks: dict[str, Path]) -> Benchmarks:
    """Read the data of every task, as `find_tasks` gives them."""
    read = Benchmarks()
    for task, path in tasks.items():
        try:
            read.items[task] = task_of(path).read(path)
            files = task_of(path).files(path)
            read.data_sha256[task] = {file.name: sha256(file) for file in files}
        except (OSError, ValueError) as error:
            read.failed[task] = str(error)
    return read


def evaluate_model(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    tasks: dict[str, Path],
    output_dir: Path,
    *,
    name: str | Path,
    revision: str | None = None,
    official: bool = False,
    predictions: bool = False,
    batch_tokens: int = 4096,
    resamples: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    benchmarks: Benchmarks | None = None,
) -> dict:
    """Measure a model on every task, and write `results.json` and what stands beside it (output.py).

    A task that fails is named in the results and loses nothing of the others.

    Args:
        model: language-only or multimodal; a language-only model reads captions without their pictures.
        processor: a tokenizer, or for a multimodal model its processor.
        tasks: data folder or file of every task, as `find_tasks` gives them.
        output_dir: folder to write.
        name: checkpoint folder or Hub id that the weights are from. For weights that exist in memory only, any other
            name; their scores are never taken up again.
        revision: of the model on the Hub.
        official: score, and count ties and failures, as the official pipeline does.
        predictions: also write the official predictions tree and the collated file; implies `official`.
        batch_tokens: see `sequence_scores`.
        resamples, seed: of the bootstrap behind the intervals.
        overwrite: replace earlier results.
        progress: show a bar while scoring.
        benchmarks: `read_benchmarks` of these tasks, which then keeps tokens and picture features for the next model;
            read here when None.

    Returns:
        what `results.json` holds.

    Raises:
        FileExistsError: there are results already.
        ValueError: every task failed; the first one's reason.
    """
    check_results_folder(output_dir, overwrite)
    sampling = Sampling(official or predictions, resamples, seed)
    keeping = benchmarks is not None
    benchmarks = benchmarks or read_benchmarks(tasks)
    results = {
        "schema_version": SCHEMA_VERSION,
        "model": model_facts(model, Path(name), revision),
        "official": sampling.official,
        "tasks": {},
        "failed": dict(benchmarks.failed),
        "predictions": [],
        "data_sha256": benchmarks.data_sha256,
        "bootstrap": {"resamples": resamples, "seed": seed},
        "versions": package_versions(),
    }
    collated: dict[str, dict] = {}
    for task, items in benchmarks.items.items():
        kind, path = task_of(tasks[task]), items_file(output_dir, task)
        pictures = list(dict.fromkeys(image for item in items for image in item.images))
        pictures_used = takes_pictures(model) and bool(pictures)
        try:
            measured = _measurement(results, name, task, kind.name, pictures if pictures_used else [])
            outcomes = kept_outcomes(path, measured)
            if outcomes is None:
                options = {"batch_tokens": batch_tokens, "progress": progress, "official": sampling.official}
                options |= {"prepared": benchmarks.prepared.setdefault(task, {})} if keeping else {}
                if pictures_used:
                    benchmarks.features = picture_features(model, processor, items, benchmarks.features)
                    options["features"] = benchmarks.features
                outcomes = _score(kind, model, processor, items, **options)
                write_items(path, measured, outcomes)
            rows = kind.measure(task, outcomes, sampling)
        except (OSError, ValueError) as error:
            results["failed"][task] = str(error)
            continue
        shown = {"pictures": len(pictures), "pictures_used": pictures_used}
        results["tasks"] |= {key: {**row, **shown} for key, row in rows.items()}
        if predictions and kind is not AOA and tasks[task].resolve().name in FOLDERS:
            made = official_predictions(kind, items, outcomes)
            tree = predictions_tree(Path(output_dir, "predictions"), str(name), revision)
            write_predictions(tree, kind, task, made)
            if not task.endswith("_fast"):
                collated.setdefault(kind.name, {}).update(made)
    if not results["tasks"]:
        raise ValueError(" ".join(f"{task}: {sentence}" for task, sentence in results["failed"].items()))
    if collated:
        write_collated(Path(output_dir, "predictions"), str(name), collated)
        results["predictions"] = check_sizes(collated)
    write_results(results, output_dir, overwrite)
    return results


def _score(
    kind: Task,
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    items: Sequence[Item] | Sequence[MinimalPair],
    **options,
) -> list[Outcome]:
    """Score the items of a task; `options` are those of the task's `score`."""
    scores = kind.score(model, processor, items, **options)
    return [
        Outcome(item.uid, item.pair, tuple(row.tolist()), _facts(item))
        for item, row in zip(items, scores, strict=True)
    ]


def _facts(item: Item | MinimalPair) -> dict[str, float]:
    return item.facts if isinstance(item, Item) else {}


def model_facts(model: PreTrainedModel, folder: Path, revision: str | None) -> dict:
    """What `results.json` says of a model: its name, and what tells its weights from others."""
    return {
        "name": str(folder),
        "revision": revision,
        "commit": getattr(model.config, "_commit_hash", None),  # only configurations from the Hub have it
        "weights_sha256": {file.name: sha256(file) for file in _weight_files(folder)},
    }


def _measurement(results: dict, name: str | Path, task: str, kind: str, pictures: Sequence[Picture]) -> dict:
    """All that the scores of a task depend on; in `source`, None if that is not known."""
    return {
        "task": kind,
        "model": str(name),
        "source": checkpoint_source(Path(name), results["model"]["commit"]),
        "official": results["official"],
        "data_sha256": results["data_sha256"][task],
        "pictures_sha256": _picture_digest(pictures) if pictures else None,
        "versions": results["versions"],
    }


def checkpoint_source(folder: Path, commit: str | None) -> str | None:
    """One hash of all that a checkpoint folder's outputs depend on; of a model that is no folder here, its commit."""
    if not folder.is_dir():
        return commit
    return _digest(
        sorted(file for file in folder.rglob("*") if file.suffix in (".safetensors", ".json", ".txt", ".model"))
    )


def package_versions() -> dict[str, str]:
    """Versions of the software that results depend on."""
    return {package: version(package) for package in PACKAGES}


def _digest(files: Sequence[Path]) -> str:
    """One hash of the names and contents of files."""
    lines = [f"{sha256(file)}  {file.name}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _picture_digest(pictures: Sequence[Picture]) -> str:
    """One hash of the names and contents of pictures."""
    lines = [f"{hashlib.sha256(picture.read_bytes()).hexdigest()}  {picture.name}" for picture in sorted(pictures)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def kept_outcomes(path: Path, measured: dict) -> list[Outcome] | None:
    """Outcomes of an earlier run, if it measured the same."""
    if measured["source"] is None or not path.is_file():
        return None
    before, outcomes = read_items(path)
    return outcomes if before == measured else None
