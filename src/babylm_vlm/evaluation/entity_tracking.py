"""Entity tracking (Kim & Schuster 2023): what is in the box after some operations, out of five answers.

Rows hold `input_prefix`, `options` (the right one first) and `numops`. A paradigm is a file and a number of
operations; the score is the mean over files (regular, ambiref, move_contents) of the mean over their numbers of
operations."""

from pathlib import Path

from .choices import Item
from .rows import file_stem, json_rows, number_field, text_field


def read(path: Path) -> list[Item]:
    """Items of all files in a folder. Errors as `json_rows`, or a field is missing or malformed."""
    items = []
    for file, where, row in json_rows(path):
        prefix = text_field(row, "input_prefix", where)
        operations = int(number_field(row, "numops", where))
        options = row.get("options")
        if not isinstance(options, list) or len(options) < 2 or not all(isinstance(text, str) for text in options):
            raise ValueError(f"{where}: the field options must be a list of two or more texts, not {options!r}.")
        uid = f"{file_stem(file)}_{operations}_ops"
        items.append(Item(uid, where, tuple((prefix, option) for option in options)))
    return items


def split_of(uid: str) -> str:
    """`move_contents_3_ops` belongs to `move_contents`."""
    return uid.rsplit("_", 2)[0]
