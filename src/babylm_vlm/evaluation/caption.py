"""Greedy captions."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..data.captions import open_picture
from .choices import takes_pictures


@torch.inference_mode()
def caption_pictures(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    pictures: Sequence[Path],
    prompt: str = "",
    max_new_tokens: int = 20,
) -> list[str]:
    """The most probable continuation of the prompt under each picture, token by token.

    Raises:
        FileNotFoundError, ValueError: a picture is missing or unreadable, or the model takes no pictures.
    """
    if not takes_pictures(model):
        raise ValueError("This model is language-only: give a multimodal or a merged one.")
    images = [open_picture(Path(picture)) for picture in pictures]
    text = [f"{processor.tokenizer.image_token} {prompt}".strip()] * len(images)
    inputs = processor(text=text, images=images, return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return [caption.strip() for caption in processor.tokenizer.batch_decode(output, skip_special_tokens=True)]
