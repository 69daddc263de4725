"""Add pictures of single things with their names to a folder of captioned scenes, as a picture book has them.

    python scripts/naming_pictures.py data/scenes/captions data/{tuxpaint_stamps,openmoji_128,mulberry_128} \\
        --output-dir data/pictures [--size 112]

SCENES is an imagefolder as scripts/abstract_scenes_to_imagefolder.py writes it. Each SET holds images_128.zip and a
table of its pictures:
  captions.tsv    image, category, caption              Tux Paint's stamps (GPL-2); letters, numbers and coins left out
  labels.tsv      image, group, subgroup, annotation    OpenMoji (CC BY-SA 4.0)
                  image, label, grammar, category       Mulberry symbols (CC BY-SA 4.0); nouns only

What is written is one imagefolder: the scenes, then the named pictures, with a `metadata.jsonl` of file_name, text and
facts. A name is in the form of the scenes' captions: lower case, no final stop; its number ("soldier 2b") is dropped.
Its facts, for scripts/train_vision_tower.py, are its words and its category.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from abstract_scenes_to_imagefolder import plain
from PIL import Image
from tqdm import tqdm

from babylm_vlm.files import check_new_folder, new_folder

MARKER = "metadata.jsonl"
SMALL_WORDS = {"a", "an", "and", "in", "of", "on", "the", "to", "with"}


def name_of(row: dict[str, str]) -> str:
    """A picture's name, from a row of any of the tables: "A frog. It is green." and "frog 2b" become "(a) frog"."""
    words = row.get("caption") or row.get("annotation") or row["label"]
    words = re.sub(r"\s*\(.*?\)", "", re.split(r"[.;—]", words)[0])
    return plain(re.sub(r"\s+\d+\w?$", "", words))


def category_of(row: dict[str, str]) -> str:
    return row["subgroup"] if "subgroup" in row else row["category"]


def named(row: dict[str, str]) -> bool:
    """Whether a picture shows a thing that can be named."""
    return row.get("category") != "symbols" and row.get("grammar", "Noun") == "Noun" and bool(name_of(row))


def facts_of(row: dict[str, str]) -> list[str]:
    return sorted({f"in {category_of(row)}", *(set(name_of(row).split()) - SMALL_WORDS)})


def pictures_of(source: Path) -> Iterator[tuple[Image.Image, dict[str, str]]]:
    """Picture and row of everything in a set that has a name."""
    table = next((source / name for name in ("captions.tsv", "labels.tsv") if (source / name).is_file()), None)
    if table is None:
        raise FileNotFoundError(f"{source} has neither a captions.tsv nor a labels.tsv: which set of pictures is it?")
    with open(table, encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if named(row)]
    with zipfile.ZipFile(source / "images_128.zip") as archive:
        for row in rows:
            with Image.open(io.BytesIO(archive.read(row["image"]))) as picture:
                yield picture.convert("RGB"), row


def gather(scenes: Path, sources: list[Path], folder: Path, size: int, limit: int | None) -> None:
    """Write the pictures and their metadata into `folder`."""
    shutil.copytree(scenes, folder, dirs_exist_ok=True)
    with open(folder / MARKER, "a", encoding="utf-8") as metadata, tqdm(desc="named pictures", unit="picture") as bar:
        for source in sources:
            for number, (picture, row) in enumerate(pictures_of(source)):
                if number == limit:
                    break
                name = f"{source.name}-{Path(row['image']).stem}.jpg"
                picture.resize((size, size), Image.Resampling.LANCZOS).save(folder / name, quality=92)
                new = {"file_name": name, "text": name_of(row), "facts": facts_of(row)}
                metadata.write(json.dumps(new) + "\n")
                bar.update()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--size", type=int, default=112, help="side of the square pictures in pixels")
    parser.add_argument("--limit", type=int, help="pictures of a set, for a first look; default: all")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    check_new_folder(options.output_dir, options.overwrite, MARKER)
    with new_folder(options.output_dir, options.overwrite, MARKER) as folder:
        gather(options.scenes, options.sets, folder, options.size, options.limit)


if __name__ == "__main__":
    main()
