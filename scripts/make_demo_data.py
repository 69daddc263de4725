"""Make the data embedded in the demo from public sources. Same sources, same bytes.

    python scripts/make_demo_data.py --source data/sources [--output-dir src/babylm_vlm/demo/data] [--overwrite]

SOURCE holds three folders:
  babylm_text/{train,dev}.{children_stories,cbt,gutenberg,simple_wiki}.txt.gz   parts of the BabyLM corpora
  blimp/PARADIGM.jsonl.gz                                                       BLiMP as published
  openmoji_128/{labels.tsv, images_128.zip}                                     OpenMoji at 128 by 128 on white

What is written (the vision tower beside it is trained by scripts/train_vision_tower.py):

text/train.txt.gz: about 1.1 million words, one sentence a line, in this order: children_stories and cbt (all that
  survives cleaning), then sentences of simple_wiki and gutenberg of 4 to 30 words of which at most two are rare in the
  first two. Cleaning: white space and quotation marks made uniform, the spaces of the tokenised corpus taken out
  again ("do n't ." to "don't."), paragraphs split into sentences, half-open quotation marks closed. Left out:
  headings, tables, addresses, foreign letters, lines with fewer than 3 or more than 50 words, repeated lines.

glyphs/*.png: 44 everyday things from OpenMoji, cropped and scaled to 64 by 64; hearts in eight colours and books in
  four from OpenMoji; circles, squares and stars drawn here in the colours of the hearts.

scenes.jsonl.gz: layouts of 7,300 captioned training scenes (naming, one thing and its place, two objects, counting,
  left/right, above/below, coloured shapes) and of the held-out scenes. `facts` are strings true of the picture: "cat",
  "cat:2" (two of them), "things:2", "cat@left|right|top|bottom", "red", "heart", "red heart".

{selection,test}/{grounded,relations}/UID.jsonl: mirrored pairs, two pictures and two captions each; things, counts
  and colours in the one, left/right and above/below in the other. A combination (two glyphs together, two to four of
  one glyph, two coloured shapes together) of one split is in no other split.

{selection,test}/grammar/UID.jsonl.gz: BLiMP paradigms, and pairs made by rule from sentences of the dev files that
  are not in the training text (`unseen_*`).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import re
import shutil
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm import tqdm

from babylm_vlm.demo.scenes import task_of

SEED = 2027
HELD_OUT_SEED = 2029  # of held-out layouts and sentences: a new number draws new ones of the same combinations
REPOSITORY = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------
WORD_BUDGET = 1_100_000
QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "…": "...", "\u00a0": " "})
DETOKENIZE = [  # the Penn-Treebank spacing of the Children's Book Test, undone
    (re.compile(r"-LRB- ?"), "("),
    (re.compile(r" ?-RRB-"), ")"),
    (re.compile(r"`` ?"), '"'),
    (re.compile(r" ?''"), '"'),
    (re.compile(r"(^|[\s\"(])` ?"), r"\1'"),
    (re.compile(r" (n't)\b", re.I), r"\1"),
    (re.compile(r" ('(?:s|m|d|ll|re|ve|em|t))\b", re.I), r"\1"),
    (re.compile(r"\b(ca|wo|sha|do|did|is) (n't)\b", re.I), r"\1\2"),
    (re.compile(r"\b(can) (not)\b", re.I), r"\1\2"),
    (re.compile(r"\b(gon|wan) (na)\b", re.I), r"\1\2"),
    (re.compile(r" ([.,;:!?)])"), r"\1"),
    (re.compile(r" '(?=$|[\s.,;:!?\"])"), "'"),
]
SENTENCE_END = re.compile(r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bSt\.)(?<!\bDr\.)(?<=[.!?])(\"?) +(?=[\"'A-Z])")
LEFT_OUT = re.compile(  # tables, addresses, headings, foreign letters, lost words (" ."), cut lines, shouting
    r"[=@|\[\]{}<>*\\]|https?:|www\.|Illustration|^\W*CHAPTER|^\d+ |[^\x00-\x7f]| [.,](?!\.)"
    r"|\b(?:Mr|Mrs|Dr|St)\.\"?$|[A-Z]{4}"
)


def words_of(sentence: str) -> list[str]:
    """The words of a sentence without punctuation, in lower case."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", sentence.lower())


def balance_quotes(sentence: str) -> str:
    """Close the quotation marks of a sentence cut out of a longer quotation: `Yes," said he.` to `"Yes," said he.`"""
    if re.match(r'[^"]*\S"(?!\w)', sentence):
        sentence = '"' + sentence
    return sentence + '"' if sentence.count('"') % 2 else sentence


def clean_sentence(sentence: str) -> str | None:
    """One uniform sentence, or None for what is no sentence (see the module's docstring)."""
    sentence = " ".join(sentence.replace("_", "").split())
    sentence = balance_quotes(sentence)
    length = len(sentence.split())
    letters = sum(character.isalpha() for character in sentence)
    if not 3 <= length <= 50 or letters < 0.6 * len(sentence) or sentence.isupper() or LEFT_OUT.search(sentence):
        return None
    if sentence[-1] not in ".!?\"',;:)":  # headings have no final mark
        return None
    return sentence


def read_sentences(path: Path, tokenized: bool) -> Iterator[str]:
    """Clean sentences of one corpus file; `tokenized` for text with a space before every full stop."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in tqdm(lines, desc=path.name, unit="line", leave=False):
            line = " ".join(line.translate(QUOTES).split())
            if tokenized:
                for pattern, replacement in DETOKENIZE:
                    line = pattern.sub(replacement, line)
            for sentence in SENTENCE_END.sub(r"\1\n", line).split("\n"):
                if cleaned := clean_sentence(sentence):
                    yield cleaned


def unique(sentences: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(sentences))


def training_text(source: Path) -> list[str]:
    """The demo's training sentences, in order."""
    corpus = source / "babylm_text"
    text = unique(
        [
            *read_sentences(corpus / "train.children_stories.txt.gz", tokenized=False),
            *read_sentences(corpus / "train.cbt.txt.gz", tokenized=True),
        ]
    )
    counts = Counter(word for sentence in text for word in words_of(sentence))
    known_words = {word for word, count in counts.items() if count >= 4}

    def simple(sentence: str) -> bool:
        words = words_of(re.sub(r"(?<=[a-z,] )[A-Z]\w+", "", sentence))  # names may be rare
        capitals = len(re.findall(r"(?<=[a-z,] )[A-Z]", sentence))
        plain = sentence.lstrip('"')[:1].isupper() and sentence[-1] in '.?!"' and not re.search(r"\d", sentence)
        return (
            plain and 4 <= len(words) <= 30 and capitals <= 3 and sum(word not in known_words for word in words) <= 2
        )

    known = set(text)
    room = WORD_BUDGET - sum(len(sentence.split()) for sentence in text)
    for name, share in (("simple_wiki", 0.5), ("gutenberg", 1.0)):
        left = room * (1 - share)
        extra = [s for s in unique(read_sentences(corpus / f"train.{name}.txt.gz", tokenized=False)) if simple(s)]
        for sentence in extra:
            if sentence not in known and room > left:
                text.append(sentence)
                known.add(sentence)
                room -= len(sentence.split())
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Glyphs
# ---------------------------------------------------------------------------------------------------------------------
GLYPH = 64
THINGS = {  # the word a child would use: OpenMoji's annotation
    **{name: name for name in ("cat", "cow", "pig", "horse", "mouse", "rabbit", "duck", "fish", "frog", "snake")},
    **{name: name for name in ("turtle", "elephant", "bear", "butterfly", "owl", "penguin", "goose", "spider")},
    **{name: name for name in ("banana", "pear", "strawberry", "carrot", "egg", "house", "chair", "key", "bell")},
    **{name: name for name in ("drum", "umbrella", "balloon", "kite")},
    "dog": "dog face",
    "sheep": "ewe",
    "apple": "red apple",
    "car": "automobile",
    "boat": "sailboat",
    "bike": "bicycle",
    "plane": "airplane",
    "tree": "deciduous tree",
    "flower": "rose",
    "ball": "soccer ball",
    "hat": "top hat",
    "shoe": "man’s shoe",
    "cup": "hot beverage",
    "knife": "kitchen knife",
    "leaf": "maple leaf",
}
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "brown", "black"]
BOOKS = {"red": "closed book", "green": "green book", "blue": "blue book", "orange": "orange book"}
SHAPES = dict.fromkeys(("heart", "circle", "square", "star"), COLOURS) | {"book": list(BOOKS)}
IRREGULAR_PLURALS = {"mouse": "mice", "fish": "fish", "sheep": "sheep", "goose": "geese"}
IRREGULAR_PLURALS |= {"knife": "knives", "leaf": "leaves"}


def crop_glyph(picture: Image.Image) -> Image.Image:
    """The drawing without its margin, in the middle of a white square of 64 by 64; pale noise made white."""
    picture = picture.convert("RGB").point(lambda value: 255 if value > 244 else value)
    box = picture.convert("L").point(lambda value: 255 if value < 200 else 0).getbbox()
    left, top, right, bottom = box
    side = max(right - left, bottom - top) + 4
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture.crop(box), ((side - right + left) // 2, (side - bottom + top) // 2))
    return square.resize((GLYPH, GLYPH), Image.Resampling.LANCZOS)


def draw_shape(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    """A circle, square or star with OpenMoji's black outline, 64 by 64."""
    big = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(big)
    style = {"fill": colour, "outline": "black", "width": 10}
    if shape == "circle":
        draw.ellipse((14, 14, 242, 242), **style)
    elif shape == "square":
        draw.rectangle((20, 20, 236, 236), **style)
    else:
        outer, inner = (0, -118), (0, -50)
        points = []
        for step in range(10):
            x, y = outer if step % 2 == 0 else inner
            cosine, sine = STAR_TURNS[step]
            points.append((128 + x * cosine - y * sine, 138 + x * sine + y * cosine))
        draw.polygon(points, fill=colour)
        draw.line([*points, points[0], points[1]], fill="black", width=10, joint="curve")
    return big.resize((GLYPH, GLYPH), Image.Resampling.LANCZOS)


# cosine and sine of multiples of 36 degrees, rounded so that every platform draws the same star
STAR_TURNS = [(1, 0), (0.809, 0.588), (0.309, 0.951), (-0.309, 0.951), (-0.809, 0.588)]
STAR_TURNS += [(-cosine, -sine) for cosine, sine in STAR_TURNS]


def write_glyphs(source: Path, folder: Path) -> None:
    """One small PNG for every thing and every coloured shape."""
    folder.mkdir(parents=True)
    with open(source / "openmoji_128" / "labels.tsv", encoding="utf-8", newline="") as labels:
        files = {row["annotation"]: row["image"] for row in csv.DictReader(labels, delimiter="\t")}
    with zipfile.ZipFile(source / "openmoji_128" / "images_128.zip") as archive:
        members = {Path(name).name: name for name in archive.namelist()}

        def openmoji(annotation: str) -> Image.Image:
            return crop_glyph(Image.open(io.BytesIO(archive.read(members[files[annotation]]))))

        glyphs = {name: openmoji(annotation) for name, annotation in THINGS.items()}
        glyphs |= {f"{colour} book": openmoji(annotation) for colour, annotation in BOOKS.items()}
        for colour in COLOURS:
            glyphs[f"{colour} heart"] = openmoji(f"{colour} heart")
            fill = glyphs[f"{colour} heart"].getpixel((GLYPH // 2, GLYPH // 2))
            for shape in ("circle", "square", "star"):
                glyphs[f"{colour} {shape}"] = draw_shape(shape, fill)
    for name, glyph in glyphs.items():
        small = glyph.quantize(48, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        small.save(folder / f"{name.replace(' ', '_')}.png", optimize=True)


# ---------------------------------------------------------------------------------------------------------------------
# Scenes: layouts, facts, captions
# ---------------------------------------------------------------------------------------------------------------------
CANVAS = 64
SCENES = {"naming": 900, "place": 800, "two_objects": 1200, "count": 1300, "left_right": 300, "above_below": 300}
SCENES["colour"] = 2500
# Where things are is told of these only: few, so that each is seen often, but too many to learn their pairs by heart.
RELATED = ("cat", "dog", "cow", "pig", "duck", "fish", "bear", "tree", "house", "car", "ball", "apple", "chair", "hat")
RELATED += ("boat", "flower", "banana", "bell", "cup", "frog", "horse", "kite", "key", "umbrella")
COMBINATIONS = 36  # held out for each kind and split
LAYOUTS = 3  # drawn of each: as many pairs as COMBINATIONS times LAYOUTS
COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}


def a(noun: str) -> str:
    """The noun with its article: "an apple", "a red heart"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


NAMING = ["{a}", "this is {a}", "look, {a}!", "there is {a} here", "here is {a}", "I see {a}", "it is {a}"]
NAMING += ["can you see the {n}?", "we can see {a}", "that is {a}", "the {n} is here"]
AND = ["{a} and {b}", "I see {a} and {b}", "look, {a} and {b}!", "here we see {a} and {b}", "the {m} and the {n}"]
AND += ["the {m} and the {n} are here", "we can see {a} and {b}", "{a} with {b}", "here are the {m} and the {n}"]
BESIDE = ["{a} next to {b}", "the {m} is next to the {n}", "there is {a} next to {b}", "{a} beside {b}"]
COUNT = ["{c}", "there are {c}", "look, {c}!", "here are {c}", "I can count {c}", "we see {c}", "{c} are here"]
COUNT_ONE = [re.sub(r"\bare\b", "is", template) for template in COUNT]
PLACE = ["the {n} is %s", "{a} %s", "I see {a} %s"]
# The relations say the words of the places, too: what is learned of one thing alone then helps with two.
LEFT = ["{a} on the left of {b}", "the {m} is on the left of the {n}", "there is {a} on the left of {b}"]
LEFT += ["I see {a} on the left of {b}"]
RIGHT = [template.replace("left", "right") for template in LEFT]
ABOVE = ["{a} at the top, above {b}", "the {m} is at the top, above the {n}", "I see {a} at the top, above {b}"]
ABOVE += ["{a} above {b}", "the {m} is above the {n}", "there is {a} above {b}", "I see {a} above {b}"]
BELOW = [template.replace("above", "below").replace("top", "bottom") for template in ABOVE]
PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
SIDES = ["the {m} is on the left and the {n} is on the right"]
ENDS = ["the {m} is at the top and the {n} is at the bottom", "the {n} is under the {m}"]
ONE_COLOUR = ["{a}", "the {s} is {k}", "this {s} is {k}", "look, {a}!", "here is {a}", "I see {a}"]
TWO_COLOURS = ["{a} and {b}", "the {s} is {k} and the {t} is {l}", "I see {a} and {b}", "{a} next to {b}"]
TWO_COLOURS += ["the {m} is next to the {n}", "look, {a} and {b}!"]


def fill(template: str, first: str, second: str = "") -> str:
    """Put one or two things into a template: {a} {b} with article, {m} {n} without (a single thing is {n})."""
    colour, shape = first.split() if " " in first else ("", first)
    other_colour, other_shape = second.split() if " " in second else ("", second)
    fields = {"a": a(first), "m": first, "n": second or first, "b": a(second) if second else ""}
    return template.format(**fields, k=colour, s=shape, l=other_colour, t=other_shape)


def count_phrase(noun: str, number: int) -> str:
    return f"{COUNT_WORDS[number]} {noun if number == 1 else plural(noun)}"


class Layouts:
    """Random layouts on the canvas; every method returns boxes (x, y, size)."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator

    def row(self) -> list[tuple[int, int, int]]:
        """Two boxes side by side, the left one first: centres at x <= 22 and >= 42. Large ones may meet."""
        left, right = self.random.randint(20, 28), self.random.randint(20, 28)
        x_left = self.random.randint(1, 22 - (left + 1) // 2)
        x_right = self.random.randint(42 - right // 2, CANVAS - right - 1)
        y = self.random.randint(3, 60 - max(left, right))
        return [(x_left, y + self.random.randint(-2, 2), left), (x_right, y + self.random.randint(-2, 2), right)]

    def column(self) -> list[tuple[int, int, int]]:
        """Two boxes one above the other, the upper one first."""
        return [(y, x, size) for x, y, size in self.row()]

    def free(self, number: int, sizes: tuple[int, int]) -> list[tuple[int, int, int]]:
        """`number` boxes anywhere, at least 2 pixels apart."""
        while True:
            boxes: list[tuple[int, int, int]] = []
            for _ in range(40 * number):
                size = self.random.randint(*sizes)
                x, y = self.random.randint(1, CANVAS - size - 1), self.random.randint(1, CANVAS - size - 1)
                apart = all(
                    x + size + 2 <= u or u + other + 2 <= x or y + size + 2 <= v or v + other + 2 <= y
                    for u, v, other in boxes
                )
                if apart:
                    boxes.append((x, y, size))
                if len(boxes) == number:
                    return boxes


def facts_of(objects: list[list]) -> list[str]:
    """What is true of a picture, as strings (see the module's docstring).

    A side is given when a centre lies clearly on it: more than 6 of 64 pixels off the middle.
    """
    facts = {f"things:{len(objects)}"}
    for name, number in Counter(glyph for glyph, *_ in objects).items():
        facts |= {name, *name.split()}
        if number > 1:
            facts.add(f"{name}:{number}")
    for name, x, y, size in objects:
        centre_x, centre_y = x + size / 2, y + size / 2
        sides = {"left": centre_x < 26, "right": centre_x > 38, "top": centre_y < 26, "bottom": centre_y > 38}
        facts |= {f"{name}@{side}" for side, holds in sides.items() if holds and name in THINGS}
    return sorted(facts)


def scene_of(split: str, kind: str, number: str, things: list[str], boxes: list, captions: list[str]) -> dict:
    objects = [[thing, *box] for thing, box in zip(things, boxes, strict=True)]
    identity = {"id": f"{split}-{kind}-{number}", "split": split, "kind": kind}
    return {**identity, "objects": objects, "captions": captions, "facts": facts_of(objects)}


Pair = frozenset  # two things that are in one picture


def split_combinations(generator: random.Random) -> dict[str, dict[str, list]]:
    """Which combinations belong to which split: {split: {kind: [...]}}; the training splits hold what is left."""
    names = sorted(THINGS)
    pairs = [Pair(pair) for pair in combinations(names, 2)]
    generator.shuffle(pairs)
    free, related = set(pairs), [pair for pair in pairs if pair <= set(RELATED)]
    splits: dict[str, dict[str, list]] = {split: defaultdict(list) for split in ("train", "selection", "test")}

    for split in ("selection", "test"):
        chosen = [pair for pair in related if pair in free][:COMBINATIONS]
        free -= set(chosen)
        for kind in ("left_right", "above_below"):
            splits[split][kind] = [tuple(generator.sample(sorted(pair), 2)) for pair in chosen]
        while len(splits[split]["object"]) < COMBINATIONS:  # (cat, tree, dog): cat and tree against cat and dog
            shared, second, third = generator.sample(names, 3)
            needed = {Pair((shared, second)), Pair((shared, third))}
            if needed <= free:
                free -= needed
                splits[split]["object"].append((shared, second, third))

    counted = generator.sample(names, len(names))
    for split in ("selection", "test"):
        contrasts = [contrast for contrast in ((1, 2), (1, 3), (2, 4)) for _ in range(COMBINATIONS // 6)]
        splits[split]["count"] = [(counted.pop(), *contrast) for contrast in contrasts]
    kept = {
        (name, number) for split in ("selection", "test") for name, *both in splits[split]["count"] for number in both
    }

    coloured = [
        (f"{colours[0]} {shapes[0]}", f"{colours[1]} {shapes[1]}")
        for shapes in combinations(sorted(SHAPES), 2)
        for colours in combinations([c for c in COLOURS if all(c in SHAPES[shape] for shape in shapes)], 2)
    ]
    generator.shuffle(coloured)
    splits["selection"]["colour"] = coloured[:COMBINATIONS]
    splits["test"]["colour"] = coloured[COMBINATIONS : 2 * COMBINATIONS]

    splits["train"]["pair"] = [tuple(sorted(pair)) for pair in pairs if pair in free]
    splits["train"]["related"] = [tuple(sorted(pair)) for pair in related if pair in free]
    splits["train"]["count"] = [(n, number) for n in names for number in COUNT_WORDS if (n, number) not in kept]
    rest = coloured[2 * COMBINATIONS :]
    splits["train"]["colour"] = rest + [swap_colours(pair) for pair in rest]
    return splits


def swap_colours(pair: tuple[str, str]) -> tuple[str, str]:
    """("red heart", "blue circle") to ("blue heart", "red circle")."""
    (colour, shape), (other_colour, other_shape) = (thing.split() for thing in pair)
    return f"{other_colour} {shape}", f"{colour} {other_shape}"


def training_scenes(splits: dict, generator: random.Random) -> list[dict]:
    """Captioned scenes in random order, made of training combinations only."""
    layouts, train = Layouts(generator), splits["train"]
    names = sorted(THINGS)
    coloured = [f"{colour} {shape}" for shape, colours in SHAPES.items() for colour in colours]

    def some(templates: list[str], number: int, *things: str) -> list[str]:
        return [fill(t, *things) for t in generator.sample(templates, number)]

    def naming(i: int) -> tuple:
        thing = names[i % len(names)]
        return [thing], layouts.free(1, (20, 34)), some(NAMING, 2, thing)

    def place(i: int) -> tuple:
        thing, place = RELATED[i % len(RELATED)], generator.choice(list(PLACES))
        box = (layouts.row() if place in ("left", "right") else layouts.column())[place in ("right", "bottom")]
        return [thing], [box], some([template % PLACES[place] for template in PLACE], 2, thing)

    def two_objects(i: int) -> tuple:
        things = generator.sample(train["pair"][i % len(train["pair"])], 2)
        if generator.random() < 0.5:
            return things, layouts.free(2, (20, 28)), some(AND, 2, *things) + some(AND, 1, *things[::-1])
        return things, layouts.row(), some(AND, 1, *things) + some(BESIDE, 1, *things) + some(BESIDE, 1, *things[::-1])

    def count(i: int) -> tuple:
        thing, number = train["count"][i % len(train["count"])]
        templates = generator.sample(COUNT_ONE if number == 1 else COUNT, 2)
        captions = [template.format(c=count_phrase(thing, number)) for template in templates]
        return [thing] * number, layouts.free(number, (18, 24)), captions

    def left_right(i: int) -> tuple:
        left, right = generator.sample(generator.choice(train["related"]), 2)
        captions = some(LEFT, 1, left, right) + some(RIGHT, 1, right, left)
        boxes = layouts.row()
        captions += some(SIDES, 1, left, right) if i % 3 == 0 else []
        captions += [f"the {left} is {PLACES['left']}", f"the {right} is {PLACES['right']}"]
        return [left, right], boxes, captions

    def above_below(i: int) -> tuple:
        upper, lower = generator.sample(generator.choice(train["related"]), 2)
        captions = some(ABOVE, 1, upper, lower) + some(BELOW, 1, lower, upper)
        boxes = layouts.column()
        captions += some(ENDS, 1, upper, lower) if i % 3 == 0 else []
        captions += [f"the {upper} is {PLACES['top']}", f"the {lower} is {PLACES['bottom']}"]
        return [upper, lower], boxes, captions

    def colour(i: int) -> tuple:
        if i % 4 == 0:
            thing = coloured[i // 4 % len(coloured)]
            return [thing], layouts.free(1, (20, 34)), some(ONE_COLOUR, 2, thing)
        things = generator.sample(train["colour"][i % len(train["colour"])], 2)
        return things, layouts.row(), some(TWO_COLOURS, 2, *things) + some(TWO_COLOURS, 1, *things[::-1])

    makers: list[Callable] = [naming, place, two_objects, count, left_right, above_below, colour]
    scenes = []
    for make in makers:
        for i in range(SCENES[make.__name__]):
            things, boxes, captions = make(i)
            scenes.append(scene_of("train", make.__name__, f"{i:04d}", things, boxes, unique(captions)))
    generator.shuffle(scenes)
    return scenes


SWAPPED_WORDS = {"left": "right", "above": "below", "top": "bottom"}
SWAPPED_WORDS |= {other: word for word, other in SWAPPED_WORDS.items()}


def swap_relation(caption: str) -> str:
    return re.sub(rf"\b({'|'.join(SWAPPED_WORDS)})\b", lambda match: SWAPPED_WORDS[match[0]], caption)


def grounded_pairs(split: str, splits: dict, generator: random.Random) -> tuple[list[dict], dict[str, list[dict]]]:
    """Held-out scenes and their minimal pairs: ([scene, ...], {UID: [row, ...]}); rows 2k and 2k+1 mirror."""
    layouts = Layouts(generator)

    def object_pair(i: int) -> tuple:
        shared, second, third = splits[split]["object"][i % COMBINATIONS]
        boxes, template = layouts.row(), generator.choice(AND[:4] + BESIDE)
        first_is_left = generator.random() < 0.5
        things = [[shared, other] if first_is_left else [other, shared] for other in (second, third)]
        return things, [boxes, boxes], [fill(template, shared, other) for other in (second, third)]

    def count_pair(i: int) -> tuple:
        thing, *numbers = splits[split]["count"][i // 2 % (COMBINATIONS // 2)]
        form = generator.randrange(len(COUNT))
        templates = [(COUNT_ONE if number == 1 else COUNT)[form] for number in numbers]
        captions = [t.format(c=count_phrase(thing, n)) for t, n in zip(templates, numbers, strict=True)]
        return [[thing] * n for n in numbers], [layouts.free(n, (18, 24)) for n in numbers], captions

    def colour_pair(i: int) -> tuple:
        things = splits[split]["colour"][i % COMBINATIONS]
        both = [generator.sample(things, 2)]
        both.append(list(swap_colours(tuple(both[0]))))
        boxes, template = layouts.row(), generator.choice(TWO_COLOURS)
        return both, [boxes, boxes], [fill(template, *pair) for pair in both]

    def relation_pair(kind: str, boxes: list, templates: list[str], mirrored: list[str], place: str, i: int) -> tuple:
        first, second = splits[split][kind][i % COMBINATIONS]
        form = i % COMBINATIONS + i // COMBINATIONS  # another form in every layout
        if form % 3 == 0:
            captions = [fill(generator.choice(templates), first, second)]
        elif form % 3 == 1:
            captions = [fill(generator.choice(mirrored), second, first)]
        else:
            captions = [f"the {first} is {PLACES[place]}"]
        if form % 2 == 0:  # the relation changes, the nouns stay
            captions.append(swap_relation(captions[0]))
        else:  # the nouns change places
            swapped = {first: second, second: first}
            captions.append(fix_articles([swapped.get(word, word) for word in captions[0].split()]))
        return [[first, second], [second, first]], [boxes, boxes], captions

    makers = {
        "object": object_pair,
        "count": count_pair,
        "colour": colour_pair,
        "left_right": lambda i: relation_pair("left_right", layouts.row(), LEFT, RIGHT, "left", i),
        "above_below": lambda i: relation_pair("above_below", layouts.column(), ABOVE, BELOW, "top", i),
    }
    scenes, rows = [], defaultdict(list)
    for kind, make in makers.items():
        for i in range(COMBINATIONS * LAYOUTS):
            things, boxes, captions = make(i)
            pair = f"{split}-{kind}-{i:03d}"
            for side in (0, 1):
                scene = scene_of(split, kind, f"{i:03d}{'ab'[side]}", things[side], boxes[side], [captions[side]])
                scenes.append(scene)
                good_bad = {"sentence_good": captions[side], "sentence_bad": captions[1 - side]}
                rows[kind].append({**good_bad, "UID": kind, "image": f"{scene['id']}.png", "pair": pair})
    return scenes, rows


def fix_articles(words: list[str]) -> str:
    """Words joined with "a" or "an" as the next word asks for."""
    for i, word in enumerate(words[:-1]):
        if word in ("a", "an"):
            words[i] = a(words[i + 1]).split()[0]
    return " ".join(words)


# ---------------------------------------------------------------------------------------------------------------------
# Grammar
# ---------------------------------------------------------------------------------------------------------------------
BLIMP = [
    "anaphor_gender_agreement",
    "anaphor_number_agreement",
    "determiner_noun_agreement_1",
    "determiner_noun_agreement_2",
    "determiner_noun_agreement_irregular_1",
    "determiner_noun_agreement_irregular_2",
    "determiner_noun_agreement_with_adj_2",
    "determiner_noun_agreement_with_adjective_1",
    "irregular_past_participle_adjectives",
    "irregular_past_participle_verbs",
    "irregular_plural_subject_verb_agreement_1",
    "irregular_plural_subject_verb_agreement_2",
    "principle_A_case_1",
    "regular_plural_subject_verb_agreement_1",
    "regular_plural_subject_verb_agreement_2",
    "wh_questions_subject_gap",
]
BLIMP_PAIRS = {"selection": 100, "test": 150}
UNSEEN_PAIRS = {"selection": 150, "test": 200}

SINGULAR_NOUNS = (  # words with one reading, as a regular expression
    "man|woman|boy|girl|child|king|queen|prince|day|night|house|room|door|window|tree|"
    "flower|bird|dog|cat|horse|book|story|letter|word|thing|place|time|way|town|city|"
    "village|country|river|mountain|garden|road|street|ship|boat|hand|head|face|heart|eye|"
    "voice|friend|brother|sister|mother|father|teacher|soldier|giant|fairy|witch|wolf|fox|"
    "bear|castle|forest|field|hill|stone|table|chair|box|question|answer|animal|year|hour|"
    "morning|evening|song|name|lady|gentleman|stranger|picture|creature|fellow|world"
)
PLURAL_NOUNS = (  # words with one reading, as a regular expression
    "men|women|boys|girls|children|days|nights|houses|rooms|doors|windows|trees|flowers|"
    "birds|dogs|cats|horses|books|stories|letters|words|things|places|times|ways|towns|"
    "cities|villages|countries|rivers|mountains|gardens|roads|streets|ships|boats|hands|heads|"
    "faces|hearts|eyes|voices|friends|brothers|sisters|soldiers|giants|fairies|stones|tables|"
    "chairs|boxes|questions|answers|animals|years|hours|songs|names|ladies|gentlemen|pictures|"
    "creatures|fellows|people"
)
FOLLOWING = (
    "is was are were had has have will would could of in on at and to with that who which for from as by he she"
)
FOLLOWING += " they I it but before after when or into upon"
AFTER_NOUN = rf"(?=[.,;:!?]|\"| (?:{FOLLOWING.replace(' ', '|')})\b)"
# base: (past, participle), where no form has another common reading as an infinitive or a noun
VERBS = {
    "go": ("went", "gone"),
    "come": ("came", None),
    "take": ("took", "taken"),
    "give": ("gave", "given"),
    "know": ("knew", "known"),
    "eat": ("ate", "eaten"),
    "speak": ("spoke", "spoken"),
    "write": ("wrote", "written"),
    "begin": ("began", "begun"),
    "sing": ("sang", "sung"),
    "make": ("made", None),
    "tell": ("told", None),
    "keep": ("kept", None),
    "get": ("got", None),
    "think": ("thought", None),
    "stand": ("stood", None),
    "run": ("ran", None),
    "become": ("became", None),
    "grow": ("grew", "grown"),
    "throw": ("threw", "thrown"),
    "drive": ("drove", "driven"),
    "forget": ("forgot", "forgotten"),
    "do": ("did", "done"),
    "be": ("was", "been"),
    "buy": ("bought", None),
    "bring": ("brought", None),
    "teach": ("taught", None),
    "catch": ("caught", None),
    "hear": ("heard", None),
    "hold": ("held", None),
    "sleep": ("slept", None),
    "sit": ("sat", None),
    "say": ("said", None),
    "lose": ("lost", None),
    "meet": ("met", None),
    "break": ("broke", "broken"),
    "fall": ("fell", "fallen"),
    "see": ("saw", "seen"),
    "choose": ("chose", "chosen"),
    "hide": ("hid", "hidden"),
    "steal": ("stole", "stolen"),
    "shake": ("shook", "shaken"),
}
TO_PAST = {base: past for base, (past, _) in VERBS.items() if base not in ("fall", "see")}
PARTICIPLE_TO_PAST = {done: past for past, done in VERBS.values() if done not in (None, "been")}
AGREEMENT = {"was": "were", "is": "are", "has": "have", "does": "do"}
TO_OBJECT_CASE = {"He": "Him", "They": "Them", "I": "Me", "We": "Us", "She": "Her"}
TO_SUBJECT_CASE = {"him": "he", "them": "they", "me": "I", "us": "we", "her": "she"}
FINITE = "was|is|had|has|said|saw|came|took|could|would|did|went|knew|thought|looked|were|are|have|will|can|must|am"


def change(pattern: str, replacement: Callable[[re.Match], str]) -> Callable[[str], str | None]:
    """A rule: the sentence with the first match of `pattern` replaced, or None where there is no match."""
    compiled = re.compile(pattern)

    def rule(sentence: str) -> str | None:
        match = compiled.search(sentence)
        return match and sentence[: match.start()] + replacement(match) + sentence[match.end() :]

    return rule


def first_that_applies(*rules: Callable[[str], str | None]) -> Callable[[str], str | None]:
    return lambda sentence: next((bad for rule in rules if (bad := rule(sentence))), None)


REVERSED_AGREEMENT = {plural_form: singular for singular, plural_form in AGREEMENT.items()}
RULES: dict[str, Callable[[str], str | None]] = {
    "unseen_verb_agreement": first_that_applies(
        change(r"^(\"?(?:He|She|It)) (was|is|has|does)\b", lambda m: f"{m[1]} {AGREEMENT[m[2]]}"),
        change(r"^(\"?(?:They|We)) (were|are|have|do)\b", lambda m: f"{m[1]} {REVERSED_AGREEMENT[m[2]]}"),
        change(rf"^(\"?The (?:{SINGULAR_NOUNS})) (was|is|has)\b", lambda m: f"{m[1]} {AGREEMENT[m[2]]}"),
        change(rf"^(\"?The (?:{PLURAL_NOUNS})) (were|are|have)\b", lambda m: f"{m[1]} {REVERSED_AGREEMENT[m[2]]}"),
        change(r"^(\"?I) (was|am|have)\b", lambda m: f"{m[1]} {({'was': 'were', 'am': 'is', 'have': 'has'})[m[2]]}"),
    ),
    "unseen_determiner": first_that_applies(
        change(rf"\b([Tt]his) ({SINGULAR_NOUNS}){AFTER_NOUN}", lambda m: f"{m[1][0]}hese {m[2]}"),
        change(rf"\b([Tt]hese|[Tt]hose) ({PLURAL_NOUNS}){AFTER_NOUN}", lambda m: f"{m[1][0]}his {m[2]}"),
        change(rf"\bthat ({SINGULAR_NOUNS}){AFTER_NOUN}", lambda m: f"those {m[1]}"),
        change(rf"\b(a) ({SINGULAR_NOUNS}){AFTER_NOUN}", lambda m: f"these {m[2]}"),
        change(
            rf"\b(many|several|two|three|four|five|six|seven|few) ({PLURAL_NOUNS}){AFTER_NOUN}", lambda m: f"a {m[2]}"
        ),
    ),
    "unseen_article": first_that_applies(
        change(r"\ban ([aei][a-tv-z][a-z]+)\b", lambda m: f"a {m[1]}"),
        change(r"\ba ([bcdfgjklmnpqrstvwyz][a-z]+)\b", lambda m: f"an {m[1]}"),
    ),
    "unseen_pronoun_case": first_that_applies(
        change(
            r"\b(to|with|for|from|at|of|by|upon) (him|them|me|us|her)(?=[.,;:!?])",
            lambda m: f"{m[1]} {TO_SUBJECT_CASE[m[2]]}",
        ),
        change(rf"^(\"?)(He|They|I|We|She) ({FINITE})\b", lambda m: f"{m[1]}{TO_OBJECT_CASE[m[2]]} {m[3]}"),
    ),
    "unseen_word_order": first_that_applies(
        change(r"\b(of|into|from|at|with|for|to) (the|his|my|their|your)(?= [a-z])", lambda m: f"{m[2]} {m[1]}"),
        change(rf"\b(the) ({SINGULAR_NOUNS}){AFTER_NOUN}", lambda m: f"{m[2]} {m[1]}"),
    ),
    "unseen_verb_form": first_that_applies(
        change(
            rf"\b(had|has|have) ({'|'.join(PARTICIPLE_TO_PAST)})\b", lambda m: f"{m[1]} {PARTICIPLE_TO_PAST[m[2]]}"
        ),
        change(
            rf"\b(to|(?:did|do|could|will) not|didn't|don't|could|would|will|can|must|cannot) ({'|'.join(TO_PAST)})\b",
            lambda m: f"{m[1]} {TO_PAST[m[2]]}",
        ),
    ),
}


def unseen_pairs(source: Path, text: list[str], generator: random.Random) -> dict[str, list[dict]]:
    """Pairs made by the rules above from dev sentences of 5 to 15 familiar words, each sentence used once."""
    known = {normalised(sentence) for sentence in text}
    counts = Counter(word for sentence in text for word in words_of(sentence))
    sentences = []
    for name, tokenized in (("cbt", True), ("children_stories", False), ("gutenberg", False), ("simple_wiki", False)):
        for sentence in read_sentences(source / "babylm_text" / f"dev.{name}.txt.gz", tokenized):
            words = words_of(sentence)
            familiar = all(counts[word] >= 2 for word in words)
            whole = sentence.lstrip('"')[0].isupper() and sentence[-1] in '.!?"'
            if 5 <= len(words) <= 15 and familiar and whole and normalised(sentence) not in known:
                known.add(normalised(sentence))
                sentences.append(sentence)
    generator.shuffle(sentences)

    needed = sum(UNSEEN_PAIRS.values())
    rows: dict[str, list[dict]] = {uid: [] for uid in RULES}
    for sentence in sentences:
        fitting = [(uid, bad) for uid, rule in RULES.items() if len(rows[uid]) < needed and (bad := rule(sentence))]
        if fitting:
            uid, bad = min(fitting, key=lambda choice: len(rows[choice[0]]))
            rows[uid].append({"sentence_good": sentence, "sentence_bad": bad, "UID": uid})
    for uid, found in rows.items():
        if len(found) < needed:
            raise ValueError(f"{uid}: only {len(found)} of {needed} sentences found; give more dev text.")
    return rows


def normalised(sentence: str) -> str:
    return " ".join(words_of(sentence))


def grammar_pairs(source: Path, text: list[str], generator: random.Random) -> dict[str, dict[str, list[dict]]]:
    """{split: {UID: rows}} of BLiMP and of unseen sentences; no sentence is in both splits."""
    splits: dict[str, dict[str, list[dict]]] = {"selection": {}, "test": {}}
    for uid in BLIMP:
        with gzip.open(source / "blimp" / f"{uid}.jsonl.gz", "rt", encoding="utf-8") as lines:
            pairs = [json.loads(line) for line in lines]
        pairs = [{key: pair[key] for key in ("sentence_good", "sentence_bad", "UID")} for pair in pairs]
        pairs = list({pair["sentence_good"]: pair for pair in pairs}.values())
        generator.shuffle(pairs)
        cut = BLIMP_PAIRS["selection"]
        splits["selection"][uid], splits["test"][uid] = pairs[:cut], pairs[cut : cut + BLIMP_PAIRS["test"]]
    for uid, pairs in unseen_pairs(source, text, generator).items():
        cut = UNSEEN_PAIRS["selection"]
        splits["selection"][uid], splits["test"][uid] = pairs[:cut], pairs[cut:]
    return splits


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------
def write_gzip(path: Path, lines: Iterable[str]) -> None:
    """Lines as gzip with neither a time nor a name in the header, so that the bytes depend on the lines alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write("".join(line + "\n" for line in lines).encode())


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")


def as_json(rows: Iterable[dict]) -> list[str]:
    return [json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows]


def make_demo_data(source: Path, folder: Path) -> None:
    """Write everything under `folder`; each part has its own seed, so that changing one leaves the others alone."""
    text = training_text(source)
    write_gzip(folder / "text" / "train.txt.gz", text)
    write_glyphs(source, folder / "glyphs")

    splits = split_combinations(random.Random(f"{SEED} combinations"))
    scenes = training_scenes(splits, random.Random(f"{SEED} training scenes"))
    for split in ("selection", "test"):
        held_out, rows = grounded_pairs(split, splits, random.Random(f"{HELD_OUT_SEED} {split} scenes"))
        scenes += held_out
        for uid, pairs in rows.items():
            write_lines(folder / split / task_of(uid) / f"{uid}.jsonl", as_json(pairs))
    write_gzip(folder / "scenes.jsonl.gz", as_json(scenes))

    for split, paradigms in grammar_pairs(source, text, random.Random(f"{HELD_OUT_SEED} grammar")).items():
        for uid, pairs in paradigms.items():
            write_gzip(folder / split / "grammar" / f"{uid}.jsonl.gz", as_json(pairs))

    captions = [caption for scene in scenes if scene["split"] == "train" for caption in scene["captions"]]
    print(f"{len(text):,} sentences, {sum(len(s.split()) for s in text):,} words of text")
    print(f"{len(captions):,} training captions, {sum(len(c.split()) for c in captions):,} words")
    print(f"{sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()):,} bytes in {folder}")


WRITTEN = ("text", "glyphs", "scenes.jsonl.gz", "selection", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with babylm_text, blimp and openmoji_128")
    parser.add_argument("--output-dir", type=Path, default=REPOSITORY / "src" / "babylm_vlm" / "demo" / "data")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there (the vision tower stays)")
    arguments = parser.parse_args()
    output = arguments.output_dir
    present = [name for name in WRITTEN if (output / name).exists()]
    if present and not arguments.overwrite:
        parser.error(f"{output} already holds {', '.join(present)}: give --overwrite to replace them.")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        make_demo_data(arguments.source, Path(temporary) / "data")
        for name in present:
            shutil.rmtree(output / name) if (output / name).is_dir() else (output / name).unlink()
        for name in WRITTEN:
            (Path(temporary) / "data" / name).rename(output / name)


if __name__ == "__main__":
    main()
