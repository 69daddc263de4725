"""What a merged model's folder holds beside the weights: everything of the base model that is not weights."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

from ..files import read_json
from .plan import MergePlan
from .vocabulary import is_indexed_by_token
from .weights import Weights

PLAN_FILE = "mergekit_config.yml"

NOT_COPIED = (
    # weights, in any format
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5"),
    *("*.msgpack", "*.gguf", "*.onnx"),
    # training state, results and the model card speak of the base model, not of the merged one
    *("README.md", "card_facts.json"),
    *("training_*", "trainer_state.json", "optimizer*", "scheduler*", "rng_state*", "*results.json"),
    *("checkpoint-*", "chck_*", "__pycache__", ".*", PLAN_FILE),
)
"""Names in the base model's folder that the merged model's folder does not take over."""

TOKENIZER_FILES = (
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
    ),
)
"""What mergekit writes where a plan has a tokenizer setting of its own."""


def check_overlap(output_dir: Path, inputs: list[Path]) -> None:
    """Raise ValueError where the output is one of the inputs, inside one or around one."""
    place = output_dir.resolve()
    for folder in inputs:
        source = folder.resolve()
        if place == source or source in place.parents or place in source.parents:
            raise ValueError(f"The output folder {output_dir} overlaps with the input {folder}; choose another.")


def copy_rest(plan: MergePlan, folder: Path) -> None:
    """Copy what the base model has beside its weights, and store the plan.

    Subfolders with a configuration of their own (`vision_tower/`) are whole components and copied with their weights.
    """
    copy_beside_weights(plan.base.folder, folder)
    if plan.out_dtype or plan.dtype:
        # from_pretrained loads weights in the dtype that stands there
        _change_config(folder, {"dtype": plan.out_dtype or plan.dtype}, ("torch_dtype",))
    (folder / PLAN_FILE).write_text(plan.text, encoding="utf-8")


def copy_beside_weights(source: Path, folder: Path) -> None:
    """Copy what a checkpoint has beside its weights, training state and card, but for what the folder has already."""
    for path in sorted(source.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in NOT_COPIED) or (folder / path.name).exists():
            continue
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
        elif any(path.glob("*config.json")):
            _copy_folder(path, folder / path.name)


def _copy_folder(source: Path, target: Path) -> None:
    """Copy files, not their permissions: a read-only source must not make a read-only result."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
        elif path.is_dir():
            _copy_folder(path, target / path.name)


def take_tokenizer(made: Path, folder: Path) -> None:
    """Replace the base model's tokenizer by the one that mergekit made, where it made one."""
    for name in TOKENIZER_FILES:
        if (made / name).is_file():
            shutil.copyfile(made / name, folder / name)


def set_vocabulary_size(folder: Path) -> None:
    """Say in config.json how many embeddings there are, if that is not what stands there."""
    config = read_json(folder / "config.json")
    weights = Weights(folder)
    rows = [weights.shape(name)[0] for name in sorted(weights.names) if is_indexed_by_token(name)]
    if rows and config.get("vocab_size", rows[0]) != rows[0]:
        _change_config(folder, {"vocab_size": rows[0]})


def _change_config(folder: Path, changes: dict, removed: tuple[str, ...] = ()) -> None:
    file = folder / "config.json"
    config = read_json(file)
    config = {key: value for key, value in config.items() if key not in removed} | changes
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
