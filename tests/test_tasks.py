"""Every text task of the suite: files of the official format, made for the purpose, and what comes out of them.

Run: pytest tests/test_tasks.py. Where BABYLM_EVALUATION_DATA names a copy of `evaluation_data`, that is checked too.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_files import write_lines
from scipy.stats import spearmanr

from babylm_vlm.evaluation import comps, conditional_scores, entity_tracking, ewok, find_tasks, reading, wug
from babylm_vlm.evaluation.choices import Item
from babylm_vlm.evaluation.predictions import SIZES
from babylm_vlm.evaluation.tasks import task_of
from babylm_vlm.metrics.surprisal_correlation.surprisal_correlation import correlation

EWOK = {
    "Context1": "The ball is red.",
    "Context2": "It is blue.",
    "Target1": "Look.",
    "Target2": "See.",
    "Domain": "d",
}
ENTITY = {"input_prefix": "Box 1 contains ", "options": ["the key.", "the gift."], "numops": 2}
COMPS = {"prefix_acceptable": "A cat", "prefix_unacceptable": "A ball", "property_phrase": "can purr."}
WUG = {"sentences": "a wuggity\ta wugness", "ratio": 0.25}
WRONG = [
    (ewok, {**EWOK, "Target2": " "}, "the field Target2 must be text"),
    (ewok, {"Context1": "a"}, "the field Target1 is missing"),
    (entity_tracking, {**ENTITY, "options": ["one"]}, "the field options must be a list of two or more texts"),
    (entity_tracking, {**ENTITY, "numops": "many"}, "the field numops must be a number, not 'many'"),
    (comps, {**COMPS, "property_phrase": None}, "the field property_phrase must be text, not None"),
    (wug, {**WUG, "sentences": "only one"}, "must hold two texts with a tab between"),
    (wug, {"sentences": "a\tb"}, "the field ratio is missing"),
]


def read(task, tmp_path, file, row):
    return task.read(write_lines(tmp_path / file, [row]))[0]


def test_the_official_formats(tmp_path):
    context = EWOK["Context1"]
    assert read(ewok, tmp_path, "d.jsonl", EWOK).options == ((context, " Look."), (context, " See."))
    item = read(entity_tracking, tmp_path, "move_contents.jsonl", ENTITY)
    assert item.uid == "move_contents_2_ops" and entity_tracking.split_of(item.uid) == "move_contents"
    assert item.options == (("Box 1 contains ", "the key."), ("Box 1 contains ", "the gift."))
    item = read(comps, tmp_path, "comps_wugs_dist-before.jsonl.gz", COMPS)
    assert item.uid == "wugs_dist_before"
    assert item.options == (("A cat ", "can purr."), ("A ball ", "can purr."))
    item = read(wug, tmp_path, "wug_past_tense.jsonl", WUG)
    assert (item.uid, item.facts) == ("wug_past", {"ratio": 0.25})
    assert item.options == (("", "a wuggity"), ("", "a wugness"))


@pytest.mark.parametrize(("task", "row", "message"), WRONG)
def test_wrong_rows_are_named(task, row, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        read(task, tmp_path, "x.jsonl", row)
    assert str(raised.value).startswith(f"{tmp_path / 'x.jsonl'}:1: ")


def test_tasks_are_known_by_their_folders(tmp_path):
    write_lines(tmp_path / "blimp_fast" / "a.jsonl", [])
    write_lines(tmp_path / "wug_past_tense" / "wug_past_tense.jsonl.gz", [])
    write_lines(tmp_path / "glue_filtered" / "rte.jsonl", [])
    (tmp_path / "reading").mkdir()
    (tmp_path / "reading" / "reading_data.csv").write_text("")
    found = find_tasks(tmp_path)
    assert {name: task_of(path).name for name, path in found.items()} == {
        "blimp_fast": "blimp",
        "reading": "reading",
        "wug_past_tense": "wug_past",
    }
    assert list(find_tasks(tmp_path, ["wug_past", "blimp"])) == ["wug_past_tense", "blimp_fast"]
    with pytest.raises(ValueError, match="GLUE needs fine-tuning"):
        find_tasks(tmp_path, ["glue_filtered"])


def test_correlation_with_people():
    """Spearman's rho of the first form's probability; a failure is no preference; what does not vary has none."""
    generator = np.random.default_rng(0)
    scores, ratios = generator.normal(size=(30, 2)), generator.random(30).round(1)
    once = np.ones((1, 30), dtype=int)
    probabilities = 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    assert correlation(scores, ratios, once)[0] == pytest.approx(spearmanr(probabilities, ratios)[0], abs=1e-6)
    assert correlation(np.full((30, 2), np.nan), ratios, once)[0] == 0
    twice = correlation(np.repeat(scores, 2, axis=0), np.repeat(ratios, 2), np.ones((1, 60), dtype=int))
    assert correlation(scores, ratios, 2 * once) == pytest.approx(twice)


# --- reading times ---------------------------------------------------------------------------------------------------

WORDS = [
    "the",
    "girls",
    "were",
    "running",
    "home",
    "and",
    "the",
    "boys",
    "were",
    "not",
    "under",
    "the",
    "blue",
    "table",
]


@pytest.fixture
def reading_file(tmp_path):
    """Sixty words with invented reading times; some have no word before, or no frequency."""
    generator = np.random.default_rng(1)
    numbers = (*reading.EYE_TRACKING, reading.SELF_PACED, *reading.PREDICTORS, "prev_length")
    file = tmp_path / "reading" / "reading_data.csv"
    file.parent.mkdir()
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, ["", "item", "word", "prev_item", "prev_word", "sent_id", *numbers])
        writer.writeheader()
        for i in range(60):
            place = int(generator.integers(1, len(WORDS)))
            row = {name: f"{generator.normal():.6f}" for name in numbers}
            row |= {"": i, "item": " ".join(WORDS[:place]), "word": WORDS[place], "sent_id": i // 4}
            row |= {"prev_item": " ".join(WORDS[: place - 1]), "prev_word": WORDS[place - 1]}
            row |= {"Subtlex_log10": ""} if i == 7 else {}
            writer.writerow(row)
    return file


def test_reading_data(reading_file):
    items = reading.read(reading_file.parent)
    assert len(items) == 60 and {len(item.options) for item in items} == {1, 2}
    assert np.isnan(items[7].facts["Subtlex_log10"])
    text = reading_file.read_text()
    reading_file.write_text(text.replace("sent_id", "sentence"))
    with pytest.raises(ValueError, match=r"reading_data\.csv:2: the column sent_id is missing"):
        reading.read(reading_file)
    reading_file.write_text(text.replace("RTgopast", "gopast"))
    with pytest.raises(ValueError, match=r"reading_data\.csv:2: the field RTgopast is missing"):
        reading.read(reading_file)
    for content, message in ((text.partition("\n")[0], "has a header and no row below it"), ("", "is empty")):
        reading_file.write_text(content)
        with pytest.raises(ValueError, match=message):
            reading.read(reading_file)


def test_surprisals_are_those_of_the_word_in_its_context(tiny_language, tiny_tokenizer, reading_file):
    items = reading.read(reading_file)
    found = reading.surprisals(tiny_language, tiny_tokenizer, items)
    contexts, words = zip(*(item.options[0] for item in items), strict=True)
    expected = -conditional_scores(tiny_language, tiny_tokenizer, contexts, [" " + word for word in words])
    np.testing.assert_allclose([row[0] for row in found], expected, atol=1e-4)
    assert [len(row) for row in found] == [len(item.options) for item in items]


def test_official_surprisals(tiny_language, tiny_tokenizer, reading_file):
    """Token by token, each in a forward pass of its own, as the official pipeline does."""

    def probability(text, target):
        with torch.no_grad():
            logits = tiny_language(**tiny_tokenizer(text, return_tensors="pt")).logits[0, -1]
        return logits.softmax(-1)[target].item()

    def official(text, word):
        first, *others = tiny_tokenizer(word, add_special_tokens=False)["input_ids"]
        product = probability(text, first)
        text += tiny_tokenizer.decode(first)
        for token in others:
            piece = tiny_tokenizer.decode(token)
            product *= probability(text, tiny_tokenizer(piece, add_special_tokens=False)["input_ids"][0])
            text += piece
        return -np.log(product)

    items = reading.read(reading_file)[:10]
    found = reading.surprisals(tiny_language, tiny_tokenizer, items, official=True)
    for item, row in zip(items, found, strict=True):
        np.testing.assert_allclose(row, [official(*option) for option in item.options], rtol=1e-4)


def test_the_official_rule_takes_a_context_none_for_missing(tiny_language, tiny_tokenizer):
    items = [
        Item("reading", "0", (("None of", "the"), ("None", "of"))),
        Item("reading", "0", (("None", "of"),)),
        Item("reading", "1", (("the cat", "sat"), ("the", "cat"))),
    ]
    for official, words in ((False, [2, 1, 2]), (True, [1, 1, 2])):
        found = reading.surprisals(tiny_language, tiny_tokenizer, items, official=official)
        assert [len(row) for row in found] == words


def test_gains_are_those_of_ordinary_regressions(reading_file):
    """R squared by least squares on the design matrix itself; a row counted twice is the row twice."""
    items = reading.read(reading_file)
    generator = np.random.default_rng(2)
    scores = [generator.random(len(item.options)) for item in items]

    def unexplained(measure, predictors):
        design = np.stack([np.ones(len(measure)), *predictors], axis=1)
        return ((measure - design @ np.linalg.lstsq(design, measure, rcond=None)[0]) ** 2).sum()

    def gain(measure, names, rows):
        base = [np.array([value(i) for i in rows]) for value in names]
        base += [base[i] * base[j] for i in range(len(base)) for j in range(i)]
        times = np.array([items[i].facts[measure] for i in rows])
        total = ((times - times.mean()) ** 2).sum()
        r2_base, r2_with = (
            1 - unexplained(times, predictors) / total
            for predictors in (base, [*base, np.array([scores[i][0] for i in rows])])
        )
        return 100 * (r2_with - r2_base) / (1 - r2_base)

    names = [lambda i, name=name: items[i].facts[name] for name in reading.PREDICTORS]
    known = [i for i in range(60) if i != 7]
    eye = np.mean([gain(measure, names, known) for measure in reading.EYE_TRACKING])
    names += [lambda i: items[i].facts["prev_length"], lambda i: scores[i][1]]
    spill = [i for i in known if len(items[i].options) == 2]
    counts = np.stack([np.ones(60, dtype=int), generator.integers(0, 3, 60)])
    found = reading.gains(scores, items, counts)
    assert found["reading_eye_tracking"][0] == pytest.approx(eye)
    assert found["reading_self_paced"][0] == pytest.approx(gain(reading.SELF_PACED, names, spill))
    again = np.repeat(np.arange(60), counts[1]).tolist()
    repeated = reading.gains(
        [scores[i] for i in again], [items[i] for i in again], np.ones((1, len(again)), dtype=int)
    )
    for name, values in found.items():
        assert values[1] == pytest.approx(repeated[name][0])


# --- the official data -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not Path(os.environ.get("BABYLM_EVALUATION_DATA", "-"), "full_eval").is_dir(),
    reason="BABYLM_EVALUATION_DATA names no copy of the official evaluation_data",
)
def test_the_official_data_has_the_official_sizes():
    checked = 0
    for path in find_tasks(Path(os.environ["BABYLM_EVALUATION_DATA"], "full_eval")).values():
        task = task_of(path)
        uids = [item.uid.lower() for item in task.read(path)]
        sizes = {uid: uids.count(uid) for uid in set(uids)}
        assert sizes == (SIZES[task.name] if isinstance(SIZES[task.name], dict) else {uids[0]: SIZES[task.name]})
        checked += 1
    assert checked
