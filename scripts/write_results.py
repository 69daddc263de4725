"""Write docs/results.md, and the figures of README.md and docs/training.md, from JSON files in docs/results/ alone.

    python scripts/write_results.py --demo runs/demo-seed0 runs/demo-seed1 runs/demo-seed2   # take these runs over
    python scripts/write_results.py                                                          # write the page again
    python scripts/write_results.py --other runs/other
    python scripts/write_results.py --study runs/study-small

--demo takes folders that `babylm-vlm demo` left: their results.json go to docs/results/, from which the page is
written. --other takes a folder with the results of `babylm-vlm evaluate` for a demo's models, in language/, merged/
and multimodal/. --study takes a run of scripts/reproduce.sh: its study.json goes to docs/results/, its plots to docs/.
Benchmarks write theirs: `python benchmarks/merge.py --json docs/results/merge_benchmark.json`, and those of
interpolation and training likewise. What stands in README.md and docs/training.md between
`<!-- NAME: scripts/write_results.py -->` and `<!-- /NAME -->` is written here.
"""

import argparse
import json
import shutil
from pathlib import Path

from figures import DOCS, FIGURES, RESULTS, filled, read
from study_plots import draw
from study_report import PUBLISHED, section, table

from babylm_vlm.demo.report import NAMES, TASKS, percent, points, share
from babylm_vlm.hub.push import fit_to_be_seen

TRIED = """\
What moved the trade-off while the recipe was tuned, on the selection split and mostly with one seed (test pairs were
drawn anew before the last round; earlier draws had been seen). The numbers of these runs were not kept:

- Word embeddings trained at the decoder's rate drift far and carry most of the loss of grammar; left as they are, more
  of it comes back at every α. Text mixed into the captions keeps the gap small; without any, little comes back.
- What merging keeps is what was learned with room to spare. Naming, counts and colours survive α well below one;
  left and right, above and below, where a longer training had just learned them, are the first to go.
- With several times as many captions of relations, told of fewer things, four epochs do teach them. They then fade
  first. So relations are a test of their own here, and α is chosen without them: at chance as they are, they would
  only add noise to what is kept.
- Visual tokens that carry a learned embedding of their cell of the grid did not teach relations either.
- A larger learning rate taught relations less well; a twin trained on captions alone forgot too much.
"""


def spread(values: list[float]) -> str:
    """`71.3 (70.9 to 71.8)`: mean and range of fractions, in percent."""
    mean = sum(values) / len(values)
    return f"{100 * mean:.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def demo_section(runs: list[dict]) -> list[str]:
    """Three models, both abilities, every seed; then the mean over seeds."""
    seeds = ", ".join(str(run["seed"]) for run in runs)
    state = runs[0]["training"]
    versions = ", ".join(f"{package} {number}" for package, number in runs[0]["versions"].items())
    lines = [
        "## The demo",
        "",
        f"`babylm-vlm demo` under seeds {seeds}, on {runs[0]['hardware']}, with {versions}; "
        f"{', '.join(str(run['minutes']) for run in runs)} minutes each. Both twins start from the ancestor in the "
        f"package; the language-only one reads {state['language']['words_seen']:,} words of text, the multimodal one "
        f"{state['multimodal']['words_seen']:,} words of captions and text, mixed. Test split, accuracy in % with "
        "95 % bootstrap intervals over items; chance is 50. Grounded pairs are mirrored: text alone is at exactly 50.",
        "",
        "![Both abilities against alpha](alpha_curve.png)",
        "",
        f"*Seed {runs[0]['seed']}, selection split.*",
        "",
    ]
    rows = []
    for run in runs:
        for name in NAMES:
            label = f"merged, α = {run['alpha']:g}" if name == "merged" else name
            measured = run["test"]["models"][name]
            rows.append([str(run["seed"]), label, *(percent(measured[task]) for task in TASKS)])
    lines += table(["seed", "model", *TASKS], rows)
    lines += ["", "Paired differences in points, and what they amount to:", ""]
    rows = []
    for run in runs:
        test = run["test"]
        rows.append(
            [
                str(run["seed"]),
                points(test["differences"]["grammar"]["language - multimodal"]),
                points(test["differences"]["grammar"]["merged - multimodal"]),
                share(test["grammar_gap_recovered"]),
                points(test["differences"]["grounded"]["merged - multimodal"]),
                share(test["grounded_gain_kept"]),
            ]
        )
    mean = {
        key: sum(run["test"][key] for run in runs) / len(runs)
        for key in ("grammar_gap_recovered", "grounded_gain_kept")
    }
    rows.append(["mean", "", "", share(mean["grammar_gap_recovered"]), "", share(mean["grounded_gain_kept"])])
    header = ["seed", "grammar: language − multimodal", "grammar: merged − multimodal", "gap recovered"]
    lines += table([*header, "grounded: merged − multimodal", "gain over chance kept"], rows)
    lines += ["", f"α: {runs[0]['rule']}", "", "Mean over seeds, with the smallest and the largest:", ""]
    rows = []
    for name in NAMES:
        tests = [run["test"]["models"][name] for run in runs]
        rows.append([name] + [spread([t[task]["accuracy"] for t in tests]) for task in TASKS])
    lines += table(["model", *TASKS], rows)
    lines += ["", "### Paradigms, mean over seeds", ""]
    rows = []
    for task in TASKS:
        for uid, row in runs[0]["test"]["models"]["merged"][task]["paradigms"].items():
            cells = [f"{task}: {uid}", str(row["items"])]
            for name in NAMES:
                values = [run["test"]["models"][name][task]["paradigms"][uid]["accuracy"] for run in runs]
                cells.append(f"{100 * sum(values) / len(values):.1f}")
            rows.append(cells)
    lines += table(["paradigm", "items", *NAMES], rows)
    note = "Relations near 50 in the multimodal column: this short training does not teach them."
    return [*lines, "", note, "", "### What was tried", "", *TRIED.splitlines(), ""]


def other_section(results: dict[str, dict]) -> list[str]:
    """A demo's models on tests that have nothing to do with its pictures."""
    lines = [
        "## The demo's models on other pictures",
        "",
        "Seed 0, zero-shot, accuracy in % with 95 % bootstrap intervals. Abstract Scenes (Nikolaus and Fourtassi "
        "2021) are drawings of two children; DevBench's visual vocabulary (Tan et al. 2024) asks which of four "
        "pictures a word names. These models have seen 44 drawn things and coloured shapes, and know nothing else.",
        "",
    ]
    rows = []
    for name, task in results["merged"]["tasks"].items():
        if task["metric"] == "accuracy":
            rows.append([name, str(task["items"]), f"{100 * task['chance']:.0f}"])
            for run in results.values():
                measured = run["tasks"][name]
                rows[-1].append(percent(measured | {"accuracy": measured["value"]}))
    return [*lines, *table(["test", "items", "chance", *results], rows), ""]


def commit(results: Path, place: Path) -> None:
    """Copy results to docs/, with no paths of this disk."""
    shown = fit_to_be_seen("results.json", results)
    shown = shown if isinstance(shown, bytes) else shown.read_bytes()
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(json.loads(shown), separators=(",", ":")) + "\n", encoding="utf-8")


def take_over(folders: list[Path]) -> None:
    """Put the results of demo runs, and the first one's plot, in docs/ in place of those that are there."""
    runs = [read(folder / "results.json") for folder in folders]
    if any(run["quick"] for run in runs):
        raise SystemExit("A --quick run has no numbers worth reporting.")
    for place in RESULTS.glob("demo-seed*.json"):
        place.unlink()
    for folder, run in zip(folders, runs, strict=True):
        commit(folder / "results.json", RESULTS / f"demo-seed{run['seed']}.json")
    shutil.copyfile(folders[0] / "alpha_curve.png", DOCS / "alpha_curve.png")


def take_over_study(folder: Path) -> None:
    """Put the numbers and plots of a study into docs/, in place of those of its size."""
    study = read(folder / "study.json")
    if study["size"] == "tiny":
        raise SystemExit("A tiny study has no numbers worth reporting.")
    commit(folder / "study.json", RESULTS / f"study-{study['size']}.json")
    draw(study, DOCS)


def page() -> str:
    """The page."""
    runs = sorted((read(path) for path in RESULTS.glob("demo-seed*.json")), key=lambda run: run["seed"])
    header = "Written by `scripts/write_results.py` from `docs/results/`."
    other = {name: read(path) for name in NAMES if (path := RESULTS / f"other-{name}.json").is_file()}
    studies = []
    for study in map(read, sorted(RESULTS.glob("study-*.json"))):
        studies += section(study, read(PUBLISHED), f"## The study, {study['size']}")
    sections = [*studies, *demo_section(runs), *(other_section(other) if other else [])]
    return "\n".join(["# Results", "", header, "", *sections]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, nargs="+")
    parser.add_argument("--other", type=Path)
    parser.add_argument("--study", type=Path)
    options = parser.parse_args()
    if options.demo:
        take_over(options.demo)
    if options.other:
        for name in NAMES:
            commit(options.other / name / "results.json", RESULTS / f"other-{name}.json")
    if options.study:
        take_over_study(options.study)
    (DOCS / "results.md").write_text(page(), encoding="utf-8")
    for path in FIGURES:
        path.write_text(filled(path), encoding="utf-8")


if __name__ == "__main__":
    main()
