"""COMPS (Misra et al. 2023): is a property more probable of a concept that has it than of one that does not?

Rows hold `prefix_acceptable`, `prefix_unacceptable` and `property_phrase`, which is scored after either prefix. A
paradigm is a file: base, wugs, wugs_dist_before, wugs_dist_in_between.
"""

from pathlib import Path

from .choices import Item
from .rows import file_stem, json_rows, text_field


def read(path: Path) -> list[Item]:
    """Items of all files in a folder. Errors as `json_rows`, or a field is missing."""
    items = []
    for file, where, row in json_rows(path):
        right, wrong, phrase = (
            text_field(row, name, where) for name in ("prefix_acceptable", "prefix_unacceptable", "property_phrase")
        )
        uid = file_stem(file).removeprefix("comps_").replace("-", "_")
        items.append(Item(uid, where, ((right + " ", phrase), (wrong + " ", phrase))))
    return items
