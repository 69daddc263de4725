"""Plots of a sweep and of a diagnosis."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GRAMMAR, GROUNDED, GREY = "#1b6ca8", "#d1495b", "0.4"
COLOURS = {"grammar": GRAMMAR, "grounded": GROUNDED}
LABELS = {"grammar": "grammar (text minimal pairs)", "grounded": "grounded (picture and caption pairs)"}
ALPHA_LABEL = "α, the weight of the multimodal model   (0 = language-only, 1 = multimodal)"


def plot_curve(curve: Sequence[dict], alpha: float, path: Path) -> None:
    """Draw both abilities with 95 % bands against alpha, the chance line and the chosen alpha.

    Args:
        curve: `{"alpha", "grammar": {"accuracy", "interval", "chance"}, "grounded": ...}`, by ascending alpha.
        alpha: the chosen one.
        path: of the PNG.
    """
    figure, axes = plt.subplots(figsize=(7, 4.3), dpi=150)
    alphas = [point["alpha"] for point in curve]
    for ability, colour in COLOURS.items():
        low, high = zip(*(_percent(*point[ability]["interval"]) for point in curve), strict=True)
        accuracy = _percent(*(point[ability]["accuracy"] for point in curve))
        axes.plot(alphas, accuracy, color=colour, marker="o", markersize=4, label=LABELS[ability])
        axes.fill_between(alphas, low, high, color=colour, alpha=0.18, linewidth=0)
    chance = 100 * curve[0]["grounded"]["chance"]
    axes.axhline(chance, color=GREY, linestyle=":", linewidth=1.2, label="chance")
    axes.set_ylim(bottom=min(chance - 2, axes.get_ylim()[0]))
    axes.axvline(alpha, color="0.2", linestyle="--", linewidth=1, label=f"chosen α = {alpha:g}")
    axes.set_xlabel(ALPHA_LABEL)
    axes.set_ylabel("accuracy (%)")
    axes.set_xlim(0, 1)
    axes.set_title("Merging a multimodal and a language-only BabyLM (selection split, 95 % bands)", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8, loc="best")
    _save(figure, path)


def plot_pareto(curve: Sequence[dict], alpha: float, path: Path) -> None:
    """Draw grammar against grounding, a point for every alpha, with 95 % intervals as thin lines.

    Arguments as in `plot_curve`.
    """
    figure, axes = plt.subplots(figsize=(6.4, 5.2), dpi=150)
    x, y = (_percent(*(point[ability]["accuracy"] for point in curve)) for ability in ("grounded", "grammar"))
    for point, across, up in zip(curve, x, y, strict=True):
        axes.plot(_percent(*point["grounded"]["interval"]), [up, up], color="0.75", linewidth=0.8, zorder=1)
        axes.plot([across, across], _percent(*point["grammar"]["interval"]), color="0.75", linewidth=0.8, zorder=1)
    axes.plot(x, y, color="0.5", linewidth=1, zorder=2)
    dots = axes.scatter(x, y, c=[point["alpha"] for point in curve], cmap="viridis", vmin=0, vmax=1, s=34, zorder=3)
    label = {"textcoords": "offset points", "fontsize": 8, "zorder": 5}
    for i, point in enumerate(curve):  # beyond the ring around the chosen one
        axes.annotate(f"{point['alpha']:g}", (x[i], y[i]), (9, 4), **label)
    chosen = [point["alpha"] for point in curve].index(alpha)
    ring = {"s": 150, "facecolors": "none", "edgecolors": GROUNDED, "linewidths": 1.8, "zorder": 4}
    axes.scatter(x[chosen], y[chosen], label=f"chosen α = {alpha:g}", **ring)
    axes.axvline(100 * curve[0]["grounded"]["chance"], color=GREY, linestyle=":", linewidth=1.2, label="chance")
    axes.axhline(100 * curve[0]["grammar"]["chance"], color=GREY, linestyle=":", linewidth=1.2)
    axes.set_xlabel("grounding: accuracy on picture and caption pairs (%)")
    axes.set_ylabel("grammar: accuracy on text pairs (%)")
    axes.set_title("Both abilities at every α (selection split, 95 % intervals)", fontsize=10)
    axes.margins(x=0.08)  # the numbers beside the points stay inside
    axes.grid(alpha=0.25)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8, loc="best")
    figure.colorbar(dots, ax=axes, label="α, the weight of the multimodal model")
    _save(figure, path)


def plot_diagnosis(result: dict, path: Path) -> None:
    """Draw the loss along the path beside the line between its ends, and distance and cosine by layer.

    Args:
        result: of `diagnose`.
        path: of the PNG.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), dpi=150)
    alphas, losses = ([point[key] for point in result["path"]] for key in ("alpha", "loss"))
    left.plot(alphas, losses, color=GRAMMAR, marker="o", markersize=4, label="loss of the merge")
    left.plot([0, 1], [losses[0], losses[-1]], color=GREY, linestyle=":", label="line between the ends")
    left.set_xlabel("α, the weight of the first model")
    left.set_ylabel("loss (nats per token)")
    left.set_title(f"{result['verdict']}: barrier {result['barrier']:.2f} nats per token", fontsize=10)
    names = [layer["layer"] for layer in result["layers"]]
    cosines = [float("nan") if layer["cosine"] is None else layer["cosine"] for layer in result["layers"]]
    what = "steps from the ancestor" if result["ancestor"] else "weights"
    right.plot(names, [layer["distance"] for layer in result["layers"]], color=GROUNDED, marker="o", label="distance")
    right.plot(names, cosines, color=GRAMMAR, marker="s", label=f"cosine of the {what}")
    right.axhline(0, color=GREY, linewidth=0.8)
    right.tick_params(axis="x", rotation=60, labelsize=8)
    right.set_title("Distance of the two models, layer by layer", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(framealpha=0.9, edgecolor="none", fontsize=8, loc="best")
    _save(figure, path)


def _percent(*fractions: float) -> list[float]:
    return [100 * fraction for fraction in fractions]


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
