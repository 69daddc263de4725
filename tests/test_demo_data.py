"""The embedded demo data keeps its promises: small, held out means unseen, text alone scores one half.

pytest tests/test_demo_data.py
"""

import gzip
import json
import re
from collections import Counter, defaultdict
from itertools import combinations

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from babylm_vlm.demo.scenes import CANVAS, DATA, VISION_TOWER, read_scenes, render_scene, write_demo_data

SPLITS = ("train", "selection", "test")
HELD_OUT = ("selection", "test")
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4}
SINGULAR = {"mice": "mouse", "fish": "fish", "sheep": "sheep", "geese": "goose", "knives": "knife", "leaves": "leaf"}
SINGULAR |= {"strawberries": "strawberry", "butterflies": "butterfly"}


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[dict]]:
    return {split: list(read_scenes(split)) for split in SPLITS}


@pytest.fixture(scope="module")
def text() -> list[str]:
    with gzip.open(DATA / "text" / "train.txt.gz", "rt", encoding="utf-8") as lines:
        return lines.read().splitlines()


def read_pairs(split: str, kind: str) -> dict[str, list[dict]]:
    """{UID: rows} of {split}/grammar or {split}/grounded."""
    files = {}
    for path in sorted((DATA / split / kind).iterdir()):
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()
        files[path.name.split(".")[0]] = [json.loads(line) for line in lines]
    return files


def normalised(sentence: str) -> str:
    return " ".join(re.findall(r"[a-z]+(?:'[a-z]+)?", sentence.lower()))


def combined(scene: dict) -> set[tuple]:
    """What a scene combines: a thing with its number above one, or every two things that are together."""
    things = Counter(thing for thing, *_ in scene["objects"])
    if len(things) == 1:
        return {(thing, number) for thing, number in things.items() if number > 1}
    return set(combinations(sorted(things), 2))


def test_sizes():
    sizes = {path: path.stat().st_size for path in DATA.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 9_000_000
    assert sizes[DATA / "text" / "train.txt.gz"] <= 2_600_000
    assert sum(size for path, size in sizes.items() if path.is_relative_to(VISION_TOWER)) <= 4_000_000


def test_text_is_one_clean_sentence_a_line(text):
    words = [len(line.split()) for line in text]
    assert 1_000_000 <= sum(words) <= 1_120_000
    assert min(words) >= 3 and max(words) <= 60
    assert len(set(text)) == len(text)
    for line in text:
        assert not re.search(r"``|'' [a-z]|https?:|= =| n't| [.,?](?!\.)|\t", line), line
        assert line.count('"') % 2 == 0, line


def test_enough_captions(scenes):
    assert len(scenes["train"]) == 7_300
    captions = [caption for scene in scenes["train"] for caption in scene["captions"]]
    assert len(captions) >= 18_000
    assert all(2 <= len(scene["captions"]) <= 5 for scene in scenes["train"])
    ids = [scene["id"] for split in SPLITS for scene in scenes[split]]
    assert len(set(ids)) == len(ids)


def test_no_combination_of_a_split_in_another(scenes):
    kinds = {split: set().union(*map(combined, scenes[split])) for split in SPLITS}
    for split in HELD_OUT:
        assert kinds[split]
        assert not kinds[split] & kinds["train"]
    assert not kinds["selection"] & kinds["test"]


def test_every_held_out_thing_is_known_from_training(scenes):
    known = {thing for scene in scenes["train"] for thing, *_ in scene["objects"]}
    assert {thing for split in HELD_OUT for scene in scenes[split] for thing, *_ in scene["objects"]} <= known


def test_objects_lie_on_the_canvas_and_hardly_overlap(scenes):
    for scene in [scene for split in SPLITS for scene in scenes[split]]:
        boxes = [(x, y, x + size, y + size) for _, x, y, size in scene["objects"]]
        assert all(0 <= x < u <= CANVAS and 0 <= y < v <= CANVAS for x, y, u, v in boxes), scene["id"]
        for i, (x, y, u, v) in enumerate(boxes):
            for a, b, c, d in boxes[:i]:
                shared = min(min(u, c) - max(x, a), min(v, d) - max(y, b))  # pixels; each box has 2 white ones a side
                assert shared <= 8, scene["id"]


def test_facts_follow_from_the_objects(scenes):
    for scene in [scene for split in SPLITS for scene in scenes[split]]:
        things = Counter(thing for thing, *_ in scene["objects"])
        facts = set(scene["facts"])
        assert f"things:{sum(things.values())}" in facts
        assert set(things) <= facts
        assert {fact for fact in facts if re.search(r"[a-z]:\d", fact)} - {f"things:{sum(things.values())}"} == {
            f"{thing}:{number}" for thing, number in things.items() if number > 1
        }
        for thing, side in (fact.split("@") for fact in facts if "@" in fact):
            middles = [(x + size / 2, y + size / 2) for name, x, y, size in scene["objects"] if name == thing]
            on_side = {"left": lambda x, y: x < 32, "right": lambda x, y: x > 32}
            on_side |= {"top": lambda x, y: y < 32, "bottom": lambda x, y: y > 32}
            assert any(on_side[side](x, y) for x, y in middles), scene["id"]


def test_captions_are_true_of_their_pictures(scenes):
    """Counts, colours and relations are read back from the caption and compared with the objects."""
    checked = Counter()
    for scene in [scene for split in SPLITS for scene in scenes[split]]:
        middles = {thing: (x + size / 2, y + size / 2) for thing, x, y, size in scene["objects"]}
        number = Counter(thing for thing, *_ in scene["objects"])
        coloured = {thing.split()[1]: thing.split()[0] for thing in number if " " in thing}
        for caption in scene["captions"]:
            if match := re.search(r"\b(one|two|three|four) (\w+)", caption):
                noun = SINGULAR.get(match[2]) or (match[2] if match[1] == "one" else match[2].removesuffix("s"))
                found = sum(number.values()) if noun == "thing" else number[noun]
                assert found == COUNTS[match[1]], (scene["id"], caption)
                checked["count"] += 1
            lead = r"(\w+) (?:is )?(?:on the |at the (?:top|bottom), )?"
            if match := re.search(lead + r"(left|right|above|below) (?:of )?(?:an?|the) (\w+)", caption):
                (x, y), (u, v) = middles[match[1]], middles[match[3]]
                holds = {"left": x + 10 < u, "right": x > u + 10, "above": y + 10 < v, "below": y > v + 10}
                assert holds[match[2]], (scene["id"], caption)
                checked[match[2]] += 1
            for thing, place in re.findall(r"(\w+) (?:is )?(?:on|at) the (left|right|top|bottom)", caption):
                x, y = middles[thing]
                holds = {"left": x <= 22, "right": x >= 42, "top": y <= 22, "bottom": y >= 42}
                assert holds[place], (scene["id"], caption)
                checked[place] += 1
            for colour, shape in re.findall(r"\b([a-z]+) (heart|circle|square|star|book)\b", caption):
                if colour not in ("the", "this"):
                    assert coloured[shape] == colour, (scene["id"], caption)
                    checked["colour"] += 1
            for shape, colour in re.findall(r"\b(heart|circle|square|star|book) is ([a-z]+)", caption):
                if colour != "next":
                    assert coloured[shape] == colour, (scene["id"], caption)
            if listed := re.findall(r"\ban? (\w+)(?=,| and|$)", caption):
                assert scene["kind"] != "several" or set(listed) == set(number), (scene["id"], caption)
    kinds = ("count", "left", "right", "above", "below", "top", "bottom", "colour")
    assert min(checked[kind] for kind in kinds) > 400


def test_articles_and_plurals(scenes):
    for scene in [scene for split in SPLITS for scene in scenes[split]]:
        for caption in scene["captions"]:
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
            assert not re.search(r"\bone \w+s\b|mouses|sheeps|fishs|fishes|gooses|knifes|leafs|flys|rrys", caption), (
                caption
            )
            if match := re.search(r"\b(?:two|three|four) (\w+)", caption):
                assert match[1] in SINGULAR or match[1].endswith("s"), caption


@pytest.mark.parametrize("split", HELD_OUT)
def test_grounded_pairs_mirror_each_other(split, scenes):
    """Each pair id is there twice with the captions swapped: text alone is at exactly one half."""
    pictures = {f"{scene['id']}.png": scene for scene in scenes[split]}
    files = read_pairs(split, "grounded") | read_pairs(split, "relations")
    assert set(files) == {"object", "colour", "count", "left_right", "above_below"}
    assert set(read_pairs(split, "relations")) == {"left_right", "above_below"}
    used = []
    for uid, rows in files.items():
        pairs = defaultdict(list)
        for row in rows:
            assert row["UID"] == uid
            assert row["sentence_good"] in pictures[row["image"]]["captions"]
            used.append(row["image"])
            pairs[row["pair"]].append(row)
        assert len(pairs) == 108
        for first, second in pairs.values():
            assert first["image"] != second["image"]
            assert first["sentence_good"] == second["sentence_bad"] != first["sentence_bad"] == second["sentence_good"]
    assert sorted(used) == sorted(pictures)


def test_grammar_pairs(text):
    """Sizes as promised, the two splits apart, and no good sentence among the training sentences."""
    known = {normalised(line) for line in text}
    files = {split: read_pairs(split, "grammar") for split in HELD_OUT}
    assert set(files["selection"]) == set(files["test"])
    sizes = {"selection": (100, 150), "test": (150, 200)}
    good = {split: set() for split in HELD_OUT}
    for split, paradigms in files.items():
        for uid, rows in paradigms.items():
            assert len(rows) == sizes[split][uid.startswith("unseen_")], (split, uid)
            for row in rows:
                assert row["UID"] == uid and row["sentence_good"] != row["sentence_bad"]
                if uid.startswith("unseen_"):
                    assert normalised(row["sentence_good"]) not in known
                    good[split].add(normalised(row["sentence_good"]))
                else:
                    good[split].add((uid, row["sentence_good"]))
    assert not good["selection"] & good["test"]


def test_every_scene_can_be_drawn(scenes):
    for scene in scenes["selection"] + scenes["test"] + scenes["train"][::10]:
        picture = render_scene(scene["objects"])
        assert picture.size == (CANVAS, CANVAS) and picture.mode == "RGB"
        assert picture.getextrema()[0][0] < 128  # something is drawn
    with pytest.raises(ValueError, match="no glyph named 'dragon'"):
        render_scene([["dragon", 0, 0, 20]])


def test_write_demo_data(tmp_path):
    folder = write_demo_data(tmp_path / "data", scenes=50)
    rows = [json.loads(line) for line in (folder / "captions" / "metadata.jsonl").read_text().splitlines()]
    assert len({row["file_name"] for row in rows}) == 50
    assert all(set(row) == {"file_name", "text", "facts"} for row in rows)
    assert {path.name for path in (folder / "captions").glob("*.png")} == {row["file_name"] for row in rows}
    assert (folder / "text" / "train.txt.gz").read_bytes() == (DATA / "text" / "train.txt.gz").read_bytes()
    for split in HELD_OUT:
        assert len(list((folder / split / "grammar").glob("*.jsonl.gz"))) == 22
        for path in (folder / split).glob("[gr][re]*/*.jsonl"):
            for line in path.read_text().splitlines():
                with Image.open(path.parent / json.loads(line)["image"]) as picture:
                    assert picture.size == (CANVAS, CANVAS)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # no temporary folder stays
    with pytest.raises(FileExistsError, match="exists"):
        write_demo_data(folder)
    with pytest.raises(ValueError, match="at least one"):
        write_demo_data(tmp_path / "none", scenes=0)
    assert not (tmp_path / "none").exists()


def test_vision_tower_loads(scenes):
    tower, processor = AutoModel.from_pretrained(VISION_TOWER), AutoImageProcessor.from_pretrained(VISION_TOWER)
    assert tower.config.model_type == "dinov2"
    assert (tower.config.image_size, tower.config.patch_size) == (CANVAS, 8)
    pictures = [render_scene(scene["objects"]) for scene in scenes["selection"][:2]]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (2, 3, CANVAS, CANVAS)
    with torch.no_grad():
        hidden = tower(pixels.to(tower.dtype), output_hidden_states=True).hidden_states[-1]
    assert hidden.shape == (2, 1 + (CANVAS // 8) ** 2, tower.config.hidden_size)
    assert torch.isfinite(hidden).all()
    assert not torch.allclose(hidden[0], hidden[1])


def test_attribution_names_every_source():
    attribution = (DATA.parent / "ATTRIBUTION.md").read_text()
    for name in ("OpenMoji", "BLiMP", "Gutenberg", "Simple English Wikipedia", "CC BY-SA 4.0", "CC BY 4.0"):
        assert name in attribution
