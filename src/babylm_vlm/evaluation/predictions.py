"""Predictions as the official BabyLM pipeline writes them, so that its collation script and the leaderboard read them.

The tree is MODEL/REVISION/zero_shot/causal/TASK/FOLDER/predictions.json; DevBench's scores are arrays beside `causal`,
devbench/FOLDER.npy; GLUE is in MODEL/REVISION/finetune/TASK. The collated file holds predictions on the full data
(from `evaluate`), GLUE's (from `finetune`), and of all checkpoints scores on the fast data and surprisals of
children's words (from `evaluate --revisions`).
"""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..metrics.minimal_pair_accuracy.minimal_pair_accuracy import official_choice
from ..metrics.surprisal_correlation.surprisal_correlation import first_form_probability
from .choices import Item
from .devbench import CONCEPTS, cosine_similarities
from .minimal_pairs import MinimalPair
from .output import items_file, read_items, write_whole
from .tasks import AOA, COMPS, DEVBENCH, FOLDERS, READING, WUG_ADJ, WUG_PAST, Outcome, Task, task_of

COLLATED = "all_full_preds_and_fast_scores_causal.json"
# Number of items of every subset of the full data; one number stands for a task that is its own only subset.
SIZES = json.loads((Path(__file__).parent / "official_sizes.json").read_text(encoding="utf-8"))

MULTIMODAL = {"vqa", "winoground", "devbench"}  # wanted of multimodal models alone


def official_predictions(task: Task, items: Sequence[Item | MinimalPair], outcomes: Sequence[Outcome]) -> dict:
    """`{subset: {"predictions": [{"id", "pred", …}]}}` of a task; of DevBench's, the scores themselves."""
    if task is DEVBENCH:
        return {items[0].uid: {"predictions": _devbench_scores(outcomes).tolist()}}
    subsets: dict[str, dict[str, list]] = {}
    for number, (item, outcome) in enumerate(zip(items, outcomes, strict=True)):
        rows = subsets.setdefault(item.uid, {"predictions": []})["predictions"]
        if task is READING:
            before = outcome.scores[1] if len(outcome.scores) > 1 else math.nan
            rows.append({"id": number, "pred": outcome.scores[0], "prev_pred": before})
            continue
        prefix, completion = item.options[official_choice(outcome.scores)]
        row = {"id": f"{item.uid}_{len(rows)}", "pred": prefix + completion if task is COMPS else completion}
        if task in (WUG_ADJ, WUG_PAST):
            row["prob"] = first_form_probability(outcome.scores)
        rows.append(row)
    return subsets


def _devbench_scores(outcomes: Sequence[Outcome]) -> np.ndarray:
    """Choices: scores (items, pictures, 1 text). Concepts: their cosine similarities (concepts, concepts)."""
    scores = np.array([outcome.scores for outcome in outcomes])
    return cosine_similarities(scores) if outcomes[0].uid == CONCEPTS else scores[:, :, None]


def predictions_tree(output_dir: Path, model: str, revision: str | None) -> Path:
    """The folder of a revision in the official tree."""
    return Path(output_dir) / Path(model).stem / (revision or "main")


def write_predictions(tree: Path, task: Task, folder: str, made: dict) -> None:
    """Write the predictions of a task into the `predictions_tree` of a revision."""
    zero_shot = tree / "zero_shot"
    if task is DEVBENCH:
        ((subset, rows),) = made.items()
        array = io.BytesIO()
        np.save(array, np.array(rows["predictions"]), allow_pickle=False)
        name = f"{folder}_pairwise_sims.npy" if subset == CONCEPTS else f"{folder}.npy"
        write_whole(zero_shot / task.name / name, array.getvalue())
        return
    place = zero_shot / "causal" / task.name
    if task.name == "blimp_supplement":
        place = place.with_name("blimp")
    if task is not READING:
        place /= folder
    write_whole(place / "predictions.json", json.dumps(made).encode())


def write_tree(
    tree: Path, tasks: dict[str, Path], items: dict[str, Sequence[Item | MinimalPair]], results_dir: Path
) -> dict[str, dict]:
    """Write the predictions of all official tasks of an evaluation.

    Args:
        tree: of `predictions_tree`.
        tasks: as `find_tasks` gives them.
        items: of the tasks that were measured.
        results_dir: folder of the evaluation, which holds the outcomes.

    Returns:
        those on the full data, by official task name, for the collated file.
    """
    full: dict[str, dict] = {}
    for task, of_task in items.items():
        kind = task_of(tasks[task])
        if kind is AOA or tasks[task].resolve().name not in FOLDERS:
            continue
        made = official_predictions(kind, of_task, read_items(items_file(results_dir, task))[1])
        write_predictions(tree, kind, task, made)
        if not task.endswith("_fast"):
            full.setdefault(kind.name, {}).update(made)
    return full


def write_collated(output_dir: Path, model: str, made: dict) -> list[str]:
    """Put parts into the collated file of a model; what other commands have put there stays.

    Args:
        made: by official name, such as `blimp`, `glue` or `fast_eval_results`.

    Returns:
        of `_check_sizes`, for the whole file.
    """
    path = Path(output_dir) / Path(model).stem / COLLATED
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_whole(path, json.dumps(before | made).encode())
    return _check_sizes(before | made)


def _check_sizes(made: dict[str, dict]) -> list[str]:
    """One sentence for each part that is missing or incomplete, for which the leaderboard would not take the file."""
    wanted_parts = [name for name in SIZES if name not in MULTIMODAL or made.keys() & MULTIMODAL]
    missing = [name for name in (*wanted_parts, "aoa", "fast_eval_results") if name not in made]
    notes = [f"{COLLATED}: {name} is missing." for name in missing]
    for name, subsets in ((name, subsets) for name, subsets in made.items() if name in SIZES):
        wanted = SIZES[name] if isinstance(SIZES[name], dict) else dict.fromkeys(subsets, SIZES[name])
        sizes = {subset.lower(): len(rows["predictions"]) for subset, rows in subsets.items()}
        wrong = [subset for subset in wanted if sizes.get(subset) != wanted[subset]]
        if wrong:
            first = wrong[0]
            notes.append(
                f"{COLLATED}: {len(wrong)} of {len(wanted)} subsets of {name} have not the official number of items, "
                f"such as {first} with {sizes.get(first, 0)} instead of {wanted[first]}."
            )
    return notes
