"""The tasks of the BabyLM suite that need no training, and which folder holds which.

A task reads a folder into items, scores them, and turns what came out into numbers. Everything that is not in
`FOLDERS` is a folder of the user's own minimal pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..metrics.surprisal_correlation.surprisal_correlation import correlation
from ..metrics.winoground_score.winoground_score import example_credit
from . import aoa, comps, devbench, entity_tracking, ewok, reading, vqa, winoground, wug
from .choices import Item, score_choices
from .minimal_pairs import MinimalPair, read_pairs
from .rows import SUFFIXES, data_files, file_stem
from .statistics import Difference, accuracy, difference_interval, interval, label_accuracy, label_f1


@dataclass(frozen=True)
class Outcome:
    """What is kept of an item: its paradigm and cluster, its scores (nats), and the facts that its statistic needs."""

    uid: str
    pair: str
    scores: tuple[float, ...]
    facts: dict[str, float]


@dataclass(frozen=True)
class Sampling:
    """How numbers are made of outcomes: by which rule for ties and failures, and with which resamples."""

    official: bool = False
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        name: as in the official predictions.
        read: folder or file to items.
        score: (model, processor, items, batch_tokens=, progress=, official=, prepared=) to an array of scores for each
            item; if items have pictures and the model takes them, also with their features=.
        measure: (folder's name, outcomes, sampling) to one row of `results.json` per number, by name.
        compare: the same for two models: (folder's name, outcomes of A, of B, sampling) to a `Difference` per number.
        suffixes: of the files by which a folder of this task is known.
        files: folder or file to all files that the items come from, pictures aside.
    """

    name: str
    read: Callable[[Path], list[Item] | list[MinimalPair]]
    score: Callable[..., list[np.ndarray]]
    measure: Callable[[str, Sequence[Outcome], Sampling], dict[str, dict]]
    compare: Callable[[str, Sequence[Outcome], Sequence[Outcome], Sampling], dict[str, Difference]]
    suffixes: tuple[str, ...] = SUFFIXES
    files: Callable[[Path], list[Path]] = data_files


def _measure_choices(
    name: str,
    outcomes: Sequence[Outcome],
    sampling: Sampling,
    group_of: Callable[[str], str] | None = None,
    strict: bool = False,
) -> dict[str, dict]:
    scores = [outcome.scores for outcome in outcomes]
    rule = (group_of, sampling.official, strict)
    found = accuracy(scores, outcomes, sampling.resamples, sampling.seed, *rule).to_dict()
    paradigms = {uid: {"value": row.pop("accuracy"), **row} for uid, row in found.pop("paradigms").items()}
    return {name: {"metric": "accuracy", "value": found.pop("accuracy"), **found, "paradigms": paradigms}}


def _compare_choices(
    name: str,
    a: Sequence[Outcome],
    b: Sequence[Outcome],
    sampling: Sampling,
    group_of: Callable[[str], str] | None = None,
    strict: bool = False,
) -> dict[str, Difference]:
    scores = [[outcome.scores for outcome in outcomes] for outcomes in (a, b)]
    rule = (group_of, sampling.official, strict)
    return {name: difference_interval(*scores, a, sampling.resamples, sampling.seed, *rule)}


Statistic = Callable[[str, Sequence[Outcome], np.ndarray], dict[str, np.ndarray]]


def _correlation(name: str, outcomes: Sequence[Outcome], counts: np.ndarray) -> dict[str, np.ndarray]:
    ratios = [outcome.facts["ratio"] for outcome in outcomes]
    return {name: correlation([outcome.scores for outcome in outcomes], ratios, counts)}


def _gains(name: str, outcomes: Sequence[Outcome], counts: np.ndarray) -> dict[str, np.ndarray]:
    return reading.gains([outcome.scores for outcome in outcomes], outcomes, counts)


def _paper_scores(name: str, examples: Sequence[Outcome], counts: np.ndarray, official: bool) -> dict[str, np.ndarray]:
    credit = example_credit([np.reshape(example.scores, (2, 2)) for example in examples], official)[0]
    totals = counts.sum(axis=1)
    return {f"{name}_{key}": counts @ credit[key] / totals for key in ("text_score", "image_score", "group_score")}


def _divergence(name: str, outcomes: Sequence[Outcome], counts: np.ndarray, group: str) -> dict[str, np.ndarray]:
    scores = np.array([outcome.scores for outcome in outcomes])
    people = [[outcome.facts[f"{group}/{k}"] for k in range(1, scores.shape[1] + 1)] for outcome in outcomes]
    return {name: devbench.divergence(scores, np.array(people), counts)}


def _similarity(name: str, outcomes: Sequence[Outcome], counts: np.ndarray) -> dict[str, np.ndarray]:
    people = np.zeros((len(outcomes), len(outcomes)))
    for i, outcome in enumerate(outcomes):
        people[i, :i] = [outcome.facts[str(j)] for j in range(i)]
    return {name: devbench.similarity(np.array([outcome.scores for outcome in outcomes]), people, counts)}


def _mean_surprisal(name: str, outcomes: Sequence[Outcome], counts: np.ndarray) -> dict[str, np.ndarray]:
    """The mean over the items that have a finite surprisal; its chance level depends on the vocabulary."""
    values = np.array([outcome.scores[0] for outcome in outcomes])
    known = np.isfinite(values)
    drawn = counts[:, known].sum(axis=1)
    return {name: np.where(drawn > 0, counts[:, known] @ values[known] / np.maximum(drawn, 1), 0.0)}


def _measure(
    name: str,
    outcomes: Sequence[Outcome],
    sampling: Sampling,
    statistic: Statistic,
    metric: str,
    chance: float | dict[str, float] | None = 0.0,
) -> dict[str, dict]:
    """A statistic over all items, with its bootstrap interval; `chance` is that of all its numbers, or of each."""
    once = np.ones((1, len(outcomes)), dtype=np.int64)
    values = statistic(name, outcomes, once)
    resampled = statistic(name, outcomes, _bootstrap_counts(outcomes, sampling))
    scores = [outcome.scores for outcome in outcomes]
    tied = [len(set(row)) < len(row) for row in scores] if metric in ("spearman", "accuracy") else []
    failed = [not np.isfinite(row).all() for row in scores]
    counted = {"items": len(outcomes), "ties": int(sum(tied)), "nonfinite": int(sum(failed))}
    return {
        key: {
            "metric": metric,
            "value": float(value[0]),
            "interval": list(interval(resampled[key])),
            "chance": chance[key] if isinstance(chance, dict) else chance,
            **counted,
            "paradigms": {},
        }
        for key, value in values.items()
    }


def _compare(
    name: str, a: Sequence[Outcome], b: Sequence[Outcome], sampling: Sampling, statistic: Statistic
) -> dict[str, Difference]:
    """The difference of a statistic with its paired bootstrap interval; p is twice how often a resample crosses 0."""
    once, counts = np.ones((1, len(a)), dtype=np.int64), _bootstrap_counts(a, sampling)
    observed, resampled = ([statistic(name, outcomes, times) for outcomes in (a, b)] for times in (once, counts))
    found = {}
    for key in observed[0]:
        differences = resampled[0][key] - resampled[1][key]
        crossing = min((differences <= 0).sum(), (differences >= 0).sum())
        p = min(1.0, 2 * (1 + crossing) / (1 + len(differences)))
        value = float(observed[0][key][0] - observed[1][key][0])
        found[key] = Difference(value, interval(differences), len(a), float(p))
    return found


def _of_labels(
    name: str, outcomes: Sequence[Outcome], counts: np.ndarray, statistic: Callable[..., np.ndarray]
) -> dict[str, np.ndarray]:
    """The mean over seeds of a statistic of predicted labels."""
    right = np.array([outcome.facts["label"] for outcome in outcomes], dtype=int)
    by_seed = np.array([outcome.scores for outcome in outcomes], dtype=int).T
    return {name: np.mean([statistic(predicted, right, counts) for predicted in by_seed], axis=0)}


def _label_statistics(name: str) -> list[tuple[str, str, Statistic]]:
    """Name, metric and statistic of every number of a classification task."""
    found = [(name, "accuracy", partial(_of_labels, statistic=label_accuracy))]
    return found + ([(f"{name}_f1", "f1", partial(_of_labels, statistic=label_f1))] if name in WITH_F1 else [])


def measure_labels(name: str, outcomes: Sequence[Outcome], sampling: Sampling) -> dict[str, dict]:
    """Accuracy of a classification task, and F1 where papers report it; rows as `Task.measure` gives them.

    Args:
        name: of the GLUE task.
        outcomes: `scores` are the labels predicted under each seed; `facts` hold the right `label`, and the `majority`
            label of the training data, whose constant prediction is the chance level.
        sampling: how to bootstrap.
    """
    guesses = [replace(outcome, scores=(outcome.facts["majority"],)) for outcome in outcomes]
    once = np.ones((1, len(outcomes)), dtype=np.int64)
    rows = {}
    for key, metric, statistic in _label_statistics(name):
        rows |= _measure(key, outcomes, sampling, statistic, metric)
        rows[key] |= {"chance": float(statistic(key, guesses, once)[key][0]), "ties": 0}
    return rows


def compare_labels(name: str, a: Sequence[Outcome], b: Sequence[Outcome], sampling: Sampling) -> dict[str, Difference]:
    """The differences of two models in what `measure_labels` measures, as `Task.compare` gives them."""
    found = {}
    for key, _, statistic in _label_statistics(name):
        found |= _compare(key, a, b, sampling, statistic)
    return found


def _bootstrap_counts(outcomes: Sequence[Outcome], sampling: Sampling) -> np.ndarray:
    """(R, n): how often each item is in each resample of clusters."""
    generator = np.random.default_rng(sampling.seed)
    names, cluster_of = np.unique([outcome.pair for outcome in outcomes], return_inverse=True)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=sampling.resamples)
    return drawn[:, cluster_of]


def _examples(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Winoground's complete examples, each with its four scores as `winoground.paired` has them."""
    return [
        Outcome("winoground", example, tuple(scores.ravel().tolist()), {})
        for example, scores in winoground.paired(outcomes).items()
    ]


def _measure_winoground(name: str, outcomes: Sequence[Outcome], sampling: Sampling) -> dict[str, dict]:
    """The unpaired accuracy, and the paper's three scores if there are complete examples."""
    rows, examples = _measure_choices(name, outcomes, sampling), _examples(outcomes)
    if not examples:
        return rows
    chance = {f"{name}_text_score": 1 / 4, f"{name}_image_score": 1 / 4, f"{name}_group_score": 1 / 6}
    statistic = partial(_paper_scores, official=sampling.official)
    return rows | _measure(name, examples, sampling, statistic, "accuracy", chance)


def _compare_winoground(
    name: str, a: Sequence[Outcome], b: Sequence[Outcome], sampling: Sampling
) -> dict[str, Difference]:
    rows, examples = _compare_choices(name, a, b, sampling), (_examples(a), _examples(b))
    statistic = partial(_paper_scores, official=sampling.official)
    return rows | _compare(name, *examples, sampling, statistic) if examples[0] else rows


def _asked(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The items about which each group of people was asked, such as `kl_age_4`."""
    asked: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        for group in dict.fromkeys(fact.partition("/")[0] for fact in outcome.facts):
            asked.setdefault(group, []).append(outcome)
    return asked


def _measure_devbench(name: str, outcomes: Sequence[Outcome], sampling: Sampling) -> dict[str, dict]:
    """Accuracy and distance to people of choices, or the similarity of concepts."""
    if outcomes[0].uid == devbench.CONCEPTS:
        return _measure(name, outcomes, sampling, _similarity, "rsa")
    rows = _measure_choices(name, outcomes, sampling, strict=True)
    for group, asked in _asked(outcomes).items():
        key, statistic = f"{name}_{group}", partial(_divergence, group=group)
        blind = [replace(outcome, scores=(0.0,) * len(outcome.scores)) for outcome in asked]
        guessing = statistic(key, blind, np.ones((1, len(blind)), dtype=np.int64))
        rows |= _measure(key, asked, sampling, statistic, "kl", float(guessing[key][0]))
    return rows


def _compare_devbench(
    name: str, a: Sequence[Outcome], b: Sequence[Outcome], sampling: Sampling
) -> dict[str, Difference]:
    if a[0].uid == devbench.CONCEPTS:
        return _compare(name, a, b, sampling, _similarity)
    rows = _compare_choices(name, a, b, sampling, strict=True)
    for (group, asked), other in zip(_asked(a).items(), _asked(b).values(), strict=True):
        rows |= _compare(f"{name}_{group}", asked, other, sampling, partial(_divergence, group=group))
    return rows


_accuracy = {"score": score_choices, "measure": _measure_choices, "compare": _compare_choices}
_by_split = {
    "measure": partial(_measure_choices, group_of=entity_tracking.split_of),
    "compare": partial(_compare_choices, group_of=entity_tracking.split_of),
}
_spearman = {
    "read": wug.read,
    "score": score_choices,
    "measure": partial(_measure, statistic=_correlation, metric="spearman"),
    "compare": partial(_compare, statistic=_correlation),
}

MINIMAL_PAIRS = Task("minimal_pairs", read_pairs, **_accuracy)
BLIMP = Task("blimp", read_pairs, **_accuracy)
SUPPLEMENT = Task("blimp_supplement", read_pairs, **_accuracy)
EWOK = Task("ewok", ewok.read, **_accuracy)
COMPS = Task("comps", comps.read, **_accuracy)
ENTITY_TRACKING = Task("entity_tracking", entity_tracking.read, **_accuracy | _by_split)
WUG_ADJ = Task("wug_adj", **_spearman)
WUG_PAST = Task("wug_past", **_spearman)
READING = Task(
    "reading",
    reading.read,
    reading.surprisals,
    partial(_measure, statistic=_gains, metric="r2_gain"),
    partial(_compare, statistic=_gains),
    reading.SUFFIXES,
    partial(data_files, suffixes=reading.SUFFIXES),
)
VQA = Task("vqa", vqa.read, **_accuracy)
WINOGROUND = Task("winoground", winoground.read, score_choices, _measure_winoground, _compare_winoground)
DEVBENCH = Task(
    "devbench",
    devbench.read,
    devbench.score,
    _measure_devbench,
    _compare_devbench,
    devbench.SUFFIXES,
    devbench.files,
)
AOA = Task(
    "aoa",
    aoa.read,
    aoa.surprisals,
    partial(_measure, statistic=_mean_surprisal, metric="surprisal", chance=None),
    partial(_compare, statistic=_mean_surprisal),
    aoa.SUFFIXES,
    partial(data_files, suffixes=aoa.SUFFIXES),
)

FOLDERS = {
    "blimp_filtered": BLIMP,
    "blimp_fast": BLIMP,
    "supplement_filtered": SUPPLEMENT,
    "supplement_fast": SUPPLEMENT,
    "ewok_filtered": EWOK,
    "ewok_fast": EWOK,
    "entity_tracking": ENTITY_TRACKING,
    "entity_tracking_fast": ENTITY_TRACKING,
    "wug_adj_nominalization": WUG_ADJ,
    "wug_past_tense": WUG_PAST,
    "comps": COMPS,
    "reading": READING,
    "vqa_filtered": VQA,
    "winoground_filtered": WINOGROUND,
    **dict.fromkeys(devbench.SUBSETS, DEVBENCH),
    "cdi_childes": AOA,
    "aoa": AOA,
}
WITH_F1 = ("mrpc", "qqp")
COMPARE = {task.name: task.compare for task in (MINIMAL_PAIRS, *FOLDERS.values())} | {"glue": compare_labels}
# Folders of the official layout that are not measured here.
SKIPPED = {
    "glue_filtered": "GLUE needs fine-tuning; use babylm-vlm finetune",
}
OFFICIAL_DATA = "https://osf.io/ryjfm"
PIPELINE = "https://github.com/babylm/evaluation-pipeline-2025"
SOURCES = {  # of tasks whose files are not all in the official data, or whose pictures are elsewhere
    "ewok": "agree to the terms at https://huggingface.co/datasets/ewok-core/ewok-core-1.0, and make ewok_filtered "
    f"with evaluation_pipeline/ewok/dl_and_filter.py of {PIPELINE}",
    "vqa": f"take vqa_filtered from {OFFICIAL_DATA}",
    "winoground": f"take winoground_filtered from {OFFICIAL_DATA}, and ask for access to its pictures at "
    f"https://huggingface.co/datasets/{winoground.PICTURES}",
    "devbench": f"run evaluation_pipeline/devbench/download_data.sh of {PIPELINE}",
}


def task_of(path: Path) -> Task:
    """The task of a folder, or of a file, known by the name of its folder."""
    folder = path if path.is_dir() else path.parent
    return FOLDERS.get(folder.resolve().name, MINIMAL_PAIRS)


def find_tasks(data: Path | Sequence[Path], names: Sequence[str] | None = None) -> dict[str, Path]:
    """Tasks in a data folder: subfolders that hold benchmark files, or such files, by name.

    Args:
        data: the folder, or several; one that holds benchmark files itself is by default one task, named after it.
            Those of DevBench may also be in its `assets` or `devbench/assets`.
        names: which tasks to take (subfolders, official task names such as `blimp`, or files without their suffix); by
            default all subfolders but those in `SKIPPED`.

    Raises:
        FileNotFoundError: a folder does not exist, or holds no such task.
        ValueError: two folders hold a task of the same name.
    """
    folders = [Path(data)] if isinstance(data, (str, Path)) else [Path(folder) for folder in data]
    known: dict[str, Path] = {}
    for folder in folders:
        found = _tasks_in(folder, by_file=names is not None)
        for name in set(known) & set(found):
            raise ValueError(f"both {known[name]} and {found[name]} hold a task {name}; name one of them.")
        known |= found
    if names is None:
        return known
    chosen = {}
    for name in names:
        matching = [name] if name in known else [key for key, path in known.items() if task_of(path).name == name]
        if not matching:
            there, where = ", ".join(known) or "none", " and ".join(map(str, folders))
            advice = f" To get it, {SOURCES[name]}." if name in SOURCES else ""
            raise FileNotFoundError(f"{where} holds no task {name}; tasks there: {there}.{advice}")
        for key in matching:
            if key in SKIPPED:
                raise ValueError(f"{known[key]} cannot be measured: {SKIPPED[key]}.")
            chosen[key] = known[key]
    return chosen


def _tasks_in(data: Path, by_file: bool) -> dict[str, Path]:
    """All tasks of a data folder; with `by_file`, also the folder itself beside its subfolders, and its files."""
    if not data.exists():
        raise FileNotFoundError(f"the data folder {data} does not exist.")
    if data.is_file():
        return {file_stem(data): data}
    itself = {data.resolve().name: data} if _holds_task(data) else {}
    folders = sorted([*data.iterdir(), *data.glob("assets/*"), *data.glob("devbench/assets/*")])
    inside = {folder.name: folder for folder in folders if _holds_task(folder)}
    if by_file:
        suffixes = task_of(data).suffixes
        files = {file_stem(file): file for file in sorted(data.iterdir()) if file.name.endswith(suffixes)}
        return itself | inside | files
    found = itself or {name: folder for name, folder in inside.items() if name not in SKIPPED}
    if not found:
        raise FileNotFoundError(
            f"neither {data} nor its subfolders hold .jsonl or .jsonl.gz files of a task; of the official data "
            "name evaluation_data/full_eval or evaluation_data/fast_eval."
        )
    return found


def _holds_task(path: Path) -> bool:
    return path.is_dir() and any(file.name.endswith(task_of(path).suffixes) for file in path.iterdir())
