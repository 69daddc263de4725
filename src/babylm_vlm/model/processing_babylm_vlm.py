"""Text and pictures in, tensors out.

- Text comes first: `processor(sentence)` tokenizes, as language-only evaluation code expects.
- `"<image> " + sentence` is the prompt with a picture; the processor puts `<image>` in front where it is missing and
  repeats it once per visual token.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoTokenizer, BatchEncoding, BatchFeature, ProcessorMixin
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17: at the top only with torchvision
from transformers.utils import cached_file


class BabylmVlmProcessor(ProcessorMixin):
    """A tokenizer and the vision tower's image processor.

    Args:
        image_processor: the tower's, as `AutoImageProcessor` loads it.
        tokenizer: with the special token `<image>` as `tokenizer.image_token`.
        visual_tokens: `<image>` tokens per picture (`config.visual_tokens`).
    """

    def __init__(self, image_processor, tokenizer, visual_tokens: int = 1, chat_template: str | None = None):
        self.visual_tokens = visual_tokens
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As `ProcessorMixin.from_pretrained`; without processor files, config.json says how pictures are read.

        Merging tools copy config.json and the tokenizer but no processor files.
        """
        path = pretrained_model_name_or_path
        hub = {name: kwargs[name] for name in ("revision", "cache_dir", "token", "subfolder") if name in kwargs}
        quiet = {"_raise_exceptions_for_missing_entries": False}
        if cached_file(path, "processor_config.json", **hub, **quiet) is not None:
            return super().from_pretrained(path, **kwargs)
        config = AutoConfig.from_pretrained(path, trust_remote_code=kwargs.get("trust_remote_code"), **hub)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "preprocessor_config.json").write_text(json.dumps(config.image_processor))
            image_processor = AutoImageProcessor.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
        return cls(image_processor, tokenizer, visual_tokens=config.visual_tokens)

    def __call__(self, text=None, images=None, return_tensors=None, **kwargs) -> BatchEncoding | BatchFeature:
        """Tokenize text, prepare pictures, or both.

        Args:
            text: a sentence, or a list of sentences (or of sentence pairs, without pictures). One sentence without
                `return_tensors` gives flat lists.
            images: a picture, or for a list of sentences one picture or list of pictures each.
            return_tensors: "pt", "np" or None (lists; pixel values are then a numpy array).
            **kwargs: to the tokenizer (`padding=True`, `padding_side=...`, `return_offsets_mapping=True`, ...).

        Returns:
            `input_ids` and `attention_mask` (B, T), and with pictures `pixel_values` (N, 3, H, W).

        Raises:
            ValueError: a text's `<image>` tokens and pictures differ in number.
        """
        encoding = BatchEncoding({})
        pictures = None
        if images is not None:
            pictures = [images] if text is None or isinstance(text, str) else list(images)
            pictures = [list(p) if isinstance(p, (list, tuple)) else [p] for p in pictures]
        if text is not None:
            sentences = [text] if isinstance(text, str) else list(text)
            if pictures is not None:
                sentences = self._with_image_tokens(sentences, pictures)
            sentences = [self._repeat_image_token(sentence) for sentence in sentences]
            encoding = self.tokenizer(
                sentences[0] if isinstance(text, str) and return_tensors is None else sentences,
                return_tensors=return_tensors,
                **kwargs,
            )
        if pictures is not None:
            flat = [picture for row in pictures for picture in row]
            pixels = self.image_processor(flat, return_tensors=return_tensors or "np")["pixel_values"]
            # `.to(dtype=...)` of a BatchFeature, which pipelines call, leaves token ids whole numbers
            encoding = BatchFeature({**encoding, "pixel_values": pixels if return_tensors else np.asarray(pixels)})
        return encoding

    def _with_image_tokens(self, sentences: list[str], pictures: list[list]) -> list[str]:
        """Put `<image>` in front of sentences that lack it; count those that have it."""
        if len(sentences) != len(pictures):
            raise ValueError(
                f"There are {len(sentences)} texts but pictures for {len(pictures)}: give each text its picture, "
                "or a list of its pictures."
            )
        token, out = self.tokenizer.image_token, []
        for number, (sentence, row) in enumerate(zip(sentences, pictures, strict=True)):
            count = sentence.count(token)
            if count == 0:
                sentence = f"{token} " * len(row) + sentence.removeprefix(" ")
            elif count != len(row):
                raise ValueError(f"Text {number} has {count} {token} tokens but {len(row)} pictures: {sentence!r}.")
            out.append(sentence)
        return out

    def _repeat_image_token(self, sentence):
        """Write `<image>` once per visual token. Sentence pairs carry no pictures and pass unchanged."""
        token = self.tokenizer.image_token
        return sentence.replace(token, token * self.visual_tokens) if isinstance(sentence, str) else sentence
