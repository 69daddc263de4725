"""Pictures inside a `datasets` set, on the Hub or in a folder of parquet files."""

from dataclasses import dataclass
from functools import cache
from threading import Lock

from datasets import Dataset, load_dataset
from datasets import Image as ImageFeature

LOADING = Lock()
"""So that a set is loaded once, however many threads read pictures of it."""


@dataclass(frozen=True, order=True)
class HubPicture:
    """One picture of a set, which is loaded when the first of its pictures is read.

    Attributes:
        source: id of the set on the Hub, or a folder of parquet files.
        split: such as `test`.
        column: that holds the picture.
        key: `row`, or the name of a column of integers.
        value: number of the picture's row; or what it has in that column (then the first such row is taken).
    """

    source: str
    split: str
    column: str
    key: str
    value: int

    @property
    def name(self) -> str:
        """What a file of this picture would be called."""
        return f"{self.column}_{self.key}_{self.value}"

    def read_bytes(self) -> bytes:
        """The picture as it is encoded in the set.

        Raises:
            FileNotFoundError: the set cannot be had (the message says how to get access), or lacks the picture.
        """
        with LOADING:
            row = self.value if self.key == "row" else _rows(self.source, self.split, self.key).get(self.value, -1)
            pictures = _encoded(self.source, self.split, self.column)
        if not 0 <= row < len(pictures):
            raise FileNotFoundError(f"{self.source} has no picture with {self.key} {self.value} in its {self.split}.")
        return pictures[row][self.column]["bytes"]


@cache
def _encoded(source: str, split: str, column: str) -> Dataset:
    """The column of pictures, not decoded."""
    rows = _load(source, split).select_columns([column])
    return rows.cast_column(column, ImageFeature(decode=False))


@cache
def _rows(source: str, split: str, key: str) -> dict[int, int]:
    """Value of a column to the first row that has it."""
    values = _load(source, split)[key]
    return {value: row for row, value in reversed(list(enumerate(values)))}


@cache
def _load(source: str, split: str) -> Dataset:
    try:
        return load_dataset(source, split=split)
    except (OSError, RuntimeError, ValueError) as error:  # not there, no access, or no longer readable
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise FileNotFoundError(
            f"The pictures {source} cannot be had ({reason}). If the set is gated, agree to its terms at "
            f"https://huggingface.co/datasets/{source} and log in with `hf auth login`; or copy its parquet files "
            "into a folder `images` beside the task's file."
        ) from error
