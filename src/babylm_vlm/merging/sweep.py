"""Score a grid of alphas on one live model, choose one on the selection split, report it on another.

- A task whose pairs have pictures is grounded, one of text alone is grammar. The score of an ability is the macro
  average over all paradigms of its tasks, with the 95 % bootstrap interval of `evaluation.statistics`.
- The parents, alpha = 0 and alpha = 1, are always scored: what a merge keeps or wins is measured against them. At
  alpha = 0 the live model is the language-only decoder behind the multimodal model's projector.
- Scores are those of the merged files at these alphas loaded in fp32, bit for bit (see `interpolation`).
- A folder comes out: `sweep.json`, `curve.png`, `pareto.png`, `merge.yaml` (the chosen merge, for us and for mergekit)
  and, if asked for, the chosen merge itself in `merged/`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..evaluation import (
    MinimalPair,
    accuracy,
    difference_interval,
    find_tasks,
    load_model,
    picture_features,
    read_pairs,
    score_pairs,
)
from ..files import check_new_folder, new_folder, sha256
from ..hub.facts import card_of_merge, has_eyes
from .interpolation import Interpolation, check_vocabularies, read_tensors
from .linear import merge
from .output import check_overlap
from .plan import PROJECTOR, MergePlan, Source, check_alpha, linear_plan_yaml, read_plan
from .plots import plot_curve, plot_pareto
from .preflight import check_models
from .steps import layer_depths

SWEEP_FILE = "sweep.json"
ABILITIES = ("grammar", "grounded")
DEFAULT_OBJECTIVE = "keep:0.95"


def sweep(
    plan: MergePlan,
    data: Path,
    tasks: Sequence[str],
    output_dir: Path,
    alphas: Sequence[float],
    objective: str = DEFAULT_OBJECTIVE,
    test_data: Path | None = None,
    save: bool = False,
    overwrite: bool = False,
) -> dict:
    """Score every alpha, choose one, and leave a folder; returns what `sweep.json` holds.

    Args:
        plan: a linear merge of a multimodal and a language-only model; its alpha is replaced by the grid.
        data: folder of the selection split, with a subfolder of minimal pairs for each task.
        tasks: names of these subfolders; at least one with pictures and one without.
        output_dir: a new folder.
        alphas: the grid; 0 and 1 are added.
        objective: see `choose_alpha`.
        test_data: folder like `data`, of the split on which the chosen alpha and the parents are reported.
        save: carry out the chosen merge too.
        overwrite: replace an earlier sweep.

    Raises:
        FileExistsError: the output folder exists and `overwrite` is off, or it is no earlier sweep.
        FileNotFoundError: a task, picture or checkpoint is missing.
        ValueError: the plan, the data, an alpha or the objective is not what it should be, or the models do not match.
    """
    check_new_folder(output_dir, overwrite, SWEEP_FILE)
    alphas = sorted({0.0, 1.0, *map(float, alphas)})
    for alpha in alphas:
        check_alpha(alpha)
    rule = rule_of(objective)
    multimodal, language = sources = order_sources(plan)
    check_models(plan)
    check_overlap(output_dir, [source.folder for source in sources])
    selection = read_tasks(data, tasks)
    test = read_tasks(test_data, tasks) if test_data else None
    dial, processor = load_dial(multimodal.folder, language.folder)
    check_one_alpha(plan, dial.model)

    curve = score_alphas(dial, processor, selection, alphas)
    alpha = choose_alpha(curve, objective)
    result = {
        "schema_version": 1,
        "alpha": alpha,
        "objective": objective,
        "rule": rule,
        "models": {
            role: {"name": source.name, "weights_sha256": hashes(source.folder, ".safetensors")}
            for role, source in zip(("multimodal", "language"), sources, strict=True)
        },
        "abilities": abilities(selection),
        "curve": curve,
        "test": report_on_test(dial, processor, test, alpha) if test else None,
        "data_sha256": data_hashes(data, tasks),
        "test_data_sha256": data_hashes(test_data, tasks) if test_data else None,
        "versions": {package: version(package) for package in ("babylm-vlm", "torch", "transformers", "mergekit")},
    }
    with new_folder(output_dir, overwrite, SWEEP_FILE) as folder:
        plan_file = folder / "merge.yaml"
        plan_file.write_text(linear_plan_yaml(multimodal.name, language.name, alpha), encoding="utf-8")
        plot_curve(curve, alpha, folder / "curve.png")
        plot_pareto(curve, alpha, folder / "pareto.png")
        if save:
            chosen = read_plan(plan_file)
            card = card_of_merge(chosen, rule, card_rows(result))
            merge(chosen, folder / "merged", finish=card)
        (folder / SWEEP_FILE).write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return result


def parse_alphas(text: str) -> list[float]:
    """`start:stop:step`, both ends included, or numbers with commas: a grid of alphas, ascending.

    The steps are decimal, so that `0:1:0.1` holds 0.3 and not 0.30000000000000004.

    Raises:
        ValueError: `text` is neither, is empty, or leaves the range from 0 to 1.
    """
    parts = text.split(":")
    try:
        numbers = [Decimal(part) for part in (parts if len(parts) == 3 else text.split(","))]
    except InvalidOperation as error:
        raise ValueError(f"--alphas {text!r} is neither start:stop:step nor numbers with commas.") from error
    if len(parts) == 3:
        start, stop, step = numbers
        if not (step > 0 and start <= stop):
            raise ValueError(
                f"--alphas {text!r} is an empty grid: start must not exceed stop, and step must be above 0."
            )
        numbers = [start + step * i for i in range(int((stop - start) / step) + 1)]
    for number in numbers:
        check_alpha(float(number))
    return sorted({float(number) for number in numbers})


def choose_alpha(curve: Sequence[dict], objective: str = DEFAULT_OBJECTIVE) -> float:
    """The alpha that an objective takes from a curve; of equals, the smallest.

    Args:
        curve: of `score_alphas`, ascending; the last point is the multimodal model.
        objective: `grammar` or `grounded`, the best of that score; `mean`, the best mean of the two; or `keep:F`, the
            best grammar among those that keep at least the fraction F of the multimodal model's gain over chance on
            grounded pairs. Where it has no gain, `keep:F` is `grammar`.
    """

    def score(point: dict) -> float:
        wanted = [objective] if objective in ABILITIES else list(ABILITIES)
        return sum(point[ability]["accuracy"] for ability in wanted)

    kept = kept_fraction(objective)
    if kept is None:
        return max(curve, key=score)["alpha"]

    def gain(point: dict) -> float:
        return point["grounded"]["accuracy"] - point["grounded"]["chance"]

    allowed = [point for point in curve if gain(curve[-1]) <= 0 or gain(point) >= kept * gain(curve[-1])]
    return max(allowed, key=lambda point: point["grammar"]["accuracy"])["alpha"]


def kept_fraction(objective: str) -> float | None:
    """F of the objective `keep:F`, None for the others. Raises ValueError where it is none of `choose_alpha`'s."""
    if objective in (*ABILITIES, "mean"):
        return None
    name, _, value = objective.partition(":")
    try:
        fraction = float(value) if name == "keep" else -1.0
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"The objective {objective!r} is unknown; take grammar, grounded, mean or keep:F with F from 0 to 1."
        )
    return fraction


def rule_of(objective: str) -> str:
    """The objective as a sentence. Raises ValueError where there is no such objective."""
    kept = kept_fraction(objective)
    if kept is not None:
        return (
            f"Of the α whose accuracy on the grounded pairs keeps at least {kept:.0%} of the multimodal model's gain "
            "over chance, the one with the best grammar, both measured on the selection split."
        )
    what = {"grammar": "grammar", "grounded": "grounding", "mean": "mean of grammar and grounding"}[objective]
    return f"The α with the best {what}, measured on the selection split."


def read_tasks(data: Path, names: Sequence[str]) -> dict[str, list[MinimalPair]]:
    """Minimal pairs by task. Raises ValueError unless one task has pictures and one has none."""
    tasks = {name: read_pairs(path) for name, path in find_tasks(data, names).items()}
    for ability, members in abilities(tasks).items():
        if not members:
            has = "with pictures" if ability == "grounded" else "of text alone"
            raise ValueError(f"None of the tasks {', '.join(names)} in {data} is {has}; a sweep needs both kinds.")
    return tasks


def abilities(tasks: dict[str, list[MinimalPair]]) -> dict[str, list[str]]:
    """Names of the tasks of each ability. Raises ValueError where some pairs of a task have pictures and some none."""
    members = {ability: [] for ability in ABILITIES}
    for name, pairs in tasks.items():
        pictured = {pair.image is not None for pair in pairs}
        if len(pictured) > 1:
            raise ValueError(f"Some pairs of the task {name} have pictures and some have none; split it into two.")
        members["grounded" if pictured.pop() else "grammar"].append(name)
    return members


def order_sources(plan: MergePlan) -> tuple[Source, Source]:
    """The multimodal and the language-only model of a plan.

    Raises:
        ValueError: it is no linear merge of one of each, or changes the dtype.
    """
    if len(plan.sources) != 2 or yaml.safe_load(plan.text)["merge_method"] != "linear":
        raise ValueError("A sweep needs a plan with merge_method: linear and exactly two models.")
    eyes = [has_eyes(source.folder) for source in plan.sources]
    if eyes[0] == eyes[1]:
        names = " and ".join(source.name for source in plan.sources)
        raise ValueError(
            f"{names} are {'both multimodal' if eyes[0] else 'both language-only'}; a sweep needs one of each kind."
        )
    if any(source.adapter for source in plan.sources):
        raise ValueError(
            "A sweep is of checkpoints, not of model+adapter: fold the adapter in and save the model first."
        )
    if plan.dtype or plan.out_dtype:
        raise ValueError("The plan changes the dtype, which a sweep does not; leave out dtype and out_dtype.")
    return plan.sources if eyes[0] else plan.sources[::-1]


def check_one_alpha(plan: MergePlan, model: PreTrainedModel) -> None:
    """Raise ValueError where the plan weighs the model's decoder tensors differently: a sweep would not."""
    depths = layer_depths([name for name, _ in model.named_parameters() if PROJECTOR not in name])
    for source in plan.sources:
        if len({source.weight(name, depth) for name, depth in depths.items()}) > 1:
            raise ValueError(
                f"The plan gives the decoder tensors of {source.name} different weights; a sweep has one α for all."
            )


def load_dial(multimodal: Path, language: Path) -> tuple[Interpolation, ProcessorMixin | PreTrainedTokenizerBase]:
    """A live model in fp32, on the GPU if there is one, that can be set to any alpha; and its processor."""
    check_vocabularies(multimodal, language)
    model, processor = load_model(multimodal)
    return Interpolation(model, read_tensors(multimodal), read_tensors(language)), processor


def score_alphas(
    dial: Interpolation,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    tasks: dict[str, list[MinimalPair]],
    alphas: Sequence[float],
) -> list[dict]:
    """Accuracy at every alpha, by ability and by task. The pictures go through the tower once.

    Returns:
        for each alpha `{"alpha", "grammar": ability, "grounded": ability, "tasks": {task: accuracy}}`; an ability is
        `{"accuracy", "interval", "chance", "items"}`, a task has `ties`, `nonfinite` and `paradigms` besides.
    """
    scores = _score(dial, processor, tasks, alphas)
    return [_point(alpha, scores[alpha], tasks) for alpha in alphas]


def report_on_test(
    dial: Interpolation,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    tasks: dict[str, list[MinimalPair]],
    alpha: float,
) -> dict:
    """The parents and the chosen alpha on the test split, and what the chosen one wins, paired over items.

    Returns:
        `{"points": as of score_alphas, "differences": {ability: {"chosen - language", "chosen - multimodal"}}}`.
    """
    alphas = sorted({0.0, 1.0, alpha})
    scores = _score(dial, processor, tasks, alphas)
    differences = {}
    for ability, members in abilities(tasks).items():
        pairs = _joined(tasks, members)
        ours, language, multimodal = (np.concatenate([scores[a][task] for task in members]) for a in (alpha, 0.0, 1.0))
        differences[ability] = {
            "chosen - language": difference_interval(ours, language, pairs).to_dict(),
            "chosen - multimodal": difference_interval(ours, multimodal, pairs).to_dict(),
        }
    return {"points": [_point(a, scores[a], tasks) for a in alphas], "differences": differences}


def _score(
    dial: Interpolation,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    tasks: dict[str, list[MinimalPair]],
    alphas: Sequence[float],
) -> dict[float, dict[str, np.ndarray]]:
    """Log-probabilities (n, 2) of every task's pairs, at every alpha."""
    features = picture_features(dial.model, processor, [pair for pairs in tasks.values() for pair in pairs])
    scores: dict[float, dict[str, np.ndarray]] = {}
    for alpha in tqdm(alphas, desc="merging and scoring", unit="alpha"):
        dial.set(alpha)
        scores[alpha] = {
            task: score_pairs(dial.model, processor, pairs, features, progress=False) for task, pairs in tasks.items()
        }
    return scores


def _point(alpha: float, scores: dict[str, np.ndarray], tasks: dict[str, list[MinimalPair]]) -> dict:
    """One alpha of the curve."""
    point = {"alpha": alpha}
    for ability, members in abilities(tasks).items():
        joined = np.concatenate([scores[task] for task in members])
        measured = accuracy(joined, _joined(tasks, members)).to_dict()
        point[ability] = {key: measured[key] for key in ("accuracy", "interval", "chance", "items")}
    return point | {"tasks": {task: accuracy(scores[task], pairs).to_dict() for task, pairs in tasks.items()}}


def _joined(tasks: dict[str, list[MinimalPair]], members: Sequence[str]) -> list[MinimalPair]:
    """The pairs of several tasks as one list, their paradigms told apart by the task's name."""
    return [replace(pair, uid=f"{task}/{pair.uid}") for task in members for pair in tasks[task]]


def hashes(path: Path, *suffixes: str) -> dict[str, str]:
    """SHA-256 of the files with these suffixes in a folder, by name; or of the one file."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.name.endswith(suffixes))
    return {file.name: sha256(file) for file in files}


def data_hashes(data: Path, tasks: Sequence[str]) -> dict[str, dict[str, str]]:
    """`hashes` of the files of pairs, by task."""
    return {name: hashes(path, ".jsonl", ".jsonl.gz") for name, path in find_tasks(data, tasks).items()}


def card_rows(result: dict) -> list[dict]:
    """What the chosen merge reached, as rows of its model card: on the test split where there is one."""
    split = "test" if result["test"] else "selection"
    points = result["test"]["points"] if result["test"] else result["curve"]
    chosen = next(point for point in points if point["alpha"] == result["alpha"])
    return [
        {"task": f"{task} minimal pairs", "split": split}
        | {key: measured[key] for key in ("accuracy", "interval", "chance", "items")}
        for task, measured in chosen["tasks"].items()
    ]


def print_sweep(result: dict, output_dir: Path) -> None:
    """Print the curve, the choice and the test split for people."""
    console = Console()
    splits = {"selection split": result["curve"]} | (
        {"test split": result["test"]["points"]} if result["test"] else {}
    )
    for split, points in splits.items():
        table = Table(
            title=f"{split}: accuracy in % with 95 % interval (chance {100 * points[0]['grounded']['chance']:.0f})"
        )
        for column in ("α", *ABILITIES):
            table.add_column(column)
        for point in points:
            mark = " *" if point["alpha"] == result["alpha"] else ""
            table.add_row(f"{point['alpha']:g}{mark}", *(_percent(point[ability]) for ability in ABILITIES))
        console.print(table)
    console.print(f"* chosen: α = {result['alpha']:g}. {result['rule']}", soft_wrap=True, highlight=False)
    console.print(f"Written: {output_dir}", soft_wrap=True, highlight=False)


def _percent(measured: dict) -> str:
    low, high = (100 * bound for bound in measured["interval"])
    return f"{100 * measured['accuracy']:.1f} [{low:.1f}, {high:.1f}]"
