"""Text: read sentences, count words, pack tokens into blocks."""

import gzip
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from datasets import Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

WHITESPACE = np.array([code for code in range(0x3001) if chr(code).isspace()], dtype=np.uint32)  # all of Unicode's
FILES = (".txt", ".gz", ".train", ".parquet")  # what ends so is no id of a `datasets` set
CHUNK = 10_000  # sentences that are tokenized at a time


def read_sentences(source: str, column: str = "text") -> list[str]:
    """Non-empty lines of a text file (`.gz`: compressed), or of the text column of a `.parquet` file or of the train
    split of a `datasets` set.

    Raises:
        FileNotFoundError: a file of that name is not there.
        ValueError: it holds no text, or cannot be read.
    """
    is_file = Path(source).is_file()
    if source.endswith(FILES) and not is_file:
        raise FileNotFoundError(f"There is no text file {source}: check the recipe's key 'text'.")
    if is_file and not source.endswith(".parquet"):
        opener = gzip.open if source.endswith(".gz") else open
        try:
            with opener(source, "rt", encoding="utf-8") as file:
                lines = list(file)
        except UnicodeDecodeError as error:
            with opener(source, "rb") as file:
                number = next(number for number, line in enumerate(file, start=1) if not _is_utf8(line))
            raise ValueError(f"{source}:{number} is no UTF-8 text ({error.reason}): convert the file.") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"The text file {source} is damaged ({error}).") from error
    else:
        lines = [line for text in _text_column(source, column) for line in (text or "").splitlines()]
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        raise ValueError(f"The corpus {source} is empty: it has no line with text.")
    if any("<image>" in sentence for sentence in sentences):
        raise ValueError(f"The corpus {source} holds the reserved word <image>: remove it.")
    return sentences


def _text_column(source: str, column: str) -> Sequence[str | None]:
    files = {"path": "parquet", "data_files": source} if source.endswith(".parquet") else {"path": source}
    try:
        rows = load_dataset(**files, split="train")
    except (ValueError, DatasetGenerationError) as error:  # the first is also Arrow's
        raise ValueError(f"The corpus {source} cannot be read ({error.__cause__ or error}).") from error
    if rows.features.get(column) not in (Value("string"), Value("large_string")):
        raise ValueError(
            f"The corpus {source} has no column '{column}' of text: set 'text_column' to one of "
            f"{', '.join(rows.column_names)}."
        )
    return rows[column]


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


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

    Attributes:
        words: (blocks,) words in each block; one that two blocks share counts where it begins.
        tokens: (blocks,) tokens in each block.

    Raises:
        ValueError: the text does not fill one block.
    """

    def __init__(self, sentences: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int):
        parts = [
            tokenize_and_count(sentences[start : start + CHUNK], tokenizer)
            for start in range(0, len(sentences), CHUNK)
        ]
        stream, words = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        blocks = len(stream) // block_size
        if blocks == 0:
            raise ValueError(f"The text has {len(stream)} tokens, fewer than one block of {block_size}: add text.")
        self.blocks = stream[: blocks * block_size].reshape(blocks, block_size)
        self.words = words[: blocks * block_size].reshape(blocks, block_size).sum(axis=1)
        self.tokens = np.full(blocks, block_size)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.from_numpy(self.blocks[index]).long()}


def tokenize_and_count(sentences: list[str], tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of sentences, each ended by `</s>`, and how many whitespace-separated words begin in each token.

    Returns:
        Two arrays (tokens,); the second adds up to `count_words(sentences)`.
    """
    encoded = tokenizer(sentences, return_offsets_mapping=True)
    tokens, ends = [], []  # ends: of each token, as a place in all sentences written one after the other
    start = 0
    for sentence, ids, offsets in zip(sentences, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        tokens += [*ids, tokenizer.eos_token_id]
        ends += [start + end for _, end in offsets]
        start += len(sentence)
        ends.append(start)
    characters = np.frombuffer("".join(sentences).encode("utf-32-le"), dtype=np.uint32)
    inside = ~np.isin(characters, WHITESPACE)
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    starts = np.cumsum([0, *map(len, sentences[:-1])])
    begins[starts] = inside[starts]  # a sentence begins a word, whatever stands before it
    before = np.concatenate([[0], np.cumsum(begins)])[np.maximum.accumulate(ends)]
    return np.array(tokens, dtype=np.int32), np.diff(before, prepend=0).astype(np.int32)
