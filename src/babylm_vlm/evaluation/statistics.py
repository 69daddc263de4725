r"""Accuracy on minimal pairs, with its uncertainty.

Let g_i and b_i be the log-probabilities of the good and the bad sentence of pair i. The pair is worth

    c_i = 1   if g_i > b_i
    c_i = 1/2 if g_i = b_i        (a tie: a model without a preference is at chance)
    c_i = 0   if g_i < b_i, or if either is not finite (a failure is never a success).

The accuracy of a paradigm u is a_u = mean of c_i over its pairs; the reported accuracy is the macro average over the U
paradigms, a = (1/U) Σ_u a_u, so that large paradigms do not outweigh small ones.

Interval: percentile bootstrap of a (Efron and Tibshirani 1993, chapter 13). In each resample, every paradigm with K
clusters (pairs that share a `pair` id; others are alone) draws K of its clusters with replacement, and a_u is the sum
of c_i over the drawn clusters divided by their number of pairs. The paradigms themselves are not resampled: they are
the benchmark. A paradigm whose pairs are all right (or all wrong) has an interval of zero width, as always with the
bootstrap: read it with the number of items.

Clusters with the same sum and size cannot be told apart, so drawing K clusters is drawing from a multinomial over the
few distinct kinds of cluster: the same distribution as resampling item by item, at a fraction of the work.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .minimal_pairs import MinimalPair

CHANCE = 0.5
INTERVAL_PERCENT = 95


@dataclass(frozen=True)
class Paradigm:
    """Accuracy on one paradigm; fractions between 0 and 1, as in `Accuracy`."""

    accuracy: float
    interval: tuple[float, float]
    items: int
    ties: int
    nonfinite: int


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on a task: the macro average over its paradigms.

    Attributes:
        accuracy: between 0 and 1.
        interval: its 95 % bootstrap interval.
        chance: what guessing gives.
        items: number of pairs.
        ties: pairs whose two finite scores are equal; each counts one half.
        nonfinite: pairs with a score that is NaN or infinite; each counts as wrong.
        paradigms: the same for every paradigm, by UID.
    """

    accuracy: float
    interval: tuple[float, float]
    chance: float
    items: int
    ties: int
    nonfinite: int
    paradigms: dict[str, Paradigm]

    def to_dict(self) -> dict:
        """Plain lists, dicts and numbers, for JSON."""
        return _listed(asdict(self))


@dataclass(frozen=True)
class Difference:
    """Accuracy of model A minus accuracy of model B on the same pairs, with its 95 % bootstrap interval."""

    difference: float
    interval: tuple[float, float]
    items: int

    def to_dict(self) -> dict:
        """Plain lists, dicts and numbers, for JSON."""
        return _listed(asdict(self))


def accuracy(scores: np.ndarray, pairs: Sequence[MinimalPair], resamples: int = 2000, seed: int = 0) -> Accuracy:
    """Macro-average accuracy with its interval; formulae at the top of this file.

    Args:
        scores: (n, 2) log-probabilities of the good and the bad sentences, as `score_pairs` gives them.
        pairs: the n pairs they belong to.
        resamples: number of bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: no pairs, or scores of another shape.
    """
    credit, ties, nonfinite = _credit(scores, pairs)
    members = _paradigm_members(pairs)
    resampled = _resample(credit, pairs, members, resamples, seed)
    paradigms = {
        uid: Paradigm(
            accuracy=float(credit[items].mean()),
            interval=_interval(resampled[row]),
            items=len(items),
            ties=int(ties[items].sum()),
            nonfinite=int(nonfinite[items].sum()),
        )
        for row, (uid, items) in enumerate(members.items())
    }
    return Accuracy(
        accuracy=_macro(credit, members),
        interval=_interval(resampled.mean(axis=0)),
        chance=CHANCE,
        items=len(pairs),
        ties=int(ties.sum()),
        nonfinite=int(nonfinite.sum()),
        paradigms=paradigms,
    )


def difference_interval(
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    pairs: Sequence[MinimalPair],
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Accuracy of A minus accuracy of B with its interval, paired over items.

    The same bootstrap as in `accuracy`, with d_i = c_i(A) − c_i(B) in place of c_i: both models are always compared on
    the same resampled pairs, so what makes a pair easy or hard for both drops out.

    Args:
        scores_a, scores_b: (n, 2) log-probabilities under the two models.
        pairs: the n pairs they belong to.
        resamples: number of bootstrap resamples.
        seed: of the resampling.
    """
    difference = _credit(scores_a, pairs)[0] - _credit(scores_b, pairs)[0]
    members = _paradigm_members(pairs)
    resampled = _resample(difference, pairs, members, resamples, seed)
    return Difference(_macro(difference, members), _interval(resampled.mean(axis=0)), len(pairs))


def _credit(scores: np.ndarray, pairs: Sequence[MinimalPair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For n pairs: c_i (n,) in {0, 1/2, 1}, and two boolean arrays (n,), tied and not finite."""
    scores = np.asarray(scores)
    if not len(pairs):
        raise ValueError("there are no minimal pairs to take an accuracy of.")
    if scores.shape != (len(pairs), 2):
        raise ValueError(f"{len(pairs)} minimal pairs need scores of shape ({len(pairs)}, 2), not {scores.shape}.")
    nonfinite = ~np.isfinite(scores).all(axis=1)
    good, bad = scores.T
    ties = (good == bad) & ~nonfinite
    credit = np.where(ties, 0.5, (good > bad).astype(np.float64))
    credit[nonfinite] = 0.0
    return credit, ties, nonfinite


def _paradigm_members(pairs: Sequence[MinimalPair]) -> dict[str, np.ndarray]:
    """Indices of the pairs of every paradigm, by UID, in order of first appearance."""
    members: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        members.setdefault(pair.uid, []).append(i)
    return {uid: np.array(items) for uid, items in members.items()}


def _macro(values: np.ndarray, members: dict[str, np.ndarray]) -> float:
    """Mean over paradigms of the paradigm's mean."""
    return float(np.mean([values[items].mean() for items in members.values()]))


def _resample(
    values: np.ndarray, pairs: Sequence[MinimalPair], members: dict[str, np.ndarray], resamples: int, seed: int
) -> np.ndarray:
    """Bootstrapped mean of `values` in every paradigm: (paradigms, resamples)."""
    generator = np.random.default_rng(seed)
    means = np.empty((len(members), resamples))
    for row, items in enumerate(members.values()):
        _, cluster_of = np.unique([pairs[i].pair for i in items], return_inverse=True)
        sums, sizes = np.bincount(cluster_of, weights=values[items]), np.bincount(cluster_of)
        kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
        drawn = generator.multinomial(len(sums), counts / len(sums), size=resamples)  # (resamples, kinds)
        means[row] = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    return means


def _interval(resampled: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled values (resamples,)."""
    tail = (100 - INTERVAL_PERCENT) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def _listed(value):
    """Tuples as lists, all the way down: what JSON would make of them."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
