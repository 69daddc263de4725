"""What a run says of itself: the words it will read, its `training_state.json`, and the curve of its loss."""

import time
from importlib.metadata import version
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from rich.console import Console
from rich.table import Table
from transformers import TrainerState, TrainingArguments

from ..files import sha256
from .prepare import Prepared
from .recipe import Recipe
from .schedule import RunPlan
from .speed import flops_per_token, hardware

MOST_EPOCHS = 10  # of the BabyLM challenge, since 2025


class Record:
    """The training state of a run after any of its updates, as `training_state.json` holds it.

    Args:
        recipe, arguments, run, plan: of the run.
        started: the monotonic clock when it was.
        earlier: the state it is resumed from.
    """

    def __init__(
        self,
        recipe: Recipe,
        arguments: TrainingArguments,
        run: Prepared,
        plan: RunPlan,
        started: float,
        earlier: dict | None,
    ):
        self.plan, self.started = plan, started
        self.minutes_before = earlier["minutes"] if earlier else 0
        self.flops_per_token = flops_per_token(run.model, recipe.block_size)
        self.facts = {
            "model": recipe.model,
            "ancestor": describe_ancestor(recipe.init_from),
            "data": run.data,
            "data_sha256": run.data_sha256,
            "parameters": run.model.num_parameters(),
            "seed": arguments.seed,
            "precision": "bf16 autocast" if arguments.bf16 else "fp16 autocast" if arguments.fp16 else "fp32",
            "hardware": hardware(),
            "versions": {package: version(package) for package in ("babylm-vlm", "torch", "transformers")},
            "recipe": recipe.keys(),
        }

    def after(self, state: TrainerState) -> dict:
        """What is known after the update that `state` is at."""
        step, plan = state.global_step, self.plan
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        losses = losses or [entry["train_loss"] for entry in state.log_history if "train_loss" in entry]  # a short run
        return self.facts | {
            "finished": step == plan.steps,
            "epochs": round(float(plan.epochs[step]), 4),
            "words_seen": int(plan.words[step]),
            "tokens_seen": int(plan.tokens[step]),
            "model_flops": int(plan.tokens[step]) * self.flops_per_token,
            "steps": step,
            "final_loss": losses[-1] if losses else None,
            "minutes": round((time.monotonic() - self.started) / 60 + self.minutes_before, 2),
        }


def print_budget(data: list[dict], plan: RunPlan) -> None:
    """A table of the words of every source, and what the run makes of them."""
    total = sum(source["words"] for source in data)
    table = Table("Source", box=None)
    for column in ("Words", "Share"):
        table.add_column(column, justify="right")
    for source in data:
        table.add_row(source["name"], f"{source['words']:,}", f"{source['words'] / total:.1%}")
    table.add_row("all", f"{total:,}", "100.0%", style="bold")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    names = ", ".join(name for names in plan.due.values() for name in names) or "none"
    console.print(f"The run reads {plan.words[-1]:,} words in {plan.epochs[-1]:.2f} passes. Checkpoints: {names}.")
    if plan.epochs[-1] > MOST_EPOCHS:
        console.print(f"[yellow]Warning:[/yellow] the BabyLM challenge allows no more than {MOST_EPOCHS} passes.")


def describe_ancestor(init_from: str | None) -> dict | None:
    """Name of the ancestor and, for a folder on this disk, the hash of its weights."""
    if init_from is None:
        return None
    weights = Path(init_from) / "model.safetensors"
    return {"name": init_from, "sha256": sha256(weights) if weights.is_file() else None}


def plot_loss(history: list[dict], path: Path) -> None:
    """Draw the loss against the words seen; nothing for a run that was too short to log one.

    Args:
        history: `log_history` of a `TrainerState`, such as in the run's `trainer_state.json`.
        path: of the PNG.
    """
    points = [(entry["words_seen"], entry["loss"]) for entry in history if "loss" in entry]
    if not points:
        return
    figure = Figure(figsize=(7, 4.3), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), color="#1b6ca8", marker="o" if len(points) < 20 else None, markersize=4)
    axes.set_xlabel("words seen")
    axes.set_ylabel("training loss (nats per token)")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    figure.savefig(path)
