"""Minimal pairs: which of two sentences is more probable, alone (grammar) or after a picture (grounding).

A file holds one JSON object a line, with BLiMP's field names:

    {"sentence_good": str, "sentence_bad": str, "UID": paradigm, "image": "relative/path.png", "pair": id}

`UID` is the file's stem where it is missing. With `image`, a path relative to the file's folder, the pair is grounded:
the good caption fits the picture, the bad one does not. Rows that share a `pair` id are one cluster for the bootstrap;
in a mirrored pair they are the same two captions, swapped, under two pictures, so that a model that does not look at
pictures is right exactly half of the time. Other fields are ignored.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..data import features as data_features
from ..model import BabylmVlmConfig
from .scoring import sequence_scores

SUFFIXES = (".jsonl", ".jsonl.gz")


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


def file_stem(file: Path) -> str:
    """`a/b.jsonl.gz` and `a/b.jsonl` are both `b`."""
    return file.name.removesuffix(".gz").removesuffix(".jsonl")


def pair_files(path: Path) -> list[Path]:
    """The `.jsonl` and `.jsonl.gz` files directly inside a folder, sorted; or the file itself.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: it is no such file, holds none, or holds one twice (plain and compressed).
    """
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"{path} is not a .jsonl or .jsonl.gz file.")
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; name a .jsonl or .jsonl.gz file, or a folder of them.")
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
    if not files:
        raise ValueError(f"{path} holds no .jsonl or .jsonl.gz file.")
    stems = [file_stem(file) for file in files]
    for file, stem in zip(files, stems, strict=True):
        if stems.count(stem) > 1:
            raise ValueError(f"{path} holds {stem}.jsonl both plain and compressed ({file.name}); remove one of them.")
    return files


def read_pairs(path: Path) -> list[MinimalPair]:
    """Read the minimal pairs of a file, or of all files directly inside a folder, in order of file name and line.

    Every picture is checked here, so that scoring does not stop halfway.

    Raises:
        FileNotFoundError: the path, or a picture, does not exist.
        ValueError: a file is empty or unreadable, a line is malformed, or a picture is unreadable; with `file:line`.
    """
    pairs = []
    checked_pictures: set[Path] = set()
    for file in pair_files(Path(path)):
        before = len(pairs)
        for number, line in _numbered_lines(file):
            pair = _parse_line(line, file, f"{file}:{number}")
            if pair.image is not None and pair.image not in checked_pictures:
                _check_picture(pair.image, f"{file}:{number}")
                checked_pictures.add(pair.image)
            pairs.append(pair)
        if len(pairs) == before:
            raise ValueError(f"{file} is empty; it should hold one minimal pair a line.")
    return pairs


def _numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines that are not blank."""
    opener = gzip.open if file.name.endswith(".gz") else open
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is not a whole gzip file ({error}); compress or download it again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error


def _parse_line(line: str, file: Path, where: str) -> MinimalPair:
    """One line as a pair; `where` is `file:line`, for messages and as the cluster of a pair that names none."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error.msg} at column {error.colno}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a line must be a JSON object, with sentence_good and sentence_bad.")
    for field in ("sentence_good", "sentence_bad"):
        if field not in row:
            raise ValueError(f"{where}: the field {field} is missing; is this a file of minimal pairs?")
        if not isinstance(row[field], str) or not row[field].strip():
            raise ValueError(f"{where}: the field {field} must be a sentence, not {row[field]!r}.")
    image = row.get("image")
    if image is not None and (not isinstance(image, str) or not image):
        raise ValueError(f"{where}: the field image must be the path of a picture, not {image!r}.")
    return MinimalPair(
        good=row["sentence_good"],
        bad=row["sentence_bad"],
        uid=file_stem(file) if row.get("UID") is None else str(row["UID"]),
        image=None if image is None else file.parent / image,
        pair=where if row.get("pair") is None else str(row["pair"]),
    )


def _check_picture(image: Path, where: str) -> None:
    """Raise unless the picture exists and its format and header can be read."""
    if not image.is_file():
        raise FileNotFoundError(
            f"{where}: the picture {image} does not exist; image is relative to the file's folder."
        )
    try:
        with Image.open(image) as picture:
            picture.verify()
    except (OSError, SyntaxError) as error:  # what Pillow raises for files that it cannot read
        raise ValueError(f"{where}: the picture {image} cannot be read ({error}).") from error


def takes_pictures(model: PreTrainedModel) -> bool:
    """Whether the model takes pictures; a language-only model does not."""
    return model.config.model_type == BabylmVlmConfig.model_type


def picture_features(
    model: PreTrainedModel, processor: ProcessorMixin, pairs: Sequence[MinimalPair]
) -> dict[Path, torch.Tensor]:
    """Pooled vision features of every picture in `pairs`, each computed once.

    They depend on the frozen tower alone, so all models of a sweep share them.

    Returns:
        for each picture its features (g*g, vision_hidden_size), fp32, on the CPU; nothing for pairs of text alone.

    Raises:
        FileNotFoundError, ValueError: a picture is missing or cannot be read.
    """
    paths = list(dict.fromkeys(pair.image for pair in pairs if pair.image is not None))
    if not paths:
        return {}
    pooled = data_features.picture_features(model, processor.image_processor, paths)
    return dict(zip(paths, pooled, strict=True))


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
    scores = np.empty((len(pairs), 2), dtype=np.float64)
    looks = takes_pictures(model)
    grounded = [i for i, pair in enumerate(pairs) if looks and pair.image is not None]
    text_only = [i for i, pair in enumerate(pairs) if not (looks and pair.image is not None)]
    if grounded and features is None:
        features = picture_features(model, processor, [pairs[i] for i in grounded])
    for chosen in (grounded, text_only):
        if not chosen:
            continue
        sentences = [pairs[i].good for i in chosen] + [pairs[i].bad for i in chosen]
        pictures = [features[pairs[i].image] for i in chosen] * 2 if chosen is grounded else None
        both = sequence_scores(model, processor, sentences, pictures, batch_tokens, progress)
        scores[chosen] = both.reshape(2, len(chosen)).T
    return scores
