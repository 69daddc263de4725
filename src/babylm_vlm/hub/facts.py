"""What a model card says, read from the files that training, merging and evaluation left in a checkpoint folder."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..files import read_json, sha256, weights_sha256
from ..merging.linear import Finish
from ..merging.plan import ADAPTER_FILE, PROJECTOR, MergePlan, Source
from ..merging.preflight import STATE_FILE, common_ancestor
from ..merging.steps import layer_depths
from ..merging.weights import Weights
from .cards import write_card

LIMITS = [
    "It was trained on very little text and knows little of the world; what it writes can be wrong or offensive.",
    "The accuracies are on minimal pairs of the kinds listed, and say nothing about other abilities.",
]
HYPERPARAMETERS = (
    "learning_rate",
    "projector_learning_rate",
    "embedding_learning_rate",
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
    folder: Path,
    plan: MergePlan,
    alpha_choice: str | None = None,
    results: list[dict] | None = None,
    hashes: Mapping[Path, str] | None = None,
) -> None:
    """Card of a merge from its plan and from what its parents' folders say of themselves, if it has `card_parents`.

    Args:
        folder: the merged checkpoint.
        plan: what was merged.
        alpha_choice: a sentence that says how alpha was chosen.
        results: rows of {task, split, accuracy, interval, chance, items}.
        hashes: of the parents' weights files, those that are known.
    """
    parents = card_parents(plan)
    if not parents:
        return
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda source: _weights_sha256(source, hashes), parents.values()))
    states = {
        role: read_json(source.folder / STATE_FILE)
        for role, source in parents.items()
        if (source.folder / STATE_FILE).is_file()
    }
    ancestor = common_ancestor(plan.sources, hashes)
    limits = LIMITS if ancestor else [*LIMITS, "No common ancestor of its parents is on record."]
    write_card(
        folder,
        "merged",
        {
            "title": "Merged BabyLM",
            "languages": ["en"],
            "architecture": architecture(folder),
            "alpha": decoder_alpha(folder, plan, parents) if plan.native else None,
            "alpha_choice": alpha_choice,
            "ancestor": public_name(ancestor) if ancestor else None,
            **{role: _public_source(source) for role, source in parents.items()},
            "parents": [
                {"role": role, "name": _public_source(source), "commit": source.commit, "sha256": digest}
                for (role, source), digest in zip(parents.items(), digests, strict=True)
            ],
            "data": [
                source | {"parent": role, "name": public_name(source["name"])}
                for role, state in states.items()
                for source in state.get("data", [])
            ],
            "merge_yaml": public_text(plan),
            "results": results,
            "limitations": limits,
        },
    )


def card_of_merge(
    plan: MergePlan, alpha_choice: str | None = None, results: list[dict] | None = None
) -> Finish | None:
    """What `merge` is to finish with: the card, as of `write_merged_card`; None where the plan gets none."""
    if not card_parents(plan):
        return None
    return lambda folder, hashes: write_merged_card(folder, plan, alpha_choice, results, hashes)


def card_parents(plan: MergePlan) -> dict[str, Source]:
    """A plan's two models by the role in which the card of a merge names them; none where it has no such two."""
    parents = {"multimodal" if has_eyes(source.folder) else "language": source for source in plan.sources}
    return parents if len(parents) == len(plan.sources) == 2 else {}


def _weights_sha256(source: Source, known: Mapping[Path, str] | None) -> str:
    """Of `model+adapter`, the hash of the model and that of the adapter's file."""
    digest = weights_sha256(source.folder, known)
    return f"{digest} + {sha256(source.adapter / ADAPTER_FILE)}" if source.adapter else digest


def decoder_alpha(folder: Path, plan: MergePlan, parents: dict[str, Source]) -> float | None:
    """The multimodal model's share in the decoder, where it is one share of a whole; None where it is not."""
    if plan.align_tokens:
        return None  # the rows of tokens that one model lacks are the other's
    names = sorted(name for name in Weights(folder).names if PROJECTOR not in name)
    models = parents["multimodal"], parents["language"]
    if not all(Weights(model.folder).names.issuperset(names) for model in models):
        return None
    depths = layer_depths(names)
    shares = {tuple(model.weight(name, depth) for model in models) for name, depth in depths.items()}
    multimodal, language = shares.pop()
    total = multimodal + language
    if shares or min(multimodal, language) < 0 or total == 0 or (total != 1 and not plan.normalize):
        return None
    return multimodal / total


def public_name(name: str) -> str:
    """A checkpoint or data set as a card may name it: of an absolute path, which means nothing elsewhere, the end."""
    return Path(name).name if Path(name).is_absolute() else name


def _public_source(source: Source) -> str:
    """`public_name` of a model, and of `model+adapter` of both."""
    parts = source.name.split("+", 1) if source.adapter else [source.name]
    return "+".join(public_name(part) for part in parts)


def public_text(plan: MergePlan) -> str:
    """The YAML of a plan with the names that a card may name."""
    text = plan.text
    for source in plan.sources:
        text = text.replace(source.name, _public_source(source))
    return text


def has_eyes(folder: Path) -> bool:
    """Whether a checkpoint is multimodal."""
    return "vision_tower" in read_json(folder / "config.json")


def architecture(folder: Path) -> dict:
    """The lines of a card's architecture table, from `config.json`."""
    config = read_json(folder / "config.json")
    shape = {
        "layers": config.get("num_hidden_layers"),
        "hidden size": config.get("hidden_size"),
        "attention heads": config.get("num_attention_heads"),
        "vocabulary": config.get("vocab_size"),
        "vision tower (frozen)": config.get("vision_tower"),
        "visual tokens per picture": config["vision_grid"] ** 2 if "vision_grid" in config else None,
    }
    return {name: value for name, value in shape.items() if value is not None}
