"""The whole path on embedded data: train both twins, merge them over a grid of alpha, score, choose, report.

Every stage is the one its own command runs. Alpha is chosen on the selection split and reported on the test split.
"""

import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from ..evaluation import (
    MinimalPair,
    accuracy,
    difference_interval,
    load_model,
    read_pairs,
    score_pairs,
)
from ..files import check_new_folder
from ..hub.facts import write_merged_card, write_trained_card
from ..merging.linear import merge
from ..merging.plan import MergePlan, linear_plan_yaml, read_plan
from ..merging.plots import plot_curve
from ..merging.sweep import choose_alpha, load_dial, rule_of, score_alphas
from ..training.recipe import read_recipe
from ..training.speed import hardware
from ..training.train import train
from .report import TASKS, print_table, write_report
from .scenes import VISION_TOWER, write_demo_data

HERE = Path(__file__).resolve().parent
ANCESTOR = HERE / "ancestor"
RECIPES = HERE.parent / "recipes"
ALPHAS = [0.0, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 1.0]
ABILITIES = ("grammar", "grounded")  # that α is chosen by
CHANCE = 0.5
KEEP = 0.95
OBJECTIVE = f"keep:{KEEP}"
RULE = rule_of(OBJECTIVE)
# `--quick` shows that every stage runs; its models have hardly learned anything.
QUICK_SCENES, QUICK_PAIRS, QUICK_STEPS, QUICK_ALPHAS = 200, 10, 3, [0.0, 0.5, 1.0]


def run_demo(output_dir: Path, quick: bool = False, seed: int = 0, overwrite: bool = False) -> dict:
    """Train, merge, score, choose and report; returns what `results.json` holds.

    Leaves `data/`, `language/`, `multimodal/`, `merged/`, `results.json`, `alpha_curve.png` and `report.md`.

    Raises:
        FileExistsError: the output folder exists and `overwrite` is off, or it is no earlier demo.
    """
    output_dir = Path(output_dir)
    check_new_folder(output_dir, overwrite, marker="data/captions/metadata.jsonl")
    disable_progress_bar()  # transformers' bars for loading and saving small files; training's stay
    started = time.monotonic()
    for name in ("results.json", "report.md", "alpha_curve.png", "merge.yaml"):
        (output_dir / name).unlink(missing_ok=True)  # of an earlier run: they would not fit what comes now
    folders = {name: output_dir / name for name in ("language", "multimodal", "merged")}

    announce(1, "Draw the pictures")
    data = write_demo_data(output_dir / "data", QUICK_SCENES if quick else None, overwrite)
    announce(2, "Train the language-only twin from the common ancestor")
    shared = {"init_from": str(ANCESTOR), "seed": seed, "text": str(data / "text" / "train.txt.gz")}
    shared |= {"max_steps": QUICK_STEPS} if quick else {}
    recipe = read_recipe(RECIPES / "demo_language.yaml", shared | {"output_dir": str(folders["language"])})
    training = {"language": train(recipe, overwrite)}
    announce(3, "Train the multimodal twin from the common ancestor")
    eyes = {"captions": str(data / "captions"), "vision_tower": str(VISION_TOWER)}
    keys = shared | eyes | {"output_dir": str(folders["multimodal"])}
    recipe = read_recipe(RECIPES / "demo_multimodal.yaml", keys)
    training["multimodal"] = train(recipe, overwrite)
    announce(4, "Merge over a grid of α and score on the selection split")
    selection = read_split(data, "selection", ABILITIES, QUICK_PAIRS if quick else None)
    dial, processor = load_dial(folders["multimodal"], folders["language"])
    points = score_alphas(dial, processor, selection, QUICK_ALPHAS if quick else ALPHAS)
    alpha = choose_alpha(points, OBJECTIVE)
    announce(5, f"Merge at α = {alpha:g} and score the three models on the test split")
    plan_file = output_dir / "merge.yaml"
    plan_file.write_text(linear_plan_yaml(str(folders["multimodal"]), str(folders["language"]), alpha))
    plan = read_plan(plan_file)
    merge(plan, folders["merged"], overwrite)
    test = read_split(data, "test", TASKS, QUICK_PAIRS if quick else None)
    results = {
        "schema_version": 1,
        "quick": quick,
        "seed": seed,
        "rule": RULE,
        "alpha": alpha,
        "selection": [{"alpha": point["alpha"]} | point["tasks"] for point in points],
        "test": compare_on_test(folders, test),
        "training": training,
        "minutes": round((time.monotonic() - started) / 60, 2),
        "hardware": hardware(),
        "versions": {package: version(package) for package in ("babylm-vlm", "torch", "transformers", "mergekit")},
    }
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plot_curve(points, alpha, output_dir / "alpha_curve.png")
    write_cards(folders, plan, results)
    write_report(results, output_dir)
    print_table(results, output_dir)
    return results


def announce(stage: int, what: str) -> None:
    """Head a stage of the run on the screen."""
    Console().rule(f"{stage}/5 {what}", align="left")


def read_split(data: Path, split: str, names: Sequence[str], limit: int | None) -> dict[str, list[MinimalPair]]:
    """These tasks of a split; with a limit, that many rows of each paradigm."""
    tasks = {task: read_pairs(data / split / task) for task in names}
    if limit is None:
        return tasks
    cut = {}
    for task, pairs in tasks.items():
        uids = dict.fromkeys(pair.uid for pair in pairs)
        cut[task] = [pair for uid in uids for pair in [p for p in pairs if p.uid == uid][:limit]]
    return cut


def compare_on_test(folders: dict[str, Path], tasks: dict[str, list[MinimalPair]]) -> dict:
    """The three models on the test split, and their paired differences.

    Returns:
        `{"models": {name: {task: accuracy}}, "differences": {task: {"a - b": difference}}, "grammar_gap_recovered",
        "grounded_gain_kept"}`; the last two are fractions, None where there was no gap or gain.
    """
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, folder in tqdm(folders.items(), desc="scoring the test split", unit="model"):
        model, processor = load_model(folder)
        scores[name] = {task: score_pairs(model, processor, pairs, progress=False) for task, pairs in tasks.items()}
    measured = {
        name: {task: accuracy(scores[name][task], tasks[task]).to_dict() for task in TASKS} for name in folders
    }
    differences = {
        task: {
            f"{a} - {b}": difference_interval(scores[a][task], scores[b][task], tasks[task]).to_dict()
            for a, b in (("language", "multimodal"), ("merged", "multimodal"), ("merged", "language"))
        }
        for task in TASKS
    }

    def value(name: str, task: str) -> float:
        return measured[name][task]["accuracy"]

    gap = value("language", "grammar") - value("multimodal", "grammar")
    recovered = value("merged", "grammar") - value("multimodal", "grammar")
    gain = value("multimodal", "grounded") - CHANCE
    return {
        "models": measured,
        "differences": differences,
        "grammar_gap_recovered": recovered / gap if gap > 0 else None,
        "grounded_gain_kept": (value("merged", "grounded") - CHANCE) / gain if gain > 0 else None,
    }


def write_cards(folders: dict[str, Path], plan: MergePlan, results: dict) -> None:
    """Put the test results on the cards of the three models."""
    without = ", the captions without the pictures"
    rows = {
        name: [
            {"task": f"{task} minimal pairs (demo{without if name == 'language' and task != 'grammar' else ''})"}
            | {"split": "test"}
            | {key: measured[key] for key in ("accuracy", "interval", "chance", "items")}
            for task, measured in results["test"]["models"][name].items()
        ]
        for name in folders
    }
    write_trained_card(folders["language"], rows["language"])
    write_trained_card(folders["multimodal"], rows["multimodal"])
    write_merged_card(folders["merged"], plan, RULE, rows["merged"])
