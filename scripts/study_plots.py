"""The study in plots, from the numbers of `study.json`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GRAMMAR, GROUNDED, GREY = "#1b6ca8", "#d1495b", "0.5"
NAMES = {
    "ancestor": "ancestor",
    "language": "language-only twin",
    "caption_language": "captions' words without pictures",
    "text_captions": "multimodal: text → captions",
    "captions_text": "multimodal: captions → text",
    "mixed": "multimodal: mixed (replay)",
    "lora": "multimodal: LoRA",
    "independent": "language-only, independent seed",
    "merged text_captions": "merged: text → captions",
    "merged captions_text": "merged: captions → text",
    "merged mixed": "merged: mixed",
    "merged independent_seed": "merged: independent seed",
    "merged lora": "LoRA dial",
    "ensemble": "ensemble of both",
    "layers": "merged: several α",
    "slerp": "slerp",
    "ties": "TIES",
    "task_arithmetic": "task arithmetic",
}


def draw(study: dict, folder: Path) -> None:
    """The plots, as PNG files."""
    plots = {"alpha": draw_alpha, "trade": draw_trade, "phenomena": draw_phenomena, "milestones": draw_milestones}
    for name, plot in plots.items():
        figure, axes = plt.subplots(figsize=(7, 4.6), dpi=130)
        plot(study, axes)
        axes.grid(alpha=0.25)
        figure.tight_layout()
        figure.savefig(folder / f"study-{study['size']}-{name}.png")
        plt.close(figure)


def bars(measured: list[dict]) -> tuple[list[float], list[list[float]]]:
    """Accuracies or differences in percent, and the distances to both ends of their intervals, for matplotlib."""
    values = [100 * row.get("accuracy", row.get("difference")) for row in measured]
    ends = [[100 * end for end in row["interval"]] for row in measured]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    return values, [below, above]


def draw_alpha(study: dict, axes: plt.Axes) -> None:
    curve = study["curves"]["text_captions"]
    steps = [float(point["name"]) for point in curve]
    for ability, colour in (("grammar", GRAMMAR), ("grounded", GROUNDED)):
        values, (below, above) = bars([point["test"][ability] for point in curve])
        axes.plot(steps, values, color=colour, marker="o", markersize=4, label=ability)
        low, high = ([v + s * e for v, e in zip(values, ends, strict=True)] for s, ends in ((-1, below), (1, above)))
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    language = 100 * study["table"]["language"]["grammar"]["accuracy"]
    axes.axhline(language, color=GRAMMAR, linestyle="--", linewidth=1, label="grammar of the language-only twin")
    axes.axhline(50, color=GREY, linestyle=":", linewidth=1.2, label="chance")
    chosen = study["chosen"]["text_captions"]
    axes.axvline(float(chosen), color="0.2", linestyle="--", linewidth=1, label=f"α = {chosen}, chosen on selection")
    axes.set(xlabel="α, the weight of the multimodal twin", ylabel="accuracy (%), test half", xlim=(0, 1))
    axes.legend(fontsize=8)


def draw_trade(study: dict, axes: plt.Axes) -> None:
    styles = {
        "text_captions": (GRAMMAR, "merges: text → captions"),
        "captions_text": ("#2a9d8f", "merges: captions → text"),
        "mixed": ("#e9a23b", "merges: mixed"),
        "independent_seed": (GREY, "merges with an independent seed"),
        "lora": ("#8e5ea2", "LoRA dial"),
        "ensemble": (GROUNDED, "ensemble"),
    }
    for name, (colour, label) in styles.items():
        x, y = (bars([p["test"][ability] for p in study["curves"][name]])[0] for ability in ("grounded", "grammar"))
        axes.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1, label=label)
        axes.plot(x[-1:], y[-1:], color=colour, marker="s", markersize=7)
    for method, marker in (("layers", "^"), ("slerp", "x"), ("ties", "+"), ("task_arithmetic", "*")):
        tests = [point["test"] for point in study["curves"][method][:-1]]
        x, y = (bars([test[ability] for test in tests])[0] for ability in ("grounded", "grammar"))
        axes.scatter(x, y, marker=marker, color="0.15", s=36, label=NAMES[method], zorder=3)
    axes.axvline(50, color=GREY, linestyle=":", linewidth=1.2)
    axes.set(xlabel="grounding (%), test half; squares: α = 1", ylabel="grammar (%), test half")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def draw_phenomena(study: dict, axes: plt.Axes) -> None:
    terms = sorted(study["phenomena"], key=lambda term: study["phenomena"][term]["lost"]["difference"], reverse=True)
    kinds = (
        ("lost", GROUNDED, "multimodal − language-only", 0.15),
        ("recovered", GRAMMAR, "merged − multimodal", -0.15),
    )
    for key, colour, label, shift in kinds:
        values, ends = bars([study["phenomena"][term][key] for term in terms])
        places = [i + shift for i in range(len(terms))]
        axes.errorbar(values, places, xerr=ends, color=colour, fmt="o", markersize=4, linewidth=1.2, label=label)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(terms)), terms)
    axes.set(xlabel="difference in accuracy (points), 95 % intervals, test half")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def draw_milestones(study: dict, axes: plt.Axes) -> None:
    words = [row["words"] for row in study["milestones"]]
    for kind, line, shift in (("multimodal", "--", 0.99), ("merged", "-", 1.01)):
        for ability, colour in (("grammar", GRAMMAR), ("grounded", GROUNDED)):
            values, ends = bars([row[kind][ability] for row in study["milestones"]])
            style = {"color": colour, "linestyle": line, "marker": "o", "markersize": 4, "capsize": 2}
            places = [shift * number for number in words]  # a little apart
            axes.errorbar(places, values, yerr=ends, label=f"{ability}, {kind}", **style)
    axes.axhline(50, color=GREY, linestyle=":", linewidth=1.2)
    axes.set(xlabel="words of captions read", ylabel="accuracy (%), test half")
    axes.set_xscale("log")
    axes.set_xticks(words, [f"{number:,}" for number in words])
    axes.set_xticks([], minor=True)
    # handles so long that dashes can be told from lines
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, handlelength=4)
