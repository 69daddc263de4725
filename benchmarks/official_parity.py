"""Does `--official` give the official pipeline's choices and scores, item by item?

    git clone https://github.com/babylm/evaluation-pipeline-2025 pipeline
    pip install statsmodels wandb nlopt
    python benchmarks/official_parity.py pipeline evaluation_data/full_eval CHECKPOINT [--limit 50] [--tasks comps,…]

Runs the unmodified pipeline and `babylm-vlm evaluate --predictions` on the same files (plain or .gz) and the same fp32
checkpoint, and compares every prediction and every printed score. Exit code 1 if any differs.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

from official_pipeline import copy_data, fp32_copy, official_values, predictions, run_official, run_ours

from babylm_vlm.evaluation.tasks import FOLDERS

NUMBERS = ("prob", "pred", "prev_pred")  # fields of a prediction that may be numbers


def compare(official: dict, ours: dict) -> tuple[int, list[str], float]:
    """Number of items, ids of those that differ (in text, or by more than 1e-3 in a number), largest difference."""
    if {key: len(value["predictions"]) for key, value in official.items()} != {
        key: len(value["predictions"]) for key, value in ours.items()
    }:
        raise SystemExit("The two have different subsets or numbers of items.")
    items, differing, largest = 0, [], 0.0
    for subset, rows in official.items():
        for theirs, our in zip(rows["predictions"], ours[subset]["predictions"], strict=True):
            items += 1
            same = theirs["id"] == our["id"]
            for field in NUMBERS:
                a, b = theirs.get(field), our.get(field)
                if isinstance(a, float) and isinstance(b, float):
                    gap = 0.0 if math.isnan(a) and math.isnan(b) else abs(a - b)
                    largest = max(largest, gap)
                    same &= gap <= 1e-3
                else:
                    same &= a == b
            if not same:
                differing.append(str(our["id"]))
    return items, differing, largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path, help="clone of the official pipeline")
    parser.add_argument("data", type=Path, help="evaluation_data/full_eval or fast_eval")
    parser.add_argument("model", type=Path, help="folder of a language-only checkpoint")
    parser.add_argument("--limit", type=int, help="items of each file; default: all")
    parser.add_argument("--tasks", help="folders, with commas; default: all that are there")
    options = parser.parse_args()
    there = [name for name in FOLDERS if (options.data / name).is_dir()]
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        model = fp32_copy(options.model, Path(scratch, "model"))
        print(f"{'folder':26}{'items':>8}{'different':>11}{'largest gap':>13}   scores: official, ours", flush=True)
        for name in options.tasks.split(",") if options.tasks else there:
            data = Path(scratch, "data", name)
            copy_data(options.data / name, data, options.limit)
            theirs = run_official(options.pipeline, model, data, Path(scratch, "official"))
            run_ours(model, data, Path(scratch, "ours", name))
            ours = Path(scratch, "ours", name)
            rows = json.loads((ours / "results.json").read_text())["tasks"]
            items, differing, largest = compare(
                predictions(Path(scratch, "official"), name), predictions(ours / "predictions", name)
            )
            values = official_values(name, theirs.output)
            factors = {key: 100 if rows[key]["metric"] == "accuracy" else 1 for key in values}
            printed = {key: round(factors[key] * rows[key]["value"], 2) for key in values}
            shown = ", ".join(f"{values[key]:.2f} {printed[key]:.2f}" for key in values)
            print(f"{name:26}{items:8}{len(differing):11}{largest:13.1e}   {shown}", flush=True)
            if differing:
                print(f"  different: {', '.join(differing[:10])}", flush=True)
            failed |= bool(differing) or any(abs(values[key] - printed[key]) > 0.011 for key in values)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
