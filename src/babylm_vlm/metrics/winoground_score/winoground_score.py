r"""Does a model match two captions with two pictures? Winoground's three scores, and BabyLM's unpaired one.

An example has two pictures and two captions; s_pc is the log-probability of caption c given picture p, and s_00 and
s_11 are those of captions that fit. An example is worth 1 if the model gets right

    text score      s_00 > s_01 and s_11 > s_10: for each picture its caption
    image score     s_00 > s_10 and s_11 > s_01: for each caption its picture
    group score     both of these, that is min(s_00, s_11) > max(s_01, s_10)

and otherwise 0; for the unpaired score, which the BabyLM pipeline reports as Winoground, it is worth one half for each
picture whose caption the model finds. Guessing gives 1/4, 1/4, 1/6, 1/2.

A tie is worth what breaking it at random would give: where r right scores and w wrong ones share the value that
decides a comparison, the chance r! w! / (r + w)! that the right ones come out higher. Of two scores that is one half,
and a model without any preference scores what guessing gives. An example with a score that is not finite is worth 0.

The official rules: for text, image and group that of Winoground's authors, a tie is wrong; for unpaired that of the
BabyLM pipeline, which takes the first of the highest fp32 scores, the right caption standing first: a tie is right,
and so is a right caption whose score is NaN.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from scipy.special import comb

_CITATION = """\
@inproceedings{thrush-etal-2022-winoground,
  title = {{Winoground}: Probing Vision and Language Models for Visio-Linguistic Compositionality},
  author = {Thrush, Tristan and Jiang, Ryan and Bartolo, Max and Singh, Amanpreet and Williams, Adina and Kiela, Douwe
    and Ross, Candace},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages = {5238--5248},
  year = {2022},
}
"""


class WinogroundScore(evaluate.Metric):
    """The four scores, and numbers of examples with ties and failures."""

    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=self._compute.__doc__,
            features=datasets.Features({"predictions": scores}),
            reference_urls=["https://arxiv.org/abs/2204.03162"],
        )

    def _compute(self, predictions: Sequence[Sequence[Sequence[float]]], official: bool = False) -> dict[str, float]:
        """
        Args:
            predictions: for each of n examples [[s_00, s_01], [s_10, s_11]], the log-probabilities of both captions
                given the first picture, then given the second. First belongs to first, second to second.
            official: ties and failures by the rules of Winoground's authors and of the BabyLM pipeline.

        Returns:
            `text_score`, `image_score`, `group_score` and `unpaired_score` between 0 and 1; `ties` and `nonfinite`,
            how many examples had two equal scores in a comparison, or a score that is not finite.

        Examples:
            >>> metric.compute(predictions=[[[-9.5, -11.0], [-12.5, -10.5]], [[-8.0, -7.0], [-8.0, -7.0]]])
            {'text_score': 0.5, 'image_score': 0.625, 'group_score': 0.5, 'unpaired_score': 0.75, 'ties': 1,
            'nonfinite': 0}
        """
        for i, example in enumerate(predictions):
            if [len(row or []) for row in example or []] != [2, 2]:
                raise ValueError(f"example {i} must hold two scores for each of two pictures, not {example}.")
        credit, ties, nonfinite = example_credit(predictions, official)
        means = {name: float(values.mean()) for name, values in credit.items()}
        return {**means, "ties": int(ties.sum()), "nonfinite": int(nonfinite.sum())}


def example_credit(
    scores: np.ndarray | Sequence[Sequence[Sequence[float]]], official: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """What every example is worth.

    Args:
        scores: (n, 2, 2), of example, picture and caption.
        official: the official rules.

    Returns:
        the scores by name, (n,) each in [0, 1]; and two boolean arrays (n,), tied and not finite.

    Raises:
        ValueError: there are no examples, or they are of another shape.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        raise ValueError("there are no examples to take a Winoground score of.")
    if values.shape[1:] != (2, 2):
        raise ValueError(f"scores must be of n examples, 2 pictures and 2 captions, not of shape {values.shape}.")
    right = values[:, [0, 1], [0, 1]]  # (n, 2): given either picture, its caption
    wrong = values[:, [0, 1], [1, 0]]  # (n, 2): given either picture, the other's caption
    wins = {
        "text_score": [_win(right[:, [picture]], wrong[:, [picture]]) for picture in (0, 1)],
        "image_score": [_win(right[:, [caption]], wrong[:, [1 - caption]]) for caption in (0, 1)],
        "group_score": [_win(right, wrong)],
    }
    nonfinite = ~np.isfinite(values).all(axis=(1, 2))
    ties = (right[:, :, None] == wrong[:, None, :]).any(axis=(1, 2)) & ~nonfinite
    if official:
        credit = {name: np.prod(np.floor(parts), axis=0) for name, parts in wins.items()}
        chosen = np.argmax(np.stack([right, wrong], axis=2).astype(np.float32), axis=2)  # (n, 2)
        return {**credit, "unpaired_score": (chosen == 0).mean(axis=1)}, ties, nonfinite
    credit = {name: np.prod(parts, axis=0) for name, parts in wins.items()}
    credit["unpaired_score"] = np.mean(wins["text_score"], axis=0)
    return {name: np.where(nonfinite, 0.0, worth) for name, worth in credit.items()}, ties, nonfinite


def _win(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """(n,): 1 where all `right` (n, r) are above all `wrong` (n, w); where a tie decides, the chance of it; else 0."""
    lowest, highest = right.min(axis=1), wrong.max(axis=1)
    tied_right, tied_wrong = ((scores == highest[:, None]).sum(axis=1) for scores in (right, wrong))
    chance = 1 / comb(tied_right + tied_wrong, tied_right)  # r! w! / (r + w)!
    return np.where(lowest > highest, 1.0, np.where(lowest == highest, chance, 0.0))
