"""What a merged model's folder holds beside the weights: everything of the base model that is not weights."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

from .plan import MergePlan

PLAN_FILE = "mergekit_config.yml"

NOT_COPIED = (
    # weights, in any format
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5"),
    *("*.msgpack", "*.gguf", "*.onnx"),
    # training state, results and the model card speak of the base model, not of the merged one
    *("README.md", "training_*", "trainer_state.json", "optimizer*", "scheduler*", "rng_state*", "*results.json"),
    *("checkpoint-*", "chck_*", "__pycache__", ".*", PLAN_FILE),
)
"""Names in the base model's folder that the merged model's folder does not take over."""


def check_overlap(output_dir: Path, inputs: list[Path]) -> None:
    """Raise ValueError where the output is one of the inputs, inside one or around one."""
    place = output_dir.resolve()
    for folder in inputs:
        source = folder.resolve()
        if place == source or source in place.parents or place in source.parents:
            raise ValueError(f"The output folder {output_dir} overlaps with the input {folder}; choose another.")


def check_tokenizers(folders: list[Path]) -> None:
    """Raise ValueError where two models number their tokens differently: their embeddings do not belong together."""
    files = [folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()]
    read = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if len({json.dumps([one["model"].get("vocab"), one["added_tokens"]], sort_keys=True) for one in read}) > 1:
        raise ValueError(
            f"{files[0]} and {files[1]} number their tokens differently: merge models that share a tokenizer."
        )


def copy_rest(plan: MergePlan, folder: Path) -> None:
    """Copy what the base model has beside its weights, and store the plan.

    Subfolders with a configuration of their own (`vision_tower/`) are whole components and copied with their weights.
    """
    for path in sorted(plan.base.folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in NOT_COPIED):
            continue
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
        elif any(path.glob("*config.json")):
            _copy_folder(path, folder / path.name)
    if plan.out_dtype or plan.dtype:
        _set_dtype(folder / "config.json", plan.out_dtype or plan.dtype)
    (folder / PLAN_FILE).write_text(plan.text, encoding="utf-8")


def _copy_folder(source: Path, target: Path) -> None:
    """Copy files, not their permissions: a read-only source must not make a read-only result."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
        elif path.is_dir():
            _copy_folder(path, target / path.name)


def _set_dtype(config_file: Path, dtype: str) -> None:
    """Say the new dtype in config.json; `from_pretrained` loads weights in the dtype that stands there."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
