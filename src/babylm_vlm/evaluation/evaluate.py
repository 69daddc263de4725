"""From a checkpoint and benchmark files to `results.json`.

A result says what was measured (value, 95 % interval, chance level, ties, failures, for each paradigm too) and on
what: hashes of the data files and of the weights, and the versions of the software. It holds no date, so the same
measurement gives the same file. The scores of a task are kept as soon as it is done, and taken up again when the same
model, data, rule and versions come back: a run that was cut off, or in which a task failed, is simply repeated.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from .output import RESULTS_FILE, check_results_folder, items_file, read_items, write_items, write_results
from .predictions import predictions_tree, write_collated, write_tree
from .tasks import Outcome, Sampling, Task, task_of

SCHEMA_VERSION = 2
PACKAGES = ("babylm-vlm", "torch", "transformers")
SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".py")  # of the files that a checkpoint's scores depend on


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
        ValueError: its weights are not those that config.json speaks of, or not all.
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
    try:
        model, found = kind.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except RuntimeError as error:  # tensors of other shapes than config.json says
        raise ValueError(f"{name} cannot be loaded: {error}") from error
    if kind is AutoModelForCausalLM and found["missing_keys"]:
        raise ValueError(f"{name} lacks weights, such as {min(found['missing_keys'])}: its scores would be random.")
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
        inputs: hash of the tokenizer, tower and rule that `prepared` and `features` are of.
    """

    items: dict[str, list[Item] | list[MinimalPair]] = field(default_factory=dict)
    data_sha256: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    prepared: dict[str, dict] = field(default_factory=dict)
    features: dict[Picture, torch.Tensor] = field(default_factory=dict)
    inputs: str | None = None

    def keep_for(
        self, model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase, official: bool
    ) -> None:
        """Forget what was prepared for a model of another tokenizer or tower, or by the other rule."""
        before, self.inputs = self.inputs, _inputs_hash(model, processor, official)
        if self.inputs is None or self.inputs != before:
            self.prepared.clear()
            self.features.clear()


def _inputs_hash(
    model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase, official: bool
) -> str | None:
    """What tokens and picture features depend on, as a hash; None where it is not known."""
    tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
    if not tokenizer.is_fast:
        return None
    parts = [official, model.config.model_type, tokenizer.bos_token_id, tokenizer.backend_tokenizer.to_str()]
    if takes_pictures(model):
        tower = model.model.local_tower() or model.model.downloaded_tower()
        parts += [value for name, value in sorted(model.config.to_dict().items()) if name.startswith("vision_")]
        parts += [tower and checkpoint_source(tower, None), processor.image_processor.to_dict()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def read_benchmarks(tasks: dict[str, Path]) -> Benchmarks:
    """Read the data of every task, as `find_tasks` gives them."""
    read = Benchmarks()
    for task, path in tasks.items():
        try:
            items = task_of(path).read(path)
            read.data_sha256[task] = {file.name: sha256(file) for file in task_of(path).files(path)}
        except (OSError, ValueError) as error:
            read.failed[task] = str(error)
            continue
        read.items[task] = items
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
        name: checkpoint folder or Hub id that the model was loaded from. For weights that exist in memory only, any
            other name; their scores are never taken up again.
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
        ValueError: every task failed; the reasons.
    """
    check_results_folder(output_dir, overwrite)
    sampling = Sampling(official or predictions, resamples, seed)
    keeping = benchmarks is not None
    benchmarks = benchmarks or read_benchmarks(tasks)
    if keeping:
        benchmarks.keep_for(model, processor, sampling.official)
    results = new_results(model, name, revision, sampling)
    results |= {"failed": dict(benchmarks.failed), "data_sha256": benchmarks.data_sha256}
    source = checkpoint_source(Path(name), results["model"]["commit"])
    options = {"batch_tokens": batch_tokens, "progress": progress, "official": sampling.official}
    Path(output_dir, RESULTS_FILE).unlink(missing_ok=True)  # the items that it sums up are replaced one by one
    for task, items in benchmarks.items.items():
        kind = task_of(tasks[task])
        pictures = list(dict.fromkeys(image for item in items for image in item.images))
        used = pictures if takes_pictures(model) else []
        options["prepared"] = benchmarks.prepared.setdefault(task, {}) if keeping else {}
        score = partial(_score, kind, model, processor, items, benchmarks.features if used else None, **options)
        try:
            measured = measurement(results, task, kind.name, source)
            measured["pictures_sha256"] = _picture_digest(used) if used else None
            outcomes = kept_or_made(items_file(output_dir, task), measured, score)
            rows = kind.measure(task, outcomes, sampling)
        except (OSError, ValueError) as error:
            results["failed"][task] = str(error)
            continue
        add_rows(results, rows, len(pictures), bool(used))
    check_any_done(results["tasks"], results["failed"])
    if predictions:
        folder = Path(output_dir, "predictions")
        tree = predictions_tree(folder, str(name), revision)
        done = {task: items for task, items in benchmarks.items.items() if task not in results["failed"]}
        if made := write_tree(tree, tasks, done, output_dir):
            results["predictions"] = write_collated(folder, str(name), made)
    write_results(results, output_dir, overwrite)
    return results


def _score(
    kind: Task,
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    items: Sequence[Item] | Sequence[MinimalPair],
    features: dict[Picture, torch.Tensor] | None,
    **options,
) -> list[Outcome]:
    """Score the items of a task.

    Args:
        features: of pictures, which gain those of the items; None if none are looked at.
        options: of the task's `score`.
    """
    if features is not None:
        features |= picture_features(model, processor, items, features)
        options["features"] = features
    scores = kind.score(model, processor, items, **options)
    return [
        Outcome(item.uid, item.pair, tuple(row.tolist()), item.facts if isinstance(item, Item) else {})
        for item, row in zip(items, scores, strict=True)
    ]


def new_results(model: PreTrainedModel, name: str | Path, revision: str | None, sampling: Sampling) -> dict:
    """`results.json` before the first task: which weights, by which rule, with which software."""
    weights = {file.name: sha256(file) for file in _weight_files(Path(name))}
    loaded_as_it_is = model.config.name_or_path == str(name)
    commit = getattr(model.config, "_commit_hash", None) if loaded_as_it_is else None
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": str(name), "revision": revision, "commit": commit, "weights_sha256": weights},
        "official": sampling.official,
        "tasks": {},
        "failed": {},
        "predictions": [],
        "data_sha256": {},
        "bootstrap": {"resamples": sampling.resamples, "seed": sampling.seed},
        "versions": {package: version(package) for package in PACKAGES},
    }


def add_rows(results: dict, rows: dict[str, dict], pictures: int, pictures_used: bool) -> None:
    """Put the rows of a task into the results."""
    shown = {"pictures": pictures, "pictures_used": pictures_used}
    results["tasks"] |= {key: {**row, **shown} for key, row in rows.items()}


def check_any_done(done: dict, failed: dict[str, str]) -> None:
    """Raise ValueError with all reasons if nothing is done."""
    if not done:
        raise ValueError(" ".join(f"{name}: {sentence}" for name, sentence in failed.items()))


def measurement(results: dict, task: str, kind: str, source: str | None) -> dict:
    """What the scores of a task depend on, so far as the results say it; `source` is of `checkpoint_source`."""
    shared = {key: results[key] for key in ("official", "versions")}
    data = {"data_sha256": results["data_sha256"][task]}
    return {"task": kind, "model": results["model"]["name"], "source": source, **data, **shared}


def checkpoint_source(folder: Path, commit: str | None) -> str | None:
    """One hash of all that a checkpoint folder's outputs depend on; of a model that is no folder here, its commit."""
    if not folder.is_dir():
        return commit
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES)
    return _digest([(file.name, sha256(file)) for file in files])


def _picture_digest(pictures: Sequence[Picture]) -> str:
    """One hash of the names and contents of pictures."""
    return _digest([(picture.name, hashlib.sha256(picture.read_bytes()).hexdigest()) for picture in sorted(pictures)])


def _digest(hashes: Sequence[tuple[str, str]]) -> str:
    """One hash of names and the hashes of what they name."""
    return hashlib.sha256("\n".join(f"{value}  {name}" for name, value in hashes).encode()).hexdigest()


def kept_or_made(path: Path, measured: dict, make: Callable[[], list[Outcome]]) -> list[Outcome]:
    """Outcomes of an earlier run if it measured the same; otherwise they are made now, and kept."""
    if measured["source"] is not None and path.is_file():
        before, outcomes = read_items(path)
        if before == measured:
            return outcomes
    outcomes = make()
    write_items(path, measured, outcomes)
    return outcomes
