"""VQA (Goyal et al. 2017): which of eight answers to a question about a picture is the most probable?

Rows hold `question`, `target_ans`, seven `distractors`, and the picture: `image_id` in VQAv2, or `idx_in_hf_dataset`,
its row in the validation split. Scored as in the BabyLM pipeline: p(" " + answer | picture, question). Questions about
the same picture are one cluster for the bootstrap. The pictures are in the Hub's data set, or in a folder `images`
beside the file that holds a copy of it.
"""

from pathlib import Path

from ..data.pictures import HubPicture
from .choices import Item
from .rows import json_rows, number_field, text_field

PICTURES = "lmms-lab/VQAv2"  # as parquet; the pipeline's own source is a script, which `datasets` runs no more


def read(path: Path) -> list[Item]:
    """Items of all files in a folder. Errors as `json_rows`, or a field is missing or malformed."""
    items = []
    for file, where, row in json_rows(path):
        question, answer = (text_field(row, name, where) for name in ("question", "target_ans"))
        others = row.get("distractors")
        if not isinstance(others, list) or not others or not all(isinstance(text, str) for text in others):
            raise ValueError(f"{where}: the field distractors must be a list of texts, not {others!r}.")
        key, field = ("image_id", "image_id") if "image_id" in row else ("row", "idx_in_hf_dataset")
        place = int(number_field(row, field, where))
        picture = HubPicture(pictures_of(file.parent, PICTURES), "validation", "image", key, place)
        options = tuple((question, " " + text) for text in (answer, *others))
        items.append(Item("vqa", str(place), options, (picture,) * len(options)))
    return items


def pictures_of(folder: Path, hub_id: str) -> str:
    """Where a task's pictures are: its own folder `images`, if it has one, or the Hub."""
    local = folder / "images"
    return str(local) if local.is_dir() else hub_id
