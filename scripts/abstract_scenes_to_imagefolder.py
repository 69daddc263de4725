"""Turn the Abstract Scenes (Zitnick and Parikh 2013) into captions and grounded pairs that this package reads.

    python scripts/abstract_scenes_to_imagefolder.py data/abstract_scenes --output-dir data/abstract [--size 112]

SOURCE holds
  sprites/*.png, sprites/background.png   clip art and the 500 by 400 background (CoDraw's `Pngs`)
  scenes.jsonl.gz                         {"scene_id", "objects": [[sprite, x, y, depth, flip], ...]} a line (CoDraw)
  captions.tsv.gz                         scene_id, source, index, sentence: about six simple sentences a scene
  eval/semantics_eval_*.csv               img_id, target_sentence, distractor_sentence (Nikolaus and Fourtassi 2021)
  eval/eval_scene_ids.json                ids of the scenes in these files; none of them is used for training

What is written:
  captions/{ID.jpg, metadata.jsonl}       training scenes, a row per caption: file_name, text, facts
  test/grounded/{ID.jpg, UID.jsonl}       minimal pairs; rows 2k and 2k+1 mirror each other (two pictures and two
                                          sentences), as in the eight complete files of the source; one pair of
                                          `adjectives` names the same picture twice and is kept for comparability
  test/captions/captions.jsonl            the first caption of each held-out scene against another's, mirrored alike

Scenes are drawn at 500 by 400 and squashed to a square. Captions are put in the form of the evaluation sentences:
lower case, no final stop, no space before punctuation. `facts`, for scripts/train_vision_tower.py, say which sprite
is there (people by person, pose and expression apart), in which third of the width, whether it is mirrored, and which
person is the nearest within 100 pixels. The data is for non-commercial research (see its own licences).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

WIDTH, HEIGHT = 500, 400
SCALES = (1.0, 0.7, 0.49)  # by depth
PARADIGMS = ("animals", "inanimates", "persons", "adjectives", "verbs")
PARADIGMS += ("adjective_noun_binding", "verb_noun_binding", "semantic_roles")
EXPRESSIONS = 5  # sprites hb0_0 ... hb0_34 are seven poses of five expressions each


@cache
def load_sprite(folder: Path, name: str, depth: int, flip: int) -> Image.Image:
    with Image.open(folder / f"{name}.png") as picture:
        sprite = picture.convert("RGBA")
    if flip:
        sprite = ImageOps.mirror(sprite)
    size = [max(1, round(side * SCALES[depth])) for side in sprite.size]
    return sprite.resize(size, Image.Resampling.BILINEAR)


def render(objects: list[list], sprites: Path, size: int) -> Image.Image:
    """One scene as CoDraw draws it: the sky first, then the far things, then the near; x and y are centres."""
    scene = load_sprite(sprites, "background", 0, 0).copy()
    in_order = sorted(objects, key=lambda item: (not item[0].startswith("s_"), -item[3]))  # stable within a depth
    for name, x, y, depth, flip in in_order:
        if x >= 0:
            sprite = load_sprite(sprites, name, depth, flip)
            corner = (round(x - sprite.width / 2), round(y - sprite.height / 2))
            scene.paste(sprite, corner, sprite)
    return scene.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def save_picture(objects: list[list], path: Path, sprites: Path, size: int) -> None:
    """Draw a scene into a file."""
    render(objects, sprites, size).save(path, quality=92)


def facts_of(objects: list[list]) -> list[str]:
    """What is true of a scene, by sprite id: "t_3", "t_3@left", "hb0:pose2", "hb0:mirrored", "c_1 near hb1"."""
    facts = set()
    people = [item for item in objects if item[0].startswith("hb") and item[1] >= 0]
    for name, x, y, _, flip in objects:
        if x < 0:
            continue
        kind = name
        if name.startswith("hb"):
            kind, number = name.split("_")
            facts |= {f"{kind}:pose{int(number) // EXPRESSIONS}", f"{kind}:expression{int(number) % EXPRESSIONS}"}
        elif people:
            nearest = min(people, key=lambda person: (person[1] - x) ** 2 + (person[2] - y) ** 2)
            if (nearest[1] - x) ** 2 + (nearest[2] - y) ** 2 < 100**2:
                facts.add(f"{kind} near {nearest[0].split('_')[0]}")
        facts |= {kind, f"{kind}@{('left', 'middle', 'right')[min(2, int(3 * x / WIDTH))]}"}
        if flip:
            facts.add(f"{kind}:mirrored")
    return sorted(facts)


def plain(sentence: str) -> str:
    """A caption in the form of the evaluation sentences."""
    sentence = re.sub(r"\s+([.,;:!?'])", r"\1", " ".join(sentence.lower().split()))
    sentence = re.sub(r" (n't)\b", r"\1", sentence)
    return sentence.rstrip(" .")


def read_scenes(source: Path) -> dict[str, list[list]]:
    with gzip.open(source / "scenes.jsonl.gz", "rt", encoding="utf-8") as lines:
        scenes = [json.loads(line) for line in lines]
    return {str(scene["scene_id"]): scene["objects"] for scene in scenes}


def read_captions(source: Path) -> dict[str, list[str]]:
    """{scene id: different captions}."""
    captions: dict[str, list[str]] = {}
    with gzip.open(source / "captions.tsv.gz", "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            texts = captions.setdefault(row["scene_id"], [])
            text = plain(row["sentence"])
            if len(text.split()) >= 2 and text not in texts:
                texts.append(text)
    return captions


def read_pairs(path: Path, uid: str) -> list[dict]:
    """Rows of one evaluation file as mirrored grounded pairs; ValueError if neighbours do not mirror each other."""
    with open(path, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    pairs = []
    for number, row in enumerate(rows):
        other = rows[number ^ 1]
        if row["target_sentence"] != other["distractor_sentence"]:
            raise ValueError(
                f"{path}, row {number + 2}: its neighbour is not the mirrored row; use the complete files."
            )
        good_bad = {"sentence_good": row["target_sentence"], "sentence_bad": row["distractor_sentence"]}
        pairs.append({**good_bad, "UID": uid, "image": f"{row['img_id']}.jpg", "pair": f"{uid}-{number // 2:03d}"})
    return pairs


def caption_pairs(captions: dict[str, list[str]], scenes: list[str]) -> list[dict]:
    """Mirrored grounded pairs of the first captions of scenes that follow each other, where these differ."""
    rows = []
    for couple in zip(scenes[::2], scenes[1::2], strict=False):
        texts = [captions[number][0] for number in couple]
        if texts[0] == texts[1]:
            continue
        for number, good, bad in zip(couple, texts, reversed(texts), strict=True):
            image, pair = f"../grounded/{number}.jpg", f"captions-{couple[0]}"
            rows.append({"sentence_good": good, "sentence_bad": bad, "UID": "captions", "image": image, "pair": pair})
    return rows


def convert(source: Path, folder: Path, size: int, limit: int | None = None) -> None:
    scenes, captions = read_scenes(source), read_captions(source)
    held_out = {str(number) for number in json.loads((source / "eval" / "eval_scene_ids.json").read_text())}
    (folder / "captions").mkdir(parents=True)
    (folder / "test" / "grounded").mkdir(parents=True)
    (folder / "test" / "captions").mkdir(parents=True)

    needed = set()
    for uid in PARADIGMS:
        pairs = read_pairs(source / "eval" / f"semantics_eval_{uid}.csv", uid)
        needed |= {Path(pair["image"]).stem for pair in pairs}
        with open(folder / "test" / "grounded" / f"{uid}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    if not needed <= held_out:
        raise ValueError("eval_scene_ids.json lacks scenes of the evaluation files: they would be trained on.")

    shown = sorted((number for number in needed if number in captions), key=int)
    with open(folder / "test" / "captions" / "captions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in caption_pairs(captions, shown))

    training = [number for number in scenes if number not in held_out and number in captions][:limit]
    with open(folder / "captions" / "metadata.jsonl", "w", encoding="utf-8") as metadata:
        for number in training:
            facts = facts_of(scenes[number])
            for caption in captions[number]:
                metadata.write(json.dumps({"file_name": f"{number}.jpg", "text": caption, "facts": facts}) + "\n")

    drawn = {folder / "captions" / f"{number}.jpg": scenes[number] for number in training}
    drawn |= {folder / "test" / "grounded" / f"{number}.jpg": scenes[number] for number in needed}
    draw = partial(save_picture, sprites=source / "sprites", size=size)
    with ProcessPoolExecutor() as pool:
        done = pool.map(draw, drawn.values(), drawn.keys(), chunksize=64)
        for _ in tqdm(done, desc="drawing scenes", unit="picture", total=len(drawn)):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--size", type=int, default=112, help="side of the square pictures in pixels")
    parser.add_argument("--scenes", type=int, help="draw so many training scenes, for a first look; default: all")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    output = options.output_dir
    if output.exists() and not options.overwrite:
        parser.error(f"{output} is already there: give another folder or --overwrite.")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        convert(options.source, temporary / "data", options.size, options.scenes)
        if output.exists():
            shutil.rmtree(output)
        (temporary / "data").rename(output)
    finally:
        shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
