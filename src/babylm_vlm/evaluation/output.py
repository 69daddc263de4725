"""What an evaluation leaves in its folder.

results.json             one row per number: value, 95 % interval, chance level, items, ties, failures
paradigms.csv            the same for every paradigm
items/TASK.jsonl.gz      scores of every item: what paired comparisons need, and what a repeated run takes up again
predictions/             if asked for: the official pipeline's tree and collated file (predictions.py)
"""

import csv
import gzip
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .tasks import Outcome

RESULTS_FILE = "results.json"
SHOWN = {  # of each metric: its name in tables, factor, and decimals
    "accuracy": ("accuracy %", 100, 1),
    "spearman": ("Spearman's ρ", 1, 3),
    "r2_gain": ("ΔR² %", 1, 2),
    "kl": ("KL to people, nats", 1, 3),
    "rsa": ("RSA, Spearman's ρ", 1, 3),
    "surprisal": ("surprisal, nats", 1, 2),  # lower is better
    "f1": ("F1 %", 100, 1),
}


def check_results_folder(output_dir: Path, overwrite: bool = False) -> None:
    """Raise FileExistsError if `write_results` would: call it before an hour of scoring, not after.

    Raises:
        FileExistsError: there are results already and they are not to be replaced, or `output_dir` is a file.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is a file; name a folder for the results.")
    if (output_dir / RESULTS_FILE).exists() and not overwrite:
        raise FileExistsError(
            f"{output_dir / RESULTS_FILE} exists; choose another folder, or pass --overwrite (scores of the "
            "same model, data and rule are kept)."
        )


def write_results(results: dict, output_dir: Path, overwrite: bool = False) -> Path:
    """Write `results.json` and `paradigms.csv` into a folder, and return the path of the first.

    Raises:
        FileExistsError: as `check_results_folder`.
    """
    check_results_folder(output_dir, overwrite)
    columns = ("task", "paradigm", "metric", "value", "low", "high", "items", "ties", "nonfinite")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    for task, row in results["tasks"].items():
        for uid, part in {"": row, **row["paradigms"]}.items():
            counts = (part["items"], part["ties"], part["nonfinite"])
            writer.writerow([task, uid, row["metric"], part["value"], *part["interval"], *counts])
    write_whole(Path(output_dir) / "paradigms.csv", table.getvalue().encode())
    path = Path(output_dir) / RESULTS_FILE
    write_whole(path, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all; an earlier one is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.incomplete")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def items_file(output_dir: Path, task: str) -> Path:
    """Where the outcomes of a task are."""
    return Path(output_dir) / "items" / f"{task}.jsonl.gz"


def write_items(path: Path, measured: dict, outcomes: Sequence[Outcome]) -> None:
    """Write outcomes, a JSON object a line, below a line that says what was measured.

    What is not finite is the text "nan", "inf" or "-inf".
    """
    lines = [measured]
    for outcome in outcomes:
        facts = dict(zip(outcome.facts, _plain(outcome.facts.values()), strict=True))
        line = {"uid": outcome.uid, "pair": outcome.pair, "scores": _plain(outcome.scores)}
        lines.append(line | ({"facts": facts} if facts else {}))
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_whole(path, gzip.compress(text.encode(), compresslevel=6, mtime=0))


def read_items(path: Path) -> tuple[dict, list[Outcome]]:
    """What `write_items` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no file of outcomes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no outcomes {path}; evaluate the model into that folder first.")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            measured, *rows = [json.loads(line) for line in file]
        outcomes = [
            Outcome(
                row["uid"],
                row["pair"],
                tuple(map(float, row["scores"])),
                {name: float(value) for name, value in row.get("facts", {}).items()},
            )
            for row in rows
        ]
    except (EOFError, gzip.BadGzipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no outcomes that can be read; remove it and evaluate again.") from error
    return measured, outcomes


def _plain(numbers: Iterable[float]) -> list[float | str]:
    return [number if math.isfinite(number) else str(number) for number in numbers]


def print_results(results: dict, console: Console | None = None) -> None:
    """Print one row per number."""
    rule = ", official rule" if results["official"] else ""
    table = Table(title=results["model"]["name"] + rule)
    table.add_column("task", overflow="fold")  # names give way in a narrow terminal, numbers never
    table.add_column("metric", overflow="fold")
    for column in ("value", "95 % interval", "chance", "items", "ties"):
        table.add_column(column, justify="right", no_wrap=True)
    for task, row in results["tasks"].items():
        shown, percent, digits = SHOWN[row["metric"]]
        numbers = (*row["interval"], row["value"])
        low, high, value = (f"{percent * number:.{digits}f}" for number in numbers)
        chance = "–" if row["chance"] is None else f"{percent * row['chance']:.{digits}f}"
        table.add_row(task, shown, value, f"{low} to {high}", chance, str(row["items"]), str(row["ties"]))
    console = console or Console()
    console.print(table)
    treatment = "official rule" if results["official"] else "none of them counts as right"
    for task, row in results["tasks"].items():
        if row["nonfinite"]:
            console.print(f"{task}: {row['nonfinite']} items have scores that are not finite ({treatment}).")
    blind = [task for task, row in results["tasks"].items() if row["pictures"] and not row["pictures_used"]]
    if blind:
        console.print(f"Pictures were not used, as this model takes none, for {', '.join(blind)}.", markup=False)
    for note in results["predictions"]:
        console.print(note, markup=False)


def print_comparison(comparison: dict, console: Console | None = None) -> None:
    """Print one row per number that two evaluations share."""
    table = Table(title=f"{comparison['a']} − {comparison['b']}")
    table.add_column("task", overflow="fold")
    for column in ("A", "B", "difference", "95 % interval", "p", "items"):
        table.add_column(column, justify="right", no_wrap=True)
    for task, row in comparison["tasks"].items():
        _, percent, digits = SHOWN[row["metric"]]
        a, b, difference, low, high = (
            f"{percent * x:.{digits}f}" for x in (row["a"], row["b"], row["difference"], *row["interval"])
        )
        table.add_row(task, a, b, difference, f"{low} to {high}", f"{row['p_value']:.2g}", str(row["items"]))
    console = console or Console()
    console.print(table)
    for note in comparison["not_compared"]:
        console.print(note, markup=False)
