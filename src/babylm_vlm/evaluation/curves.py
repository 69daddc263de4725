"""Learning curves: every checkpoint of a run measured in one process, its data read and tokenized once.

A run is a repository on the Hub with branches `chck_1M`, `chck_2M`, … (of so many words seen; `chck_1500` of 1,500),
or a folder with such subfolders. What an evaluation leaves in its folder (output.py) is here in one subfolder per
revision; beside them

curves.json              every number at every revision, ages of acquisition, scores as the leaderboard takes them
curves.png               a panel per number, by words seen, where names say how many
predictions/             if asked for: the official tree of every revision, and parts of the collated file

`curves.json` is written anew after every checkpoint: a run that was cut off goes on from there with the same command.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from tqdm.auto import tqdm

from ..files import named_source, words_seen
from . import aoa
from .choices import Item
from .evaluate import Benchmarks, check_any_done, evaluate_model, load_model, read_benchmarks
from .output import RESULTS_FILE, SHOWN, items_file, read_items, write_whole
from .predictions import predictions_tree, write_collated, write_tree
from .tasks import AOA, FOLDERS, READING, WUG_ADJ, WUG_PAST, Sampling, task_of

SCHEMA_VERSION = 1
CURVES_FILE = "curves.json"
STRICT_SMALL = [f"chck_{words}M" for words in (*range(1, 10), *range(10, 101, 10))]
STRICT = [*STRICT_SMALL, *(f"chck_{words}M" for words in range(200, 1001, 100))]
FAST_FOLDERS = [name for name in FOLDERS if name.endswith("_fast")] + [
    "wug_adj_nominalization",
    "wug_past_tense",
    "reading",
]


@dataclass(frozen=True)
class Revision:
    """A checkpoint of a run.

    Attributes:
        name: of the branch on the Hub or of the subfolder.
        model, branch: what to load: a folder and None, or a Hub id and a branch.
    """

    name: str
    model: str
    branch: str | None

    @property
    def words(self) -> int | None:
        """Words seen, as the name says; None if it does not."""
        return words_seen(self.name)


def find_revisions(model: str, asked: str = "all") -> list[Revision]:
    """The checkpoints of a run, by words seen; those whose names say nothing about it stand last, as they were named.

    Args:
        model: folder or Hub id of the run.
        asked: `all` whose names say how many words they have seen, or names with commas.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: the run has no checkpoints.
    """
    local = Path(model).is_dir()
    if asked != "all":
        names = list(dict.fromkeys(name.strip() for name in asked.split(",")))
    elif local:
        names = [path.name for path in Path(model).iterdir() if path.is_dir()]
    else:
        names = _branches(model)
    if asked == "all":
        names = [name for name in names if words_seen(name) is not None]
    if not names:
        raise ValueError(f"{model} has no checkpoints named chck_1M, chck_2M, …; name its revisions, with commas.")
    for name in names:
        if local and not Path(model, name, "config.json").is_file():
            raise FileNotFoundError(f"{Path(model, name)} holds no config.json, so it is no checkpoint of {model}.")
    found = [Revision(name, str(Path(model, name)) if local else model, None if local else name) for name in names]
    return sorted(found, key=lambda revision: math.inf if revision.words is None else revision.words)


def _branches(repo_id: str) -> list[str]:
    """Names of a repository's branches on the Hub."""
    with named_source(repo_id, "the model's name"):
        try:
            return [branch.name for branch in HfApi().list_repo_refs(repo_id).branches]
        except HTTPError as error:  # a connection that fails is no OSError
            raise OSError(str(error)) from error


def check_curves_folder(output_dir: Path, revisions: Sequence[Revision], overwrite: bool = False) -> None:
    """Raise FileExistsError if a folder holds something else than an unfinished run of `evaluate_revisions`.

    Raises:
        FileExistsError: there are results already and they are not to be replaced, or `output_dir` is a file.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is a file; name a folder for the results.")
    file = output_dir / CURVES_FILE
    taken = [file] if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["complete"] else []
    if not file.is_file():
        results = [output_dir / revision.name / RESULTS_FILE for revision in revisions]
        taken = [path for path in results if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(
            f"{taken[0]} exists; choose another folder, or pass --overwrite (scores of the same model, data and rule "
            "are kept)."
        )


def evaluate_revisions(
    model: str,
    revisions: Sequence[Revision],
    tasks: dict[str, Path],
    output_dir: Path,
    *,
    official: bool = False,
    predictions: bool = False,
    batch_tokens: int = 4096,
    resamples: int = 2000,
    seed: int = 0,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict:
    """Measure every checkpoint on every task, and write what the head of this file lists.

    A checkpoint or task that fails is named in the results and loses nothing of the others.

    Args:
        model: folder or Hub id of the run.
        revisions: of `find_revisions`.
        tasks: as `find_tasks` gives them; contexts of children's words (`cdi_childes`) give ages of acquisition.
        trust_remote_code: run the code that comes with models of other architectures.
        others: as in `evaluate_model`.

    Returns:
        what `curves.json` holds.

    Raises:
        FileExistsError: as `check_curves_folder`.
        ValueError: no task could be read, or no checkpoint measured; the reasons.
    """
    check_curves_folder(output_dir, revisions, overwrite)
    output_dir, sampling = Path(output_dir), Sampling(official or predictions, resamples, seed)
    benchmarks = read_benchmarks(tasks)
    check_any_done(benchmarks.items, benchmarks.failed)
    options = {"official": sampling.official, "batch_tokens": batch_tokens, "resamples": resamples, "seed": seed}
    options |= {"overwrite": True, "progress": progress, "benchmarks": benchmarks}
    results: dict[str, dict] = {}
    failed = dict(benchmarks.failed)
    for revision in tqdm(revisions, desc="checkpoints", disable=not progress):
        folder, names = output_dir / revision.name, {"name": revision.model, "revision": revision.branch}
        try:
            loaded, processor = load_model(revision.model, revision.branch, trust_remote_code)
            results[revision.name] = evaluate_model(loaded, processor, tasks, folder, **names, **options)
        except (OSError, ValueError, SafetensorError) as error:
            failed[revision.name] = str(error)
            continue
        _write_curves(output_dir, _collect(model, revisions, results, failed, sampling))
    check_any_done(results, failed)
    curves, collated = _collect(model, revisions, results, failed, sampling), {}
    if sampling.official:
        curves["fast_eval_results"], curves["predictions"] = fast_eval_results(results, tasks)
        collated["fast_eval_results"] = curves["fast_eval_results"]
    for task in (task for task in benchmarks.items if task_of(tasks[task]) is AOA and task in curves["tasks"]):
        seeing = [one for one in revisions if one.words is not None and task in _measured(results, one)]
        surprisals = _surprisals(output_dir, task, seeing)
        collated["aoa"] = surprisal_file(model, benchmarks.items[task], seeing, surprisals)
        _add_ages(curves, tasks[task], benchmarks.items[task], seeing, surprisals, sampling)
    if predictions:
        curves["predictions"] += _write_predictions(output_dir, model, tasks, benchmarks, results, collated)
    curves["complete"] = not curves["failed"]
    plot = output_dir / "curves.png"
    if any(revision["words"] is not None for revision in curves["revisions"]):
        plot_curves(curves, plot)
    else:
        plot.unlink(missing_ok=True)
    _write_curves(output_dir, curves)
    return curves


def _measured(results: dict[str, dict], revision: Revision) -> dict[str, dict]:
    """The numbers of a revision; none if it failed."""
    return results[revision.name]["tasks"] if revision.name in results else {}


def _surprisals(output_dir: Path, task: str, revisions: Sequence[Revision]) -> np.ndarray:
    """Surprisals (R, n) of children's words at every revision, as its evaluation has left them."""
    kept = [read_items(items_file(output_dir / revision.name, task))[1] for revision in revisions]
    return np.array([[outcome.scores[0] for outcome in outcomes] for outcomes in kept])


def _add_ages(
    curves: dict,
    path: Path,
    items: Sequence[Item],
    revisions: Sequence[Revision],
    surprisals: np.ndarray,
    sampling: Sampling,
) -> None:
    """Put the correlation of ages of acquisition into the curves, or why there is none."""
    try:
        children = aoa.read_children(aoa.find_human_file(path))
    except (OSError, ValueError) as error:
        curves["failed"]["age of acquisition"] = str(error)
        return
    words, seen = [item.uid for item in items], [revision.words for revision in revisions]
    if seen:
        curves["age_of_acquisition"] = aoa.acquisition(
            words, surprisals, seen, children, sampling.resamples, sampling.seed
        )


def _collect(
    model: str, revisions: Sequence[Revision], results: dict[str, dict], failed: dict[str, str], sampling: Sampling
) -> dict:
    """`curves.json` of the revisions that are done; a number that a revision lacks is None."""
    done = [revision for revision in revisions if revision.name in results]
    rows: dict[str, dict] = {}
    for result in results.values():
        for task, row in result["tasks"].items():
            rows.setdefault(task, {key: row[key] for key in ("metric", "chance", "items")})
    for task, curve in rows.items():
        found = [results[revision.name]["tasks"].get(task) for revision in done]
        curve |= {key: [row and row[key] for row in found] for key in ("value", "interval")}
    failed_tasks = {
        f"{name}: {task}": sentence
        for name, result in results.items()
        for task, sentence in result["failed"].items()
        if task not in failed  # for all revisions alike
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "official": sampling.official,
        "complete": False,
        "revisions": [{"name": revision.name, "words": revision.words} for revision in done],
        "tasks": rows,
        "failed": failed | failed_tasks,
    }


def _write_curves(output_dir: Path, curves: dict) -> None:
    write_whole(output_dir / CURVES_FILE, (json.dumps(curves, indent=2, allow_nan=False) + "\n").encode())


# --- what the leaderboard takes --------------------------------------------------------------------------------------


def surprisal_file(model: str, items: Sequence[Item], revisions: Sequence[Revision], surprisals: np.ndarray) -> dict:
    """Surprisals (R, n) as the official pipeline's `surprisal.json` has them; its collation takes that file."""
    rows = []
    for revision, values in zip(revisions, surprisals.tolist(), strict=True):
        places: dict[str, int] = {}
        for item, value in zip(items, values, strict=True):
            ((context, word),) = item.options
            places[word] = places.get(word, -1) + 1
            row = {"step": revision.name, "word_count": revision.words, "target_word": word}
            rows.append(row | {"context_id": places[word], "context": context, "surprisal": value})
    steps = {"total_steps": len(revisions), "completed_steps": len(revisions)}
    return {"metadata": {"model_name": model, "use_bos_only": False, **steps}, "results": rows}


def fast_eval_results(results: dict[str, dict], tasks: dict[str, Path]) -> tuple[dict[str, list], list[str]]:
    """Official task name to a list, in order of revisions, of `{subset: score}`; fractions, not percent.

    Args:
        results: `results.json` of every revision by name, in order, under the official rule.
        tasks: as `find_tasks` gives them.

    Returns:
        the lists, and one sentence for what the leaderboard lacks; a task that some revision lacks is left out.
    """
    made, notes = {}, _revision_notes(list(results))
    for folder in (name for name in tasks if tasks[name].resolve().name in FAST_FOLDERS):
        kind = task_of(tasks[folder])
        scores = [_subset_scores(kind.name, folder, result["tasks"]) for result in results.values()]
        if None in scores:
            notes.append(f"fast_eval_results: {kind.name} is left out, because some checkpoints lack it.")
        else:
            made[kind.name] = scores
    return made, notes


def _subset_scores(kind: str, folder: str, rows: dict[str, dict]) -> dict[str, float] | None:
    """Scores of a task's subsets in one `results.json`; None where they are missing."""
    if kind == READING.name:
        names = {"spr": "reading_self_paced", "rt": "reading_eye_tracking"}
        return {key: rows[name]["value"] / 100 for key, name in names.items()} if names["rt"] in rows else None
    if folder not in rows:
        return None
    if kind in (WUG_ADJ.name, WUG_PAST.name):
        return {kind: rows[folder]["value"]}
    return {subset: row["value"] for subset, row in rows[folder]["paradigms"].items()}


def _revision_notes(names: Sequence[str]) -> list[str]:
    """A sentence where the revisions are not those that the leaderboard expects."""
    wanted = STRICT if set(names) & set(STRICT) - set(STRICT_SMALL) else STRICT_SMALL
    missing = [name for name in wanted if name not in names]
    if not missing and len(names) == len(wanted):
        return []
    such = f", such as {missing[0]}" if missing else ""
    return [f"The leaderboard takes {len(wanted)} checkpoints to {wanted[-1]}; {len(missing)} are missing{such}."]


def _write_predictions(
    output_dir: Path,
    model: str,
    tasks: dict[str, Path],
    benchmarks: Benchmarks,
    results: dict[str, dict],
    collated: dict,
) -> list[str]:
    """Write the official tree of every revision, and parts of the collated file; returns what the file lacks."""
    root = output_dir / "predictions"
    for name, result in results.items():
        done = {task: items for task, items in benchmarks.items.items() if task not in result["failed"]}
        write_tree(predictions_tree(root, model, name), tasks, done, output_dir / name)
    if "aoa" in collated:  # also where the official collation looks for it
        place = predictions_tree(root, model, None) / "zero_shot" / "causal" / "AoA_word"
        write_whole(place / "surprisal.json", json.dumps(collated["aoa"]).encode())
    return write_collated(root, model, collated)


# --- for people ------------------------------------------------------------------------------------------------------


def plot_curves(curves: dict, path: Path) -> None:
    """Draw every number by words seen, on a log scale, with its 95 % band and chance level.

    Args:
        curves: of `evaluate_revisions`; revisions whose names do not say how many words they have seen are left out.
        path: of the PNG.
    """
    drawn = [i for i, revision in enumerate(curves["revisions"]) if revision["words"] is not None]
    columns = min(3, len(curves["tasks"]))
    rows = math.ceil(len(curves["tasks"]) / columns)
    figure = Figure(figsize=(4 * columns, 3.1 * rows), dpi=150, layout="tight")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(curves["tasks"]) :]:
        axes.set_visible(False)
    for axes, (task, curve) in zip(panels.flat, curves["tasks"].items(), strict=False):
        shown, factor, _ = SHOWN[curve["metric"]]
        here = [i for i in drawn if curve["value"][i] is not None]
        words = [curves["revisions"][i]["words"] for i in here]
        low, high = factor * np.array([curve["interval"][i] for i in here]).reshape(-1, 2).T
        axes.plot(words, [factor * curve["value"][i] for i in here], color="#1b6ca8", marker="o", markersize=3)
        axes.fill_between(words, low, high, color="#1b6ca8", alpha=0.18, linewidth=0)
        if curve["chance"] is not None:
            axes.axhline(factor * curve["chance"], color="0.4", linestyle=":", linewidth=1.2)
        axes.set_xscale("log" if here else "linear")
        axes.set_title(task, fontsize=10)
        axes.set_ylabel(shown)
        axes.set_xlabel("words seen")
        axes.grid(alpha=0.25)
    figure.suptitle(f"{curves['model']}: 95 % bands; dotted: chance", fontsize=10)
    figure.savefig(path)


def print_curves(curves: dict, console: Console | None = None) -> None:
    """Print a row per revision and a column per number."""
    rule = ", official rule" if curves["official"] else ""
    table = Table(title=curves["model"] + rule)
    table.add_column("revision", no_wrap=True)
    for task, curve in curves["tasks"].items():
        table.add_column(f"{task}, {SHOWN[curve['metric']][0]}", justify="right", overflow="fold")
    for i, revision in enumerate(curves["revisions"]):
        cells = []
        for curve in curves["tasks"].values():
            _, factor, digits = SHOWN[curve["metric"]]
            value = curve["value"][i]
            cells.append("–" if value is None else f"{factor * value:.{digits}f}")
        table.add_row(revision["name"], *cells)
    console = console or Console()
    console.width = max(console.width, 14 * len(table.columns))  # a narrow terminal breaks lines, but loses nothing
    console.print(table)
    if found := curves.get("age_of_acquisition"):
        low, high = found["interval"]
        console.print(
            f"Age of acquisition: Pearson's r with children's {found['value']:.3f} ({low:.3f} to {high:.3f}), "
            f"{found['items']} words."
        )
    for note in curves.get("predictions", []):
        console.print(note, markup=False)
