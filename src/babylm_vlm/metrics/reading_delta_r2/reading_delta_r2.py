r"""How much do a model's surprisals add to predicting reading times?

The gain in explained variance of an ordinary regression when each word's surprisal joins the baseline, as a percentage
of the variance that the baseline leaves:

    ΔR² = 100 · (R²_with − R²_base) / (1 − R²_base).

Baseline: the given predictors of each word, the product of every two of them, and a constant. The BabyLM pipeline
takes word frequency, length and context length for eye tracking, and for self-paced reading also the previous word's
length and surprisal (spill-over); its eye-tracking score is the mean over four measures (data: de Varda et al. 2024).
Words where a number is missing are left out.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

_CITATION = """\
@article{de-varda-etal-2024-cloze,
  title = {Cloze probability, predictability ratings, and computational estimates for 205 {English} sentences, aligned
    with existing {EEG} and reading time data},
  author = {de Varda, Andrea Gregor and Marelli, Marco and Amenta, Simona},
  journal = {Behavior Research Methods},
  volume = {56},
  pages = {5190--5213},
  year = {2024},
  doi = {10.3758/s13428-023-02261-8},
}
"""


class ReadingDeltaR2(evaluate.Metric):
    """The gain in percent, and how many words it is of."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        features = {"predictions": number, "references": number, "baseline": datasets.Sequence(number)}
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=self._compute.__doc__,
            features=datasets.Features(features),
            reference_urls=["https://doi.org/10.3758/s13428-023-02261-8"],
        )

    def _compute(
        self, predictions: Sequence[float], references: Sequence[float], baseline: Sequence[Sequence[float]]
    ) -> dict[str, float]:
        """
        Args:
            predictions: the surprisals of n words, in any unit.
            references: their reading times.
            baseline: for each word its p predictors; their products are added here.

        Returns:
            `delta_r2`, percent of the baseline's unexplained variance, between 0 and 100; `words`, how many have all
            their numbers.

        Examples:
            >>> metric.compute(
            ...     predictions=[3.1, 8.4, 5.0, 9.2, 2.3, 4.7, 6.6, 7.5],
            ...     references=[212, 271, 225, 268, 219, 248, 230, 261],
            ...     baseline=[[3], [6], [5], [4], [4], [7], [2], [5]],
            ... )
            {'delta_r2': 90.59..., 'words': 8}
        """
        for i, row in enumerate(baseline):
            if row is None or len(row) != len(baseline[0] or []):
                raise ValueError(f"every word needs the same number of baseline predictors; word {i} has {row}.")
        times, surprisal, predictors = (np.asarray(v, dtype=np.float64) for v in (references, predictions, baseline))
        columns = regression_columns(times, list(predictors.T), surprisal)
        known, parameters = np.isfinite(columns).all(axis=1), columns.shape[1]
        if known.sum() <= parameters:
            raise ValueError(
                f"{known.sum()} words have all their numbers; a regression with {parameters} parameters needs more."
            )
        if times[known].min() == times[known].max():
            raise ValueError("the reading times (references) are all the same; there is nothing to explain.")
        once = np.ones((1, len(times)), dtype=np.int64)
        return {"delta_r2": float(delta_r2(columns, once)[0]), "words": int(known.sum())}


def regression_columns(measure: np.ndarray, baseline: Sequence[np.ndarray], surprisal: np.ndarray) -> np.ndarray:
    """What is regressed, a column each: the p predictors, the product of every two, surprisal, and the measure.

    Args:
        measure: (n,) reading times.
        baseline: the p predictors, (n,) each.
        surprisal: (n,) surprisals.

    Returns:
        (n, p + p(p-1)/2 + 2).
    """
    products = [baseline[i] * baseline[j] for i in range(len(baseline)) for j in range(i + 1, len(baseline))]
    return np.stack([*baseline, *products, surprisal, measure], axis=1)


def delta_r2(columns: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """ΔR² in every resample, over the words where nothing is missing; 0 where these are too few for a regression.

    The sums of squares and products of a resample are a weighted sum of those of the words: one matrix product and a
    small linear system, instead of a regression on all its words.

    Args:
        columns: (n, q) of `regression_columns`.
        counts: (R, n) how often each word is in each resample.

    Returns:
        (R,) percent.
    """
    known = np.isfinite(columns).all(axis=1)
    if known.sum() <= columns.shape[1]:
        return np.zeros(len(counts))
    columns = columns[known] - columns[known].mean(axis=0)
    columns /= np.where(columns.std(axis=0) > 0, columns.std(axis=0), 1)
    table = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)  # 1, predictors, surprisal, measure
    moments = np.einsum("ni,nj->nij", table, table).reshape(len(table), -1)
    moments = (counts[:, known] @ moments).reshape(len(counts), table.shape[1], table.shape[1])
    unexplained = [_residual(moments, list(range(table.shape[1] - extra))) for extra in (2, 1)]
    return 100 * (1 - unexplained[1] / unexplained[0])  # = 100 · (R²m − R²b) / (1 − R²b): the total variance cancels


def _residual(moments: np.ndarray, predictors: list[int]) -> np.ndarray:
    """Residual sum of squares, (R,), of the last column regressed on the predictors, from X'X (R, q, q)."""
    cross = moments[:, predictors, -1]
    inner = moments[:, predictors][:, :, predictors]
    solved = (np.linalg.pinv(inner, hermitian=True) @ cross[:, :, None])[:, :, 0]
    return moments[:, -1, -1] - (cross * solved).sum(axis=1)
