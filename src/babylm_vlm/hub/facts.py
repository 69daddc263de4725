"""What a model card says, read from the files that training, merging and evaluation left in a checkpoint folder."""

import json
from pathlib import Path

from ..files import sha256
from ..merging.plan import PROJECTOR, MergePlan, Source
from ..merging.weights import Weights
from .cards import write_card

STATE_FILE = "training_state.json"
LIMITS = [
    "It was trained on very little text and knows little of the world; what it writes can be wrong or offensive.",
    "The accuracies are on minimal pairs of the kinds listed, and say nothing about other abilities.",
]
HYPERPARAMETERS = (
    "learning_rate",
    "projector_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "block_size",
    "seed",
)


def write_trained_card(folder: Path, results: list[dict] | None = None) -> None:
    """Card of a trained checkpoint from its `training_state.json` and `config.json`, and from results if known.

    Args:
        folder: the checkpoint.
        results: rows of {task, split, accuracy, interval, chance, items}.
    """
    state = read_json(folder / STATE_FILE)
    ancestor = state["ancestor"] or {}
    facts = {
        "title": f"{state['model'].capitalize()} BabyLM",
        "languages": ["en"],
        "base_model": public_name(ancestor["name"]) if ancestor else None,
        "parameters": state["parameters"],
        "architecture": architecture(folder),
        "data": [source | {"name": public_name(source["name"])} for source in state["data"]],
        "words_seen": state["words_seen"],
        "epochs": state["epochs"],
        "training": {name: state["recipe"].get(name) for name in HYPERPARAMETERS} | {"precision": state["precision"]},
        "hardware": state["hardware"],
        "minutes": state["minutes"],
        "final_loss": state["final_loss"],
        "results": results,
        "limitations": LIMITS,
        "versions": state["versions"],
    }
    write_card(folder, state["model"], facts)


def write_merged_card(
    folder: Path, plan: MergePlan, alpha_choice: str | None = None, results: list[dict] | None = None
) -> None:
    """Card of a merge from its plan and from what its parents' folders say of themselves.

    Args:
        folder: the merged checkpoint.
        plan: what was merged.
        alpha_choice: a sentence that says how alpha was chosen.
        results: rows of {task, split, accuracy, interval, chance, items}.
    """
    parents = {"multimodal" if has_eyes(source.folder) else "language": source for source in plan.sources}
    states = [read_json(s.folder / STATE_FILE) for s in plan.sources if (s.folder / STATE_FILE).is_file()]
    ancestor = common_ancestor(states) if len(states) == len(plan.sources) else None
    limits = LIMITS if ancestor else [*LIMITS, "No common ancestor of its parents is on record."]
    write_card(
        folder,
        "merged",
        {
            "title": "Merged BabyLM",
            "languages": ["en"],
            "architecture": architecture(folder),
            "alpha": decoder_alpha(folder, parents),
            "alpha_choice": alpha_choice,
            "ancestor": public_name(ancestor) if ancestor else None,
            **{role: public_name(source.name) for role, source in parents.items()},
            "parents": [
                {"role": role, "name": public_name(source.name), "sha256": sha256(source.folder / "model.safetensors")}
                for role, source in parents.items()
                if (source.folder / "model.safetensors").is_file()
            ],
            "data": [source | {"name": public_name(source["name"])} for state in states for source in state["data"]],
            "merge_yaml": plan.text,
            "results": results,
            "limitations": limits,
        },
    )


def common_ancestor(states: list[dict]) -> str | None:
    """Name of the checkpoint that all these runs started from, known by the hash of its weights, or None."""
    hashes = {(state["ancestor"] or {}).get("sha256") for state in states}
    return states[0]["ancestor"]["name"] if len(hashes) == 1 and None not in hashes else None


def decoder_alpha(folder: Path, parents: dict[str, Source]) -> float | None:
    """The multimodal model's share in the decoder, where it is the same for every tensor; None where it varies."""
    if set(parents) != {"multimodal", "language"}:
        return None
    names = [name for name in Weights(folder).names if PROJECTOR not in name]
    shares = {(parents["multimodal"].weight(name), parents["language"].weight(name)) for name in names}
    if len(shares) != 1:
        return None
    multimodal, language = shares.pop()
    return multimodal / (multimodal + language)


def public_name(name: str) -> str:
    """A checkpoint or data set as a card may name it: of an absolute path, which means nothing elsewhere, the end."""
    return Path(name).name if Path(name).is_absolute() else name


def has_eyes(folder: Path) -> bool:
    """Whether a checkpoint is multimodal."""
    return "vision_tower" in read_json(folder / "config.json")


def architecture(folder: Path) -> dict:
    """The lines of a card's architecture table, from `config.json`."""
    config = read_json(folder / "config.json")
    shape = {
        "layers": config["num_hidden_layers"],
        "hidden size": config["hidden_size"],
        "attention heads": config["num_attention_heads"],
        "vocabulary": config["vocab_size"],
    }
    if "vision_tower" in config:
        shape["vision tower (frozen)"] = config["vision_tower"]
        shape["visual tokens per picture"] = config["vision_grid"] ** 2
    return shape


def read_json(path: Path) -> dict:
    """A JSON file as a dictionary."""
    return json.loads(path.read_text(encoding="utf-8"))
