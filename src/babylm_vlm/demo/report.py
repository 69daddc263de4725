"""What the demo found, in words and numbers: `report.md` and the table on the screen."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

TASKS = ("grammar", "grounded", "relations")
NAMES = {"language": "language-only", "merged": "merged", "multimodal": "multimodal"}


def percent(measured: dict) -> str:
    """`71.3 [69.0, 73.5]`: accuracy and its 95 % interval, in percent."""
    low, high = measured["interval"]
    return f"{100 * measured['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def points(difference: dict) -> str:
    """`+8.1 [+6.0, +10.2]`: a difference of accuracies and its 95 % interval, in points."""
    low, high = difference["interval"]
    return f"{100 * difference['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def share(fraction: float | None) -> str:
    """A fraction in percent; a dash where there is none."""
    return "–" if fraction is None else f"{100 * fraction:.0f} %"


def model_name(name: str, alpha: float) -> str:
    """A model's name in tables; the merged one with its alpha."""
    return f"merged (α = {alpha:g})" if name == "merged" else NAMES[name]


def print_table(results: dict, output_dir: Path) -> None:
    """Print the three models on the test split and the next commands to try."""
    table = Table(title="Test split: accuracy in % with 95 % interval (chance 50)")
    for column in ("model", *TASKS):
        table.add_column(column)
    for name in NAMES:
        measured = results["test"]["models"][name]
        table.add_row(model_name(name, results["alpha"]), *(percent(measured[task]) for task in TASKS))
    console = Console()
    console.print(table)
    console.print(
        f"Grammar gap recovered: {share(results['test']['grammar_gap_recovered'])}. "
        f"Grounded gain kept: {share(results['test']['grounded_gain_kept'])}."
    )
    console.print(f"{results['minutes']} minutes on {results['hardware']}. Read {output_dir / 'report.md'}, then try:")
    picture = sorted((output_dir / "data" / "test" / "grounded").glob("*.png"))[0]
    for command in (
        f"babylm-vlm caption {output_dir / 'merged'} {picture}",
        f"babylm-vlm evaluate {output_dir / 'merged'} --data {output_dir / 'data' / 'test'} --output-dir runs/scores",
        f"babylm-vlm merge {output_dir / 'merge.yaml'} --output-dir runs/merged",
    ):
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def write_report(results: dict, output_dir: Path) -> None:
    """Write `report.md` from the results alone."""
    test = results["test"]
    grammar, grounded = (test["differences"][task] for task in ("grammar", "grounded"))
    lines = ["# Train, merge, measure: the demo's report", ""]
    if results["quick"]:
        lines += ["**A quick run: it shows that every stage works. Its numbers mean nothing.**", ""]
    lines += [
        f"Seed {results['seed']}, {results['minutes']} minutes on {results['hardware']}. "
        f"α = {results['alpha']:g} was chosen on the selection split; what follows is the test split.",
        "",
        "![Both abilities against alpha](alpha_curve.png)",
        "",
        "| model | grammar, % | grounded, % | relations, % |",
        "|---|---|---|---|",
    ]
    for name in NAMES:
        measured = test["models"][name]
        cells = (model_name(name, results["alpha"]), *(percent(measured[task]) for task in TASKS))
        lines.append(f"| {' | '.join(cells)} |")
    items = {task: test["models"]["merged"][task]["items"] for task in TASKS}
    lines += [
        "",
        f"Accuracy with 95 % bootstrap intervals; chance is 50 %. {items['grammar']} grammar pairs, macro average "
        f"over paradigms; {items['grounded']} grounded pairs (things, counts, colours) and {items['relations']} pairs "
        "of relations (left and right, above and below), mirrored, so that text alone is at exactly 50 %. The "
        "language-only model reads the captions without the pictures. Relations take longer to learn than the demo "
        "lasts; α is chosen by the other two tests.",
        "",
        f"- Grammar, language-only minus multimodal: {points(grammar['language - multimodal'])} points.",
        f"- Grammar, merged minus multimodal: {points(grammar['merged - multimodal'])} points: "
        f"{share(test['grammar_gap_recovered'])} of the gap recovered.",
        f"- Grounded, merged minus multimodal: {points(grounded['merged - multimodal'])} points: "
        f"{share(test['grounded_gain_kept'])} of the gain over chance kept.",
        "",
        f"How α was chosen: {results['rule']}",
        "",
        "## α on the selection split",
        "",
        "| α | grammar, % | grounded, % |",
        "|---|---|---|",
    ]
    lines += [f"| {p['alpha']:g} | {percent(p['grammar'])} | {percent(p['grounded'])} |" for p in results["selection"]]
    lines += [
        "",
        "At α = 0 the language-only decoder stands behind the multimodal model's projector and is shown pictures.",
    ]
    lines += ["", "## Paradigms on the test split, %", ""]
    lines += ["| paradigm | items | language-only | merged | multimodal |", "|---|---|---|---|---|"]
    for task in TASKS:
        paradigms = {name: test["models"][name][task]["paradigms"] for name in NAMES}
        for uid, row in paradigms["merged"].items():
            cells = [f"{100 * paradigms[name][uid]['accuracy']:.1f}" for name in NAMES]
            lines.append(f"| {task}: {uid} | {row['items']} | {' | '.join(cells)} |")
    lines += ["", "## Training", ""]
    for name, state in results["training"].items():
        lines.append(
            f"- {name}: {state['words_seen']:,} words in {state['steps']} steps, "
            f"final loss {state['final_loss']:.2f}, {state['minutes']} minutes, {state['precision']}."
        )
    versions = ", ".join(f"{package} {number}" for package, number in results["versions"].items())
    lines += ["", f"Versions: {versions}.", ""]
    (output_dir / "report.md").write_text("\n".join(lines), encoding="utf-8")
