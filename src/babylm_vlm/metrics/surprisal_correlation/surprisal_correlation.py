r"""Does a model prefer one form to another as often as people do?

Spearman's ρ, over items, of the human ratio (how often people chose the first of two forms) and the model's

    p = softmax(log p(first), log p(second)) of the first, in fp32,

which grows with the surprisal of the second form minus that of the first. The BabyLM pipeline scores its WUG tests so:
adjective nominalisation (Hofmann et al. 2025) and past tense. Where a score is not finite p is 1/2, no preference;
where either side does not vary ρ is 0.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata

_CITATION = """\
@article{hofmann-etal-2025-derivational,
  title = {Derivational Morphology Reveals Analogical Generalization in Large Language Models},
  author = {Hofmann, Valentin and Weissweiler, Leonie and Mortensen, David R. and Schütze, Hinrich and
    Pierrehumbert, Janet B.},
  journal = {Proceedings of the National Academy of Sciences},
  volume = {122},
  number = {19},
  year = {2025},
}
"""


class SurprisalCorrelation(evaluate.Metric):
    """Spearman's ρ, and numbers of ties and failures."""

    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=self._compute.__doc__,
            features=datasets.Features({"predictions": scores, "references": datasets.Value("float64")}),
            reference_urls=["https://arxiv.org/abs/2411.07990"],
        )

    def _compute(self, predictions: Sequence[Sequence[float]], references: Sequence[float]) -> dict[str, float]:
        """
        Args:
            predictions: for each of n items the log-probabilities of its two forms.
            references: for each item how often people chose the first form.

        Returns:
            `spearman` between -1 and 1; `ties` and `nonfinite`, how many items had two equal scores, or one that is
            not finite.

        Examples:
            >>> metric.compute(predictions=[[-9, -12], [-9, -9], [-12, -9]], references=[0.9, 0.2, 0.4])
            {'spearman': 0.5, 'ties': 1, 'nonfinite': 0}
        """
        for i, (scores, ratio) in enumerate(zip(predictions, references, strict=True)):
            if scores is None or len(scores) != 2:
                raise ValueError(f"item {i} must hold the scores of two forms, not {scores}.")
            if ratio is None or not np.isfinite(ratio):
                raise ValueError(f"the reference of item {i} must be a finite number, not {ratio}.")
        if not predictions:
            raise ValueError("there are no items to take a correlation of.")
        scores = np.asarray(predictions, dtype=np.float64)
        nonfinite = ~np.isfinite(scores).all(axis=1)
        once = np.ones((1, len(scores)), dtype=np.int64)
        return {
            "spearman": float(correlation(scores, references, once)[0]),
            "ties": int(((scores[:, 0] == scores[:, 1]) & ~nonfinite).sum()),
            "nonfinite": int(nonfinite.sum()),
        }


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
