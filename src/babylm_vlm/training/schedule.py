"""The order in which a run reads its rows, known in full before it starts.

From it follows, before the first update, how many words each update will have seen; so a run stops exactly at its word
budget, knows which updates leave a checkpoint, and reads the same rows in the same order when it is resumed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments

from ..data.captions import CaptionBlocks, CaptionRows
from ..data.text import TextBlocks
from ..files import checkpoint_name
from .recipe import Recipe

NEARLY = 0.95  # a corpus "of 10M words" rarely has exactly that many
MILLION = 1_000_000
BABYLM = [number * MILLION for number in (*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100))]


class Schedule(Sampler[int]):
    """Indices of rows, for `Trainer`.

    One group of rows is read once in every pass (`Trainer` says epoch), shuffled anew for each. Several groups are
    read one after the other in a single pass: all readings of the first, each shuffled anew, then all of the second.

    Args:
        sizes: rows of each group, in the order in which the groups follow each other in the data set.
        order: the groups, in the order in which they are read.
        epochs: how often each row is read; only several groups need to know it beforehand.
        seed: of the shuffling.
        batch_rows: rows in a batch, those of all processes together.
        batches: batches in an update.
        even: leave out the rows at the end of a pass that fill no batch, so that all processes have equally many.

    Attributes:
        updates: updates in a pass.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        order: Sequence[int],
        epochs: float,
        seed: int,
        batch_rows: int,
        batches: int = 1,
        even: bool = False,
    ):
        self.sizes, self.order, self.epochs, self.seed = sizes, order, epochs, seed
        self.length = sizes[0] if len(sizes) == 1 else sum(round(epochs * size) for size in sizes)
        if even and self.length > batch_rows:
            self.length -= self.length % batch_rows
        self.update_rows = batch_rows * batches
        self.updates = math.ceil(self.length / self.update_rows)
        self.number = 0  # of the pass

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows(self.number).tolist())

    def start(self, step: int) -> None:
        """Let the next pass be the one to which the update after `step` belongs."""
        self.number = step // self.updates

    def rows(self, number: int) -> np.ndarray:
        """Indices of the rows of a pass, in order."""
        if len(self.sizes) == 1:
            return self._shuffled(0, number)[: self.length]
        parts = []
        for group in self.order:
            readings = [self._shuffled(group, reading) for reading in range(math.ceil(self.epochs))]
            parts.append(np.concatenate(readings)[: round(self.epochs * self.sizes[group])])
        return np.concatenate(parts)[: self.length]

    def _shuffled(self, group: int, reading: int) -> np.ndarray:
        """As accelerate's `SeedableRandomSampler` shuffles in its epoch `reading`."""
        generator = torch.Generator().manual_seed(self.seed + reading)
        return sum(self.sizes[:group]) + torch.randperm(self.sizes[group], generator=generator).numpy()

    def read_after(self, counts: np.ndarray, steps: int) -> np.ndarray:
        """How much was read after 0, 1, … `steps` updates.

        Args:
            counts: (rows,) words, tokens or whatever each row has.
            steps: updates.

        Returns:
            (steps + 1,) sums.
        """
        ends = np.minimum(np.arange(1, self.updates + 1) * self.update_rows, self.length)
        read = [np.zeros(1, dtype=np.int64)]
        for number in range(math.ceil(steps / self.updates)):
            read.append(read[-1][-1] + np.cumsum(counts[self.rows(number)], dtype=np.int64)[ends - 1])
        return np.concatenate(read)[: steps + 1]


@dataclass
class RunPlan:
    """What a run reads, known before its first update.

    Attributes:
        schedule: the order of its rows.
        steps: its updates.
        words, tokens, epochs: (steps + 1,) seen after each update.
        due: names of the checkpoints to leave after an update.
    """

    schedule: Schedule
    steps: int
    words: np.ndarray
    tokens: np.ndarray
    epochs: np.ndarray
    due: dict[int, list[str]]


def plan_run(
    recipe: Recipe, arguments: TrainingArguments, text: TextBlocks | None, captions: CaptionRows | CaptionBlocks | None
) -> RunPlan:
    """The plan of a run over rows of text, of captions, or of both. Raises as its two parts below."""
    nothing = np.zeros(0, dtype=int)
    words = [nothing if rows is None else rows.words for rows in (text, captions)]
    tokens = [nothing if rows is None else rows.tokens for rows in (text, captions)]
    schedule, steps = make_schedule(recipe, arguments, *words)
    words_seen, tokens_seen, rows_seen = (
        schedule.read_after(counts, steps)
        for counts in (np.concatenate(words), np.concatenate(tokens), np.ones(sum(map(len, words))))
    )
    due = checkpoint_steps(recipe.checkpoint_words, words_seen)
    return RunPlan(schedule, steps, words_seen, tokens_seen, rows_seen / sum(map(len, words)), due)


def make_schedule(
    recipe: Recipe, arguments: TrainingArguments, text: np.ndarray, captions: np.ndarray
) -> tuple[Schedule, int]:
    """The order of a run and its number of updates.

    Args:
        recipe: its `data_order`, `word_budget`, `num_train_epochs` and `max_steps` decide.
        arguments: made from it.
        text: (rows,) words of each row of text.
        captions: (rows,) words of each row of captions; they follow the text.

    Raises:
        ValueError: the budget is more than the data have in the passes that are allowed, or less than one update.
    """
    words = np.concatenate([text, captions])
    budget = recipe.word_budget
    epochs = arguments.num_train_epochs
    if budget is not None:
        allowed = recipe.training.get("num_train_epochs", math.inf)
        if budget * NEARLY > allowed * words.sum():
            raise ValueError(
                f"The word budget is {budget:,}, but the data have {round(allowed * words.sum()):,} words in "
                f"{allowed:g} pass{'es' * (allowed != 1)}: add data, raise num_train_epochs or lower word_budget."
            )
        epochs = min(allowed, budget / words.sum())
    mixed = recipe.data_order == "mixed" or 0 in (len(text), len(captions))
    schedule = Schedule(
        sizes=[len(words)] if mixed else [len(text), len(captions)],
        order=[1, 0] if recipe.data_order == "captions_first" else [0, 1],
        epochs=epochs,
        seed=arguments.seed if arguments.data_seed is None else arguments.data_seed,
        batch_rows=arguments.train_batch_size * arguments.world_size,
        batches=arguments.gradient_accumulation_steps,
        even=arguments.world_size > 1,
    )
    passes = 1 if not mixed else epochs if budget is None else math.ceil(epochs)
    steps = math.ceil(passes * schedule.updates)
    if budget is not None:
        steps = int(np.searchsorted(schedule.read_after(words, steps), budget, side="right")) - 1
        if steps == 0:
            raise ValueError(f"The word budget, {budget:,}, is less than one update reads: lower the batch size.")
    if arguments.max_steps > 0:
        steps = arguments.max_steps if budget is None else min(steps, arguments.max_steps)
    return schedule, steps


def checkpoint_steps(wanted: str | list[int] | None, words: np.ndarray) -> dict[int, list[str]]:
    """After which updates a checkpoint is left, and under which names.

    A checkpoint `chck_NM` is the last of the run that has seen no more than N million words. The run's end stands for
    the next one if it has seen nearly as many.

    Args:
        wanted: numbers of words; `babylm`: the challenge's.
        words: (updates + 1,) words seen after each update.

    Raises:
        ValueError: a checkpoint is wanted before the end of the first update.
    """
    steps: dict[int, list[str]] = {}
    for number in BABYLM if wanted == "babylm" else sorted(wanted or []):
        step = int(np.searchsorted(words, number, side="right")) - 1
        if step == 0:
            raise ValueError(f"A checkpoint at {number:,} words is wanted, but the first update reads {words[1]:,}.")
        if step < len(words) - 1 or words[-1] >= NEARLY * number:
            steps.setdefault(step, []).append(checkpoint_name(number))
    return steps
