"""The demo's embedded data: draw its pictures and lay everything out in the formats of the package.

A scene is a list of ``[glyph, x, y, size]``: the name of a picture in ``data/glyphs``, the pixel of its top left
corner and its side length, on a white canvas of 64 by 64 pixels. Scenes are stored as layouts and drawn when
needed: ten thousand pictures are then a few hundred kilobytes and a few seconds.

    from babylm_vlm.demo.scenes import render_scene
    render_scene([["cat", 4, 20, 24], ["tree", 36, 20, 26]]).show()

``scripts/make_demo_data.py`` wrote the data; ``ATTRIBUTION.md`` names its sources and licences.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageChops
from tqdm import tqdm

from ..files import new_folder

DATA = Path(__file__).resolve().parent / "data"
VISION_TOWER = DATA / "vision_tower"
CANVAS = 64
SPLITS = ("train", "selection", "test")


@cache
def _glyph(name: str, size: int) -> Image.Image:
    """The picture of one thing, `size` by `size` pixels; ValueError for a name that has no picture."""
    path = DATA / "glyphs" / f"{name.replace(' ', '_')}.png"
    if not path.exists():
        raise ValueError(f"There is no glyph named {name!r} in {path.parent}.")
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def render_scene(objects: Sequence[Sequence]) -> Image.Image:
    """Draw ``[[glyph, x, y, size], ...]`` on white: an RGB picture of 64 by 64. Where glyphs meet, the darker wins."""
    scene = Image.new("RGB", (CANVAS, CANVAS), "white")
    for name, x, y, size in objects:
        box = (x, y, x + size, y + size)
        scene.paste(ImageChops.darker(scene.crop(box), _glyph(name, size)), box)
    return scene


def read_scenes(split: str) -> Iterator[dict]:
    """The scenes of one split, in stored order: dicts with id, split, kind, objects, captions and facts."""
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
    with gzip.open(DATA / "scenes.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            scene = json.loads(line)
            if scene["split"] == split:
                yield scene


def write_demo_data(folder: str | Path, scenes: int | None = None, overwrite: bool = False) -> Path:
    """Lay the embedded data out under `folder`, as a user's own data would be.

    text/train.txt.gz                      one sentence a line
    captions/{*.png, metadata.jsonl}       the training scenes; columns file_name, text and facts, a row per caption
    {selection,test}/grammar/*.jsonl.gz    minimal pairs without a picture
    {selection,test}/grounded/*.jsonl      minimal pairs with a picture, which lies beside the file
    {selection,test}/relations/*.jsonl     the same, of left and right, above and below

    `scenes` keeps only that many training scenes, spread evenly over the stored ones. Raises FileExistsError if
    `folder` is there and `overwrite` is off. It appears whole or not at all.
    """
    folder = Path(folder)
    with new_folder(folder, overwrite, marker="captions/metadata.jsonl") as temporary:
        shutil.copytree(DATA / "text", temporary / "text")
        _write_captions(temporary / "captions", _spread(list(read_scenes("train")), scenes))
        for split in ("selection", "test"):
            shutil.copytree(DATA / split, temporary / split)
            for scene in tqdm(list(read_scenes(split)), desc=f"drawing {split}", unit="picture"):
                render_scene(scene["objects"]).save(temporary / split / task_of(scene["kind"]) / f"{scene['id']}.png")
    return folder


def task_of(kind: str) -> str:
    """The test that pairs of this kind of scene belong to."""
    return "relations" if kind in ("left_right", "above_below") else "grounded"


def _spread(scenes: list[dict], number: int | None) -> list[dict]:
    """`number` of the scenes, evenly spaced (all of them for None)."""
    if number is None or number >= len(scenes):
        return scenes
    if number < 1:
        raise ValueError(f"scenes={number}: at least one training scene is needed.")
    return [scenes[i * len(scenes) // number] for i in range(number)]


def _write_captions(folder: Path, scenes: list[dict]) -> None:
    """A Hugging Face imagefolder: the drawn scenes and metadata.jsonl, one row for every caption."""
    folder.mkdir()
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as metadata:
        for scene in tqdm(scenes, desc="drawing captioned scenes", unit="picture"):
            name = f"{scene['id']}.png"
            render_scene(scene["objects"]).save(folder / name, compress_level=1)
            for caption in scene["captions"]:
                row = {"file_name": name, "text": caption, "facts": scene["facts"]}
                metadata.write(json.dumps(row) + "\n")
