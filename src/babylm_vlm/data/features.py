"""Pooled vision features: the frozen tower sees each picture once."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..model import BabylmVlmForConditionalGeneration
from .captions import open_picture
from .pictures import HubPicture


def picture_features(
    model: BabylmVlmForConditionalGeneration,
    image_processor,
    pictures: Sequence[Path | HubPicture | Image.Image],
    batch_size: int = 64,
) -> torch.Tensor:
    """Pooled features (pictures, g*g, vision_hidden_size) in fp32 on the CPU, with a progress bar.

    Raises:
        FileNotFoundError, ValueError: a picture is missing or cannot be read.
    """
    features = []
    for start in tqdm(range(0, len(pictures), batch_size), desc="pooled features", unit="batch", leave=False):
        batch = [open_picture(pictures[i]) for i in range(start, min(start + batch_size, len(pictures)))]
        pixels = image_processor(batch, return_tensors="pt")["pixel_values"]
        features.append(model.pooled_features(pixels).float().cpu())
    return torch.cat(features)
