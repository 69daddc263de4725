"""The alpha curve: both abilities against the weight of the multimodal model."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"grammar": "#1b6ca8", "grounded": "#d1495b"}
LABELS = {"grammar": "grammar (text minimal pairs)", "grounded": "grounded (picture and caption pairs)"}


def plot_alpha_curve(curve: list[dict], alpha: float, chance: float, path: Path) -> None:
    """Draw accuracy with 95 % bands against alpha, the chance line and the chosen alpha.

    Args:
        curve: `{"alpha": float, task: {"accuracy", "interval"}}` in order of alpha.
        alpha: the chosen one.
        chance: accuracy of guessing, a fraction.
        path: of the PNG.
    """
    figure, axes = plt.subplots(figsize=(7, 4.3), dpi=150)
    alphas = [point["alpha"] for point in curve]
    for task, colour in COLOURS.items():
        accuracy = [100 * point[task]["accuracy"] for point in curve]
        low, high = zip(*([100 * bound for bound in point[task]["interval"]] for point in curve), strict=True)
        axes.plot(alphas, accuracy, color=colour, marker="o", markersize=4, label=LABELS[task])
        axes.fill_between(alphas, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.axhline(100 * chance, color="0.4", linestyle=":", linewidth=1.2, label="chance")
    axes.axvline(alpha, color="0.2", linestyle="--", linewidth=1, label=f"chosen α = {alpha:g}")
    axes.set_xlabel("α, the weight of the multimodal model   (0 = language-only, 1 = multimodal)")
    axes.set_ylabel("accuracy (%)")
    axes.set_xlim(0, 1)
    axes.set_title("Merging a multimodal and a language-only BabyLM (selection split, 95 % bands)", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="best")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
