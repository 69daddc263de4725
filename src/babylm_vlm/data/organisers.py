"""Captions in the BabyLM challenge's own layout: no pictures, but the features that DINOv2 gave them.

NAME_captions.json            a list of captions
NAME_dino_v2_states*.npy      (captions, width): a feature for each, in one file or in several (`_1of2`, `_2of2`)
"""

import glob
import json
import re
from bisect import bisect_right
from pathlib import Path

import numpy as np
import torch


class ArrayFeatures:
    """Features in `.npy` files, read through a memory map as a tensor (pictures, 1, width) would be.

    Args:
        files: arrays of numbers (pictures, width), one after the other. Pickled objects are not loaded.

    Raises:
        ValueError: a file holds something else, or the widths differ.
    """

    def __init__(self, files: list[Path]):
        self.arrays = [_memory_map(file) for file in files]
        widths = sorted({array.shape[1] for array in self.arrays})
        if len(widths) > 1:
            raise ValueError(f"The features in {files[0].parent} have different widths: {widths}.")
        self.ends = np.cumsum([len(array) for array in self.arrays]).tolist()
        self.shape = torch.Size([self.ends[-1], 1, widths[0]])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> torch.Tensor:
        """Feature of a picture (1, width) in fp32."""
        file = bisect_right(self.ends, index)
        row = self.arrays[file][index - self.ends[file]]
        return torch.from_numpy(row.astype(np.float32))[None]


def _memory_map(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged or no array of numbers ({error}).") from error
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{file} must hold floats (pictures, width), not {array.dtype} of shape {array.shape}.")
    return array


def is_organisers_layout(folder: Path) -> bool:
    """Whether a folder holds captions in this layout."""
    return any(folder.glob("*_captions.json"))


def read_organisers_captions(folder: Path) -> tuple[list[str], list[str], ArrayFeatures]:
    """All captions of a folder, a name for each, and their features.

    Raises:
        FileNotFoundError: captions have no features.
        ValueError: a file is not what it should be, or there are not as many features as captions.
    """
    captions, names, arrays = [], [], []
    for file in sorted(folder.glob("*_captions.json")):
        try:
            texts = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is no JSON ({error}).") from error
        if not isinstance(texts, list):
            raise ValueError(f"{file} must be a JSON list of captions.")
        name = file.name.removesuffix("_captions.json")
        parts = folder.glob(f"{glob.escape(name)}_dino_v2_states*.npy")  # in order of their numbers, 2 before 10
        own = sorted(parts, key=lambda part: [int(n) for n in re.findall(r"\d+", part.name.removeprefix(name))])
        if not own:
            raise FileNotFoundError(f"{file} has captions without features: {name}_dino_v2_states.npy is missing.")
        found = len(ArrayFeatures(own))
        if found != len(texts):
            raise ValueError(f"{file} has {len(texts):,} captions, but its features are {found:,}: a part is missing.")
        captions += texts
        names += [f"{file.name}:{number}" for number in range(len(texts))]
        arrays += own
    return captions, names, ArrayFeatures(arrays)
