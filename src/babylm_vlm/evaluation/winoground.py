"""Winoground (Thrush et al. 2022): two pictures and two captions of the same words; which belongs to which?

A row is one of an example's two pictures, `image_key` (`image_0` or `image_1`) in row `image_idx` of the data set,
with `caption_0`, which fits it, and `caption_1`, which fits the other picture. The BabyLM pipeline's score is
unpaired: is p(caption_0 | picture) > p(caption_1 | picture)? The paper's scores take both rows of an example together
(metrics/winoground_score).
The pictures are in the Hub's data set, to which access is granted on request, or in a folder `images` beside the file
that holds a copy of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..data.pictures import HubPicture
from .choices import Item
from .rows import json_rows, number_field, text_field
from .vqa import pictures_of

PICTURES = "facebook/winoground"
KEYS = ("image_0", "image_1")


class Row(Protocol):
    """What the paper's scores need of an outcome."""

    pair: str
    scores: tuple[float, ...]
    facts: dict[str, float]


def read(path: Path) -> list[Item]:
    """Items of all files in a folder; the two of an example are one cluster.

    Raises:
        FileNotFoundError, ValueError: as `json_rows`, a field is missing or malformed, or the captions of an example's
            two pictures are not each other's.
    """
    items: list[Item] = []
    captions_of: dict[int, set[tuple[str, str]]] = {}
    for file, where, row in json_rows(path):
        captions = tuple(text_field(row, f"caption_{i}", where) for i in (0, 1))
        example, key = int(number_field(row, "image_idx", where)), row.get("image_key")
        if key not in KEYS:
            raise ValueError(f"{where}: the field image_key must be image_0 or image_1, not {key!r}.")
        known = captions_of.setdefault(example, set())
        if known and known != {captions[::-1]}:
            raise ValueError(
                f"{where}: image_idx {example} has other captions elsewhere; its two rows must have the same two, "
                "each with the one that fits its picture as caption_0."
            )
        known.add(captions)
        picture = HubPicture(pictures_of(file.parent, PICTURES), "test", key, "row", example)
        options = tuple(("", caption) for caption in captions)
        facts = {"picture": float(KEYS.index(key))}
        items.append(Item("winoground", str(example), options, (picture, picture), facts))
    return items


def paired(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Score (2, 2) of each picture with each caption, of every example of which both rows are there.

    Entry [i, c] is log p(caption that fits picture c | picture i).
    """
    found: dict[str, dict[int, tuple[float, ...]]] = {}
    for row in rows:
        found.setdefault(row.pair, {})[int(row.facts["picture"])] = row.scores
    complete = {example: scores for example, scores in found.items() if len(scores) == len(KEYS)}
    return {example: np.array([scores[0], scores[1][::-1]]) for example, scores in complete.items()}
