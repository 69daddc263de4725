"""WUG tests: does a model prefer a form of an invented word as often as people do?

Adjective nominalisation (Hofmann et al. 2025; -ity or -ness) and past tense. Rows hold `sentences`, two texts with a
tab between, and `ratio`, how often people chose the first. The score is Spearman's ρ between that ratio and the
model's p = softmax of the two log-probabilities, over all items (metrics/surprisal_correlation).
"""

from pathlib import Path

from .choices import Item
from .rows import file_stem, json_rows, number_field, text_field


def read(path: Path) -> list[Item]:
    """Items of all files in a folder. Errors as `json_rows`, or a field is missing or malformed."""
    items = []
    for file, where, row in json_rows(path):
        forms = text_field(row, "sentences", where).split("\t")
        if len(forms) != 2:
            raise ValueError(f"{where}: the field sentences must hold two texts with a tab between.")
        ratio = number_field(row, "ratio", where)
        uid = "wug_past" if "past" in file_stem(file) else "wug_adj"
        items.append(Item(uid, where, tuple(("", form) for form in forms), facts={"ratio": ratio}))
    return items
