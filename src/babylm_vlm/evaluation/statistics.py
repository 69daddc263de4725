r"""Accuracy on choices between texts, with its uncertainty, and paired comparisons of two models.

What an item is worth, c_i, is defined in metrics/minimal_pair_accuracy, by default and by the official rule. (Official
DevBench is strict: c_i = 1 where the right text's score is higher than all others.) The accuracy of a paradigm u is
a_u = mean of c_i over its items; the reported accuracy is the macro average over
paradigms, a = Σ_u w_u a_u with w_u = 1/U, so that large paradigms do not outweigh small ones. Where paradigms form G
groups, it is the mean over groups of the mean over their paradigms.

Interval: percentile bootstrap of a (Efron and Tibshirani 1993, chapter 13). In each resample, every paradigm with K
clusters (items that share a `pair` id; others are alone) draws K of its clusters with replacement, and a_u is the sum
of c_i over the drawn clusters divided by their number of items. The paradigms themselves are not resampled: they are
the benchmark. A paradigm whose items are all right (or all wrong) has an interval of zero width, as always with the
bootstrap: read it with the number of items.

Test: of no difference between models A and B, by randomisation (ibid., chapter 15). If A and B were the same,
exchanging their results on a cluster would change nothing; p is how often |a_A − a_B| after such exchanges, each with
probability 1/2, is at least the observed one.

Clusters with the same sum and size cannot be told apart, so drawing K clusters is drawing from a multinomial over the
few distinct kinds of cluster, and exchanging them is a binomial: the same distribution at a fraction of the work.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from ..metrics.minimal_pair_accuracy.minimal_pair_accuracy import item_credit, paradigm_means, paradigm_members

INTERVAL_PERCENT = 95


class Clustered(Protocol):
    """What a statistic knows of an item: its paradigm and its cluster."""

    uid: str
    pair: str


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
        items: number of items.
        ties: items whose highest finite score is shared.
        nonfinite: items with a score that is NaN or infinite.
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
    """A statistic of model A minus that of model B on the same items, its 95 % interval, and p of no difference."""

    difference: float
    interval: tuple[float, float]
    items: int
    p_value: float

    def to_dict(self) -> dict:
        """Plain lists, dicts and numbers, for JSON."""
        return _listed(asdict(self))


def accuracy(
    scores: np.ndarray | Sequence[np.ndarray],
    items: Sequence[Clustered],
    resamples: int = 2000,
    seed: int = 0,
    group_of: Callable[[str], str] | None = None,
    official: bool = False,
    strict: bool = False,
) -> Accuracy:
    """Macro-average accuracy with its interval; formulae at the top of this file.

    Args:
        scores: for each of n items the log-probabilities of its texts, the right one first: (n, k), or n arrays.
        items: minimal pairs, or other items that they belong to.
        resamples: number of bootstrap resamples.
        seed: of the resampling.
        group_of: the group of a paradigm; by default each is alone in its own.
        official: count ties and failures as the official pipeline does.
        strict: the official rule is that of DevBench.

    Raises:
        ValueError: no items, or scores of another shape.
    """
    credit, ties, nonfinite, chance = _credit(scores, items, official, strict)
    members = paradigm_members([item.uid for item in items])
    weights = _weights(members, group_of)
    resampled = _resample(credit, items, members, resamples, seed)
    paradigms = {
        uid: Paradigm(
            accuracy=float(credit[inside].mean()),
            interval=interval(resampled[row]),
            items=len(inside),
            ties=int(ties[inside].sum()),
            nonfinite=int(nonfinite[inside].sum()),
        )
        for row, (uid, inside) in enumerate(members.items())
    }
    return Accuracy(
        accuracy=float(weights @ paradigm_means(credit, members)),
        interval=interval(weights @ resampled),
        chance=float(weights @ paradigm_means(chance, members)),
        items=len(items),
        ties=int(ties.sum()),
        nonfinite=int(nonfinite.sum()),
        paradigms=paradigms,
    )


def difference_interval(
    scores_a: np.ndarray | Sequence[np.ndarray],
    scores_b: np.ndarray | Sequence[np.ndarray],
    items: Sequence[Clustered],
    resamples: int = 2000,
    seed: int = 0,
    group_of: Callable[[str], str] | None = None,
    official: bool = False,
    strict: bool = False,
) -> Difference:
    """Accuracy of A minus accuracy of B with its interval and test, paired over items.

    The same bootstrap as in `accuracy`, with d_i = c_i(A) − c_i(B) in place of c_i: both models are always compared on
    the same resampled items, so what makes an item easy or hard for both drops out.

    Args:
        scores_a, scores_b: scores under the two models, as in `accuracy`, as are the other arguments.
    """
    difference = _credit(scores_a, items, official, strict)[0] - _credit(scores_b, items, official, strict)[0]
    members = paradigm_members([item.uid for item in items])
    weights = _weights(members, group_of)
    resampled = _resample(difference, items, members, resamples, seed)
    observed = float(weights @ paradigm_means(difference, members))
    exchanged = weights @ _exchange(difference, items, members, resamples, seed)
    return Difference(observed, interval(weights @ resampled), len(items), p_value(observed, exchanged))


def label_accuracy(predicted: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Share of right labels in every resample, (R,).

    Args:
        predicted, right: (n,) labels.
        counts: (R, n) how often each item is in each resample.
    """
    return counts @ (predicted == right) / counts.sum(axis=1)


def label_f1(predicted: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """F1 of label 1 in every resample, (R,): 2 TP / (2 TP + FP + FN), 0 where it is neither predicted nor right.

    Arguments as in `label_accuracy`.
    """
    hits = counts @ ((predicted == 1) & (right == 1))
    both = counts @ ((predicted == 1).astype(int) + (right == 1))
    return np.divide(2 * hits, both, out=np.zeros(len(counts)), where=both > 0)


def p_value(observed: float, under_no_difference: np.ndarray) -> float:
    """Two-sided p, the observation counted as one more resample, so that it is never 0."""
    extreme = np.abs(under_no_difference) >= abs(observed) - 1e-12
    return float((1 + extreme.sum()) / (1 + len(under_no_difference)))


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled values (resamples,)."""
    tail = (100 - INTERVAL_PERCENT) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def _credit(
    scores: np.ndarray | Sequence[np.ndarray], items: Sequence[Clustered], official: bool, strict: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`item_credit` of n items, which must be there."""
    if not len(items):
        raise ValueError("there are no minimal pairs or other items to take an accuracy of.")
    if len(scores) != len(items):
        raise ValueError(f"{len(items)} items need {len(items)} rows of scores, not {len(scores)}.")
    credit, ties, nonfinite, chance = item_credit(scores, official)
    if official and strict:
        credit = np.array([all(row[0] > other for other in row[1:]) for row in scores], dtype=np.float64)
    return credit, ties, nonfinite, chance


def _weights(members: dict[str, np.ndarray], group_of: Callable[[str], str] | None) -> np.ndarray:
    """(U,) weight of each paradigm in the macro average; they sum to 1."""
    groups = [group_of(uid) if group_of else uid for uid in members]
    return np.array([1 / (len(set(groups)) * groups.count(group)) for group in groups])


def _clusters(
    values: np.ndarray, items: Sequence[Clustered], inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kinds of cluster in a paradigm: sum of their values, number of items, and how many are of each kind."""
    _, cluster_of = np.unique([items[i].pair for i in inside], return_inverse=True)
    sums, sizes = np.bincount(cluster_of, weights=values[inside]), np.bincount(cluster_of)
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    return kinds[:, 0], kinds[:, 1], counts


def _resample(
    values: np.ndarray, items: Sequence[Clustered], members: dict[str, np.ndarray], resamples: int, seed: int
) -> np.ndarray:
    """Bootstrapped mean of `values` in every paradigm: (paradigms, resamples)."""
    generator = np.random.default_rng(seed)
    means = np.empty((len(members), resamples))
    for row, inside in enumerate(members.values()):
        sums, sizes, counts = _clusters(values, items, inside)
        drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=resamples)  # (resamples, kinds)
        means[row] = (drawn @ sums) / (drawn @ sizes)
    return means


def _exchange(
    differences: np.ndarray, items: Sequence[Clustered], members: dict[str, np.ndarray], resamples: int, seed: int
) -> np.ndarray:
    """Mean of `differences` in every paradigm after random exchanges of the models: (paradigms, resamples)."""
    generator = np.random.default_rng(seed)
    means = np.empty((len(members), resamples))
    for row, inside in enumerate(members.values()):
        sums, _, counts = _clusters(differences, items, inside)
        kept = generator.binomial(counts, 0.5, size=(resamples, len(counts)))
        means[row] = (2 * kept - counts) @ sums / len(inside)
    return means


def _listed(value):
    """Tuples as lists, all the way down: what JSON would make of them."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
