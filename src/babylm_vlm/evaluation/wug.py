"""WUG tests: does a model prefer a form of an invented word as often as people do?

Adjective nominalisation (Hofmann et al. 2025; -ity or -ness) and past tense. Rows hold `sentences`, two texts with a
tab between, and `ratio`, how often people chose the first. The score is Spearman's ρ between that ratio and the
model's p = softmax of the two log-probabilities, over all items.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata

from .choices import Item
from .rows import file_stem, json_rows, number_field, text_field


def read(path: Path) -> list[Item]:
    """Items of all files in a folder. Errors as `json_rows`, or a field is missing or malformed."""
    items = []
    for file, where, row in json_rows(path):
        forms = text_field(row, "sentences", where).split("\t")
        if len(forms) != 2:
            raise ValueError(f"{where}: the field sentences must hold two texts with a tab between.")
        ratio = number_field(row, "ratio", where)
        uid = "wug_past" if "past" in file_stem(file) else "wug_adj"
        items.append(Item(uid, where, tuple(("", form) for form in forms), facts={"ratio": ratio}))
    return items


def first_form_probability(scores: Sequence[float]) -> float:
    """p of the first form in fp32, as the official pipeline takes it; 1/2 where scores are not finite."""
    scores = np.asarray(scores, dtype=np.float32)
    return float(softmax(scores)[0]) if np.isfinite(scores).all() else 0.5


def correlation(scores: Sequence[Sequence[float]], ratios: Sequence[float], counts: np.ndarray) -> np.ndarray:
    """Spearman's ρ in every resample; 0 where either side does not vary.

    Args:
        scores: n pairs of log-probabilities.
        ratios: the n human ratios.
        counts: (R, n) how often each item is in each resample.

    Returns:
        (R,) correlations.
    """
    model, human = np.array([first_form_probability(pair) for pair in scores]), np.asarray(ratios)
    found = np.zeros(len(counts))
    for r, times in enumerate(counts):
        drawn = np.repeat(np.arange(len(human)), times)
        a, b = (rankdata(values[drawn]) for values in (model, human))
        if a.std() and b.std():
            found[r] = np.corrcoef(a, b)[0, 1]
    return found
