r"""How often a language model finds the right one of two or more texts the most probable.

Let g_i be the log-probability of the right text of item i, and m_i the highest of all its texts. The item is worth

    c_i = 1    if only g_i = m_i
    c_i = 1/t  if t texts share m_i = g_i   (a tie: of two texts one half, what a model without a preference deserves)
    c_i = 0    if g_i < m_i, or if any score is not finite (a failure is never a success).

The official rule of the BabyLM pipeline is c_i = 1 where `argmax` of the fp32 scores is the right text, which stands
first: a tie counts as right, and so does an item whose scores are all NaN.

The accuracy is Σ_u a_u / U over U paradigms, a_u = mean of c_i over the paradigm's items, so that large paradigms do
not outweigh small ones (BLiMP, Warstadt et al. 2020).
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

_CITATION = """\
@article{warstadt-etal-2020-blimp-benchmark,
  title = {{BLiMP}: The Benchmark of Linguistic Minimal Pairs for {English}},
  author = {Warstadt, Alex and Parrish, Alicia and Liu, Haokun and Mohananey, Anhad and Peng, Wei and Wang, Sheng-Fu
    and Bowman, Samuel R.},
  journal = {Transactions of the Association for Computational Linguistics},
  volume = {8},
  pages = {377--392},
  year = {2020},
  doi = {10.1162/tacl_a_00321},
}
"""


class MinimalPairAccuracy(evaluate.Metric):
    """Macro-average accuracy, chance level, and numbers of ties and failures."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=self._compute.__doc__,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://aclanthology.org/2020.tacl-1.25"],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        paradigms: Sequence[str] | None = None,
        official: bool = False,
    ) -> dict[str, float]:
        """
        Args:
            predictions: for each of n items the log-probabilities of its two or more texts, the right one first.
            paradigms: for each item the name of its paradigm; by default all are of one.
            official: count ties and failures as the BabyLM pipeline does.

        Returns:
            `accuracy` and `chance` between 0 and 1; `ties` and `nonfinite`, how many items had a shared highest score
            or a score that is not finite.

        Examples:
            >>> metric.compute(predictions=[[-20.1, -22.4], [-15.0, -15.0]])
            {'accuracy': 0.75, 'chance': 0.5, 'ties': 1, 'nonfinite': 0}
        """
        for i, scores in enumerate(predictions):
            if scores is None or len(scores) < 2:
                raise ValueError(f"item {i} must hold the scores of two or more texts, not {scores}.")
        n = len(predictions)
        paradigms = ["all"] * n if paradigms is None else paradigms
        if len(paradigms) != n:
            raise ValueError(f"{n} items need {n} paradigms, not {len(paradigms)}.")
        credit, ties, nonfinite, chance = item_credit(predictions, official)
        members = paradigm_members(paradigms)
        return {
            "accuracy": float(paradigm_means(credit, members).mean()),
            "chance": float(paradigm_means(chance, members).mean()),
            "ties": int(ties.sum()),
            "nonfinite": int(nonfinite.sum()),
        }


def item_credit(
    scores: np.ndarray | Sequence[Sequence[float]], official: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What every item is worth.

    Args:
        scores: for each of n items the log-probabilities of its texts, the right one first: (n, k), or n rows.
        official: the official rule.

    Returns:
        c_i (n,) in [0, 1]; two boolean arrays (n,), tied and not finite; and (n,) each item's chance level.

    Raises:
        ValueError: there are no items.
    """
    sizes = np.array([len(row) for row in scores])
    if not len(sizes):
        raise ValueError("there are no items to take an accuracy of.")
    values = np.full((len(sizes), sizes.max()), -np.inf)
    given = np.arange(sizes.max()) < sizes[:, None]
    values[given] = np.concatenate([np.asarray(row, dtype=np.float64) for row in scores])
    nonfinite = ~(np.isfinite(values) | ~given).all(axis=1)
    best = np.max(values, axis=1)
    sharing = (values == best[:, None]).sum(axis=1)
    ties = (sharing > 1) & ~nonfinite
    if official:
        credit = (official_choice(values) == 0).astype(np.float64)
    else:
        credit = np.where(values[:, 0] == best, 1 / np.maximum(sharing, 1), 0.0)
        credit[nonfinite] = 0.0
    return credit, ties, nonfinite, 1 / sizes


def official_choice(scores: np.ndarray | Sequence[float]) -> np.ndarray:
    """Index of the text that the official pipeline takes: the first of the highest fp32 scores, or the first NaN.

    Args:
        scores: (k,) of an item, or (n, k) of n items.

    Returns:
        a number, or (n,).
    """
    return np.argmax(np.asarray(scores, dtype=np.float32), axis=-1)


def paradigm_members(paradigms: Sequence[str]) -> dict[str, np.ndarray]:
    """Indices of the items of every paradigm, by its name, in order of first appearance.

    Args:
        paradigms: the name of each item's paradigm.
    """
    members: dict[str, list[int]] = {}
    for i, name in enumerate(paradigms):
        members.setdefault(name, []).append(i)
    return {name: np.array(inside) for name, inside in members.items()}


def paradigm_means(values: np.ndarray, members: dict[str, np.ndarray]) -> np.ndarray:
    """(U,) mean of the items' values (n,) in every paradigm of `paradigm_members`."""
    return np.array([values[inside].mean() for inside in members.values()])
