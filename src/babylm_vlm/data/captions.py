"""Captioned pictures: the `imagefolder` or the challenge's layout on disk, or a `datasets` set with such columns."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from datasets import Image as ImageFeature
from datasets import load_dataset
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .organisers import ArrayFeatures, is_organisers_layout, read_organisers_captions
from .pictures import HubPicture


@dataclass
class CaptionedPictures:
    """Pictures, each once, and captions that point to them.

    Attributes:
        pictures: paths or PIL images.
        captions: `(index into pictures, caption)`, in the order of the data.
        names: of the pictures: their paths in the folder, or the data set's row numbers.
        features: of the pictures, where these are not there themselves (then `pictures` is empty).
    """

    pictures: Sequence[Path | Image.Image]
    captions: list[tuple[int, str]]
    names: list[str]
    features: ArrayFeatures | None = None


def read_captions(source: str, image_column: str = "image", caption_column: str = "text") -> CaptionedPictures:
    """Read a local folder with `metadata.jsonl` (`file_name`, `text`) or in the challenge's layout (organisers.py), or
    the train split of a `datasets` set.

    A picture may have several captions: several rows of `metadata.jsonl`, or a list in the caption column.

    Raises:
        FileNotFoundError: no such folder or data set, no `metadata.jsonl`, or a caption's picture is not there.
        ValueError: a row lacks a field or has no caption of words, or there is no row.
    """
    if is_organisers_layout(Path(source)):
        texts, names, features = read_organisers_captions(Path(source))
        for name, text in zip(names, texts, strict=True):
            check_caption(text, f"{source}/{name}")
        found = CaptionedPictures([], list(enumerate(texts)), names, features)
    elif Path(source).exists() or source.startswith((".", "/")):
        found = _read_imagefolder(Path(source), caption_column)
    else:
        try:
            rows = load_dataset(source, split="train")
        except OSError as error:
            reason = str(error).partition("\n")[0]
            raise FileNotFoundError(
                f"There are no captions {source}: neither a folder here nor a data set on the Hub. ({reason})"
            ) from error
        for key, column in (("caption_column", caption_column), ("image_column", image_column)):
            if column not in rows.column_names:
                raise ValueError(f"{source} has no column {column!r}, but {', '.join(rows.column_names)}: set {key}.")
        rows, captions = rows.cast_column(image_column, ImageFeature()), []
        for index, texts in enumerate(rows[caption_column]):
            for text in texts if isinstance(texts, list) else [texts]:
                check_caption(text, f"{source}, row {index},")
                captions.append((index, text))
        found = CaptionedPictures(rows[image_column], captions, [f"{source}/{row}" for row in range(len(rows))])
    if not found.captions:
        raise ValueError(f"The captions in {source} are empty: there is no picture with a caption.")
    return found


def _read_imagefolder(folder: Path, caption_column: str) -> CaptionedPictures:
    metadata = folder / "metadata.jsonl"
    if not metadata.is_file():
        raise FileNotFoundError(
            f"There is no {metadata}: captions are a folder of pictures with a metadata.jsonl of rows "
            f'{{"file_name": "x.png", "{caption_column}": "a caption"}}.'
        )
    pictures: dict[str, int] = {}
    captions = []
    for number, line in enumerate(metadata.open(encoding="utf-8"), start=1):
        try:
            row = json.loads(line)
            name, caption = row["file_name"], row[caption_column]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{metadata}:{number} is not a JSON object with 'file_name' and '{caption_column}' ({error})."
            ) from error
        check_caption(caption, f"{metadata}:{number}")
        if name not in pictures and not (folder / name).is_file():
            raise FileNotFoundError(
                f"{metadata}:{number} has a caption without its picture: {folder / name} is missing."
            )
        captions.append((pictures.setdefault(name, len(pictures)), caption))
    return CaptionedPictures([folder / name for name in pictures], captions, list(pictures))


def check_caption(caption: str | None, where: str) -> None:
    """Raise ValueError unless it is text; `<image>` is put in front later."""
    if not isinstance(caption, str) or not caption.strip() or "<image>" in caption:
        raise ValueError(f"{where} needs a caption of words, without <image>, not {caption!r}.")


def open_picture(picture: Path | HubPicture | Image.Image) -> Image.Image:
    """The picture in RGB.

    Raises:
        FileNotFoundError: there is no such file, or the set that holds the picture cannot be had.
        ValueError: the file is not a picture that can be read.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if isinstance(picture, Path) and not picture.is_file():
        raise FileNotFoundError(f"There is no picture {picture}.")
    encoded = picture.read_bytes()
    try:
        with Image.open(BytesIO(encoded)) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"The picture {picture} cannot be read: it is damaged or no picture at all.") from error


class CaptionRows(Dataset):
    """One caption a row: `<s> <image> caption </s>` with its picture's pooled feature.

    Args:
        captions: `(index into features, caption)`.
        features: pooled features (pictures, g*g, vision_hidden_size), in memory or stored.
        tokenizer: with `tokenizer.image_token`; puts `<s>` in front itself.

    Attributes:
        words: (captions,) whitespace-separated words in each caption.
        tokens: (captions,) tokens in each row.
    """

    def __init__(self, captions: list[tuple[int, str]], features: torch.Tensor, tokenizer: PreTrainedTokenizerBase):
        self.features = features
        self.pictures = [index for index, _ in captions]
        image_tokens = tokenizer.image_token * features.shape[1]
        prompts = [f"{image_tokens} {caption}" for _, caption in captions]
        self.rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(prompts)["input_ids"]]
        self.words = np.array([len(caption.split()) for _, caption in captions])
        self.tokens = np.array([len(row) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor(self.rows[index]), "image_features": self.features[self.pictures[index]]}


class CaptionBlocks(Dataset):
    """Captions in rows that weigh what a block of text weighs, so that both are mixed by words and not by rows.

    Args:
        captions: one caption a row.
        block_size: a row is as many captions as together have no more than so many tokens, or a single longer one.
        seed: which captions share a row is drawn anew for each.

    Attributes:
        words: (rows,) words in each row.
        tokens: (rows,) tokens in each row.
    """

    def __init__(self, captions: CaptionRows, block_size: int, seed: int):
        self.captions = captions
        self.rows: list[list[int]] = []
        left = 0
        for index in torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed)).tolist():
            if captions.tokens[index] > left:
                self.rows.append([])
                left = block_size
            self.rows[-1].append(index)
            left -= captions.tokens[index]
        self.words = np.array([captions.words[row].sum() for row in self.rows])
        self.tokens = np.array([captions.tokens[row].sum() for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[dict[str, torch.Tensor]]:
        """The captions of a row, as `CaptionRows` gives them."""
        return [self.captions[i] for i in self.rows[index]]
