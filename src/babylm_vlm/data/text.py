"""Text: read sentences, count words, pack tokens into blocks."""

import gzip
import zlib
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase


def read_sentences(source: str, column: str = "text") -> list[str]:
    """Non-empty lines of a `.txt` or `.txt.gz` file, or of the text column of a `datasets` set's train split.

    Raises:
        FileNotFoundError: a file of that name is not there.
        ValueError: it holds no text, or cannot be read.
    """
    if source.endswith((".txt", ".txt.gz")):
        if not Path(source).is_file():
            raise FileNotFoundError(f"There is no text file {source}: check the recipe's key 'text'.")
        try:
            with (gzip.open if source.endswith(".gz") else open)(source, "rt", encoding="utf-8") as file:
                lines = list(file)
        except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
            raise ValueError(f"The text file {source} is damaged or no UTF-8 text ({error}).") from error
    else:
        lines = [line for row in load_dataset(source, split="train")[column] for line in row.splitlines()]
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        raise ValueError(f"The corpus {source} is empty: it has no line with text.")
    if any("<image>" in sentence for sentence in sentences):
        raise ValueError(f"The corpus {source} holds the reserved word <image>: remove it.")
    return sentences


def count_words(sentences: list[str]) -> int:
    """Whitespace-separated words, as the BabyLM challenge counts them."""
    return sum(len(sentence.split()) for sentence in sentences)


def first_words(sentences: list[str], words: int | None) -> list[str]:
    """The first sentences that together have at most this many words, at least one; all for None."""
    if words is None:
        return sentences
    total = list(accumulate(len(sentence.split()) for sentence in sentences))
    return sentences[: max(1, bisect_right(total, words))]


class TextBlocks(Dataset):
    """Sentences as one stream `<s> ... </s> <s> ... </s>`, cut into blocks of equal length without padding.

    Args:
        sentences: one sentence or utterance each.
        tokenizer: puts `<s>` in front itself.
        block_size: tokens in a block; what is left over at the end is dropped.

    Raises:
        ValueError: the text does not fill one block.
    """

    def __init__(self, sentences: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int):
        stream = []
        for ids in tokenizer(sentences)["input_ids"]:
            stream.extend(ids)
            stream.append(tokenizer.eos_token_id)
        blocks = len(stream) // block_size
        if blocks == 0:
            raise ValueError(f"The text has {len(stream)} tokens, fewer than one block of {block_size}: add text.")
        self.blocks = np.array(stream[: blocks * block_size], dtype=np.int32).reshape(blocks, block_size)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.from_numpy(self.blocks[index]).long()}
