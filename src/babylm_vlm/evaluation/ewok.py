"""EWoK (Ivanova et al. 2024): does a target sentence fit its own context better than the other target does?

Rows hold `Context1`, `Target1`, `Target2` and `Domain`; the files are the filtered ones of the BabyLM pipeline, in
which each item comes again with contexts and targets exchanged. Scored as there: p(Target1 | Context1) against
p(Target2 | Context1). Items with the same two targets, in either direction, are one cluster for the bootstrap.
"""

from pathlib import Path

from .choices import Item
from .rows import json_rows, text_field


def read(path: Path) -> list[Item]:
    """Items of all files in a folder; a paradigm is a domain. Errors as `json_rows`, or a field is missing."""
    items = []
    for file, where, row in json_rows(path):
        context, fitting, other, domain = (
            text_field(row, name, where) for name in ("Context1", "Target1", "Target2", "Domain")
        )
        texts = sorted([fitting, other])
        options = ((context, " " + fitting), (context, " " + other))
        items.append(Item(domain, f"{file.name}: {texts}", options))
    return items
