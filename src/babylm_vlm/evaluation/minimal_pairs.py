"""Minimal pairs: which of two sentences is more probable, alone (grammar) or after a picture (grounding).

A file holds one JSON object a line, with BLiMP's field names:

    {"sentence_good": str, "sentence_bad": str, "UID": paradigm, "image": "relative/path.png", "pair": id}

`UID` is the file's stem where it is missing. With `image`, a path relative to the file's folder, the pair is grounded:
the good caption fits the picture, the bad one does not. Rows that share a `pair` id are one cluster for the bootstrap;
in a mirrored pair they are the same two captions, swapped, under two pictures, so that a model that does not look at
pictures is right exactly half of the time. Other fields are ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .choices import score_choices
from .rows import file_stem, json_rows, text_field


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences, of which a model should find the good one more probable.

    Attributes:
        good, bad: the sentences.
        uid: name of the paradigm (the phenomenon) the pair belongs to.
        image: the picture that the good sentence describes; None for a pair of text alone.
        pair: cluster for the bootstrap; pairs that are alone in theirs have `file:line` here.
    """

    good: str
    bad: str
    uid: str
    image: Path | None
    pair: str

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """As in `Item`: (prefix, completion), the good one first."""
        return ("", self.good), ("", self.bad)

    @property
    def images(self) -> tuple[Path, ...]:
        """As in `Item`: the picture of each option."""
        return () if self.image is None else (self.image, self.image)


def read_pairs(path: Path) -> list[MinimalPair]:
    """Read the minimal pairs of a file, or of all files directly inside a folder, in order of file name and line.

    Every picture is checked here, so that scoring does not stop halfway.

    Raises:
        FileNotFoundError: the path, or a picture, does not exist.
        ValueError: a file is empty or unreadable, a line is malformed, or a picture is unreadable; with `file:line`.
    """
    pairs = []
    checked_pictures: set[Path] = set()
    for file, where, row in json_rows(path):
        pair = _parse(row, file, where)
        if pair.image is not None and pair.image not in checked_pictures:
            check_picture(pair.image, where)
            checked_pictures.add(pair.image)
        pairs.append(pair)
    return pairs


def _parse(row: dict, file: Path, where: str) -> MinimalPair:
    """One row as a pair; `where` is `file:line`, for messages and as the cluster of a pair that names none."""
    good, bad = (text_field(row, name, where) for name in ("sentence_good", "sentence_bad"))
    image = row.get("image")
    if image is not None and (not isinstance(image, str) or not image):
        raise ValueError(f"{where}: the field image must be the path of a picture, not {image!r}.")
    return MinimalPair(
        good=good,
        bad=bad,
        uid=file_stem(file) if row.get("UID") is None else str(row["UID"]),
        image=None if image is None else file.parent / image,
        pair=where if row.get("pair") is None else str(row["pair"]),
    )


def check_picture(image: Path, where: str) -> None:
    """Raise unless the picture exists and its format and header can be read."""
    if not image.is_file():
        raise FileNotFoundError(
            f"{where}: the picture {image} does not exist; pictures are named relative to the file's folder."
        )
    try:
        with Image.open(image) as picture:
            picture.verify()
    except (OSError, SyntaxError) as error:  # what Pillow raises for files that it cannot read
        raise ValueError(f"{where}: the picture {image} cannot be read ({error}).") from error


def score_pairs(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    pairs: Sequence[MinimalPair],
    features: dict[Path, torch.Tensor] | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> np.ndarray:
    """Log-probabilities of both sentences of every pair, given its picture where it has one.

    A language-only model scores the captions without the pictures: on mirrored pairs that is the 50 % baseline.

    Args:
        model: language-only or multimodal.
        processor: a tokenizer, or for a multimodal model its processor.
        pairs: n minimal pairs.
        features: `picture_features` of the same tower for at least these pairs; computed here when None.
        batch_tokens: see `sequence_scores`.
        progress: show a bar while scoring.

    Returns:
        (n, 2) float64: column 0 the good sentences, column 1 the bad ones, nats.
    """
    scores = score_choices(model, processor, pairs, features, batch_tokens, progress)
    return np.array(scores, dtype=np.float64).reshape(len(pairs), 2)
