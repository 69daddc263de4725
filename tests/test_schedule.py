"""The order of a run, its word budget and its checkpoints by words, all known beforehand.

Run: pytest tests/test_schedule.py
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator
from transformers import AutoTokenizer

from babylm_vlm.data.packing import PackingCollator
from babylm_vlm.data.text import TextBlocks, count_words, read_sentences, tokenize_and_count
from babylm_vlm.files import checkpoint_name, words_seen
from babylm_vlm.training.recipe import make_recipe, training_arguments
from babylm_vlm.training.schedule import BABYLM, Schedule, checkpoint_steps, make_schedule
from babylm_vlm.training.train import train

RECIPE = {
    "model": "multimodal",
    "captions": "c",
    "text": "t.txt",
    "output_dir": "out",
    "per_device_train_batch_size": 4,
}
SMALL = {
    "model": "language",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "block_size": 16,
    "per_device_train_batch_size": 2,
    "disable_tqdm": True,
}
LINES = [f"the {colour} cat is {place}" for colour in ("red", "blue", "green") for place in "abcdefgh"]


def schedule_of(text: int, captions: int, **keys) -> tuple[Schedule, int, np.ndarray]:
    """The schedule of rows of 10 (text) and 3 (captions) words each, its updates, and words after each."""
    words = np.repeat(10, text), np.repeat(3, captions)
    recipe = make_recipe({**RECIPE, **keys}, "the test")
    schedule, steps = make_schedule(recipe, training_arguments(recipe, Path("out")), *words)
    return schedule, steps, schedule.read_after(np.concatenate(words), steps)


# --- order -----------------------------------------------------------------------------------------------------------


def test_mixed_rows_come_as_accelerate_shuffles_them():
    sampler = SeedableRandomSampler(range(50), generator=Generator().manual_seed(7), data_seed=7)
    schedule = Schedule([50], [0], epochs=2, seed=7, batch_rows=4)
    for number in range(2):
        sampler.set_epoch(number)
        schedule.start(number * schedule.updates)
        assert list(schedule) == list(sampler)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.2, 3), st.integers(1, 9), st.booleans())
def test_one_kind_of_data_first_reads_every_row_equally_often(first, second, epochs, batch, swapped):
    order = [1, 0] if swapped else [0, 1]
    rows = Schedule([first, second], order, epochs, seed=0, batch_rows=batch).rows(0)
    kinds = (rows >= first).astype(int)
    assert (np.diff(kinds) * (-1 if swapped else 1) >= 0).all()
    for group, size in ((rows[kinds == 0], first), (rows[kinds == 1] - first, second)):
        counts = np.bincount(group, minlength=size)
        assert counts.sum() == round(epochs * size) and counts.max() - counts.min() <= 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 3), st.integers(1, 30))
def test_what_was_read_is_the_sum_over_the_batches_so_far(counts, batch, batches, steps):
    schedule, counts = Schedule([len(counts)], [0], 1, 0, batch, batches), np.array(counts)
    expected, number = [0], 0
    while len(expected) <= steps:
        rows = schedule.rows(number)
        for start in range(0, len(rows), batch * batches):
            expected.append(expected[-1] + counts[rows[start : start + batch * batches]].sum())
        number += 1
    assert schedule.read_after(counts, steps).tolist() == expected[: steps + 1]


def test_for_several_processes_the_last_incomplete_batch_is_left_out():
    assert len(Schedule([10], [0], 1, 0, batch_rows=4, even=True)) == 8
    assert len(Schedule([10], [0], 1, 0, batch_rows=4)) == 10


@pytest.mark.parametrize("batches", [1, 2])
def test_every_pass_reads_its_own_order_and_the_words_that_were_counted_beforehand(tmp_path, monkeypatch, batches):
    read = []

    class Recorder(PackingCollator):
        def __call__(self, given):
            read.append([tuple(sample["input_ids"].tolist()) for sample in given])
            return super().__call__(given)

    monkeypatch.setattr("babylm_vlm.training.train.PackingCollator", Recorder)
    lines = [f"the {'very ' * (number % 4)}old number {number} is here" for number in range(60)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    keys = {"text": str(tmp_path / "text.txt"), "num_train_epochs": 3, "logging_steps": 1}
    keys |= {"gradient_accumulation_steps": batches, "output_dir": str(tmp_path / "run")}
    state = train(make_recipe(SMALL | keys, "the test"))

    blocks = TextBlocks(lines, AutoTokenizer.from_pretrained(tmp_path / "run"), SMALL["block_size"])
    number = {tuple(row.tolist()): index for index, row in enumerate(blocks.blocks)}
    assert len(number) == len(blocks) and state["epochs"] == 3
    rows = [[number[row] for row in batch] for batch in read]
    passes = np.split(np.concatenate(rows), 3)
    assert all(sorted(one) == list(range(len(blocks))) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    words = np.cumsum([blocks.words[batch].sum() for batch in rows])
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    logged = [entry["words_seen"] for entry in log if "loss" in entry]
    a_pass = len(rows) // 3  # its last update may have fewer batches
    ends = [
        first + min(last, a_pass)
        for first in range(0, len(rows), a_pass)
        for last in range(batches, a_pass + batches, batches)
    ]
    assert logged == words[np.array(ends) - 1].tolist()


# --- budget ----------------------------------------------------------------------------------------------------------


@given(st.integers(60, 1000), st.sampled_from(["mixed", "text_first", "captions_first"]))
def test_a_run_reads_no_more_than_its_budget_and_nearly_all_of_it(budget, order):
    _, steps, words = schedule_of(20, 30, word_budget=budget, data_order=order)
    assert steps == len(words) - 1 and budget - 2 * 40 < words[-1] <= budget


def test_budget_and_passes():
    assert schedule_of(20, 30)[1] == 3 * 13  # the trainer's default number of passes
    assert schedule_of(20, 30, num_train_epochs=2, word_budget=590)[2][-1] == 580  # nearly as many are in two passes
    assert schedule_of(20, 30, word_budget=590, max_steps=3)[1] == 3
    with pytest.raises(ValueError, match=r"word budget is 1,000, but the data have 580 words in 2 passes: add data"):
        schedule_of(20, 30, num_train_epochs=2, word_budget=1000)
    with pytest.raises(ValueError, match="The word budget, 5, is less than one update reads"):
        schedule_of(20, 0, word_budget=5)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many", float("inf")])
def test_numbers_of_words_that_are_none_are_named(value):
    for key in ("word_budget", "checkpoint_words"):
        with pytest.raises(ValueError, match=f"'{key}' must be a whole number of words above 0, not {value!r}"):
            make_recipe({**RECIPE, key: [value] if key == "checkpoint_words" else value}, "the test")
    with pytest.raises(ValueError, match="'checkpoint_words' must be babylm or a list"):
        make_recipe({**RECIPE, "checkpoint_words": "all"}, "the test")
    with pytest.raises(ValueError, match="'data_order' must be one of mixed, text_first, captions_first, not 'text'"):
        make_recipe({**RECIPE, "data_order": "text"}, "the test")


def test_words_in_scientific_notation_are_whole_numbers():
    recipe = make_recipe({**RECIPE, "word_budget": "1e8", "checkpoint_words": ["1e6", 2_000_000.0]}, "the test")
    assert (recipe.word_budget, recipe.checkpoint_words) == (100_000_000, [1_000_000, 2_000_000])


def test_a_budget_is_printed_by_source_and_kept(tmp_path, capsys):
    for name, lines in (("a", LINES), ("b", LINES[:6])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    keys = SMALL | {"text": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], "output_dir": str(tmp_path / "run")}
    state = train(make_recipe({**keys, "word_budget": 1700, "checkpoint_words": [1700]}, "the test"))
    printed = capsys.readouterr().out
    assert "120   80.0%" in printed and "30   20.0%" in printed and "150  100.0%" in printed
    assert f"The run reads {state['words_seen']:,} words in {state['epochs']:.2f} passes" in printed
    assert "Warning: the BabyLM challenge allows no more than 10 passes" in " ".join(printed.split())
    assert 1700 - 32 < state["words_seen"] <= 1700
    assert json.loads((tmp_path / "run/chck_1700/training_state.json").read_text())["steps"] == state["steps"]


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_the_challenges_checkpoints():
    names = [checkpoint_name(number) for number in BABYLM]
    assert [words_seen(name) for name in names] == BABYLM and words_seen(checkpoint_name(1500)) == 1500
    assert len(names) == 28 and names[8:11] == ["chck_9M", "chck_10M", "chck_20M"] and names[-1] == "chck_1000M"
    million = np.arange(0, 99_700_001, 100_000)  # ten passes over nearly ten million words
    steps = checkpoint_steps("babylm", million)
    assert [name for names in steps.values() for name in names] == [checkpoint_name(n) for n in BABYLM[:19]]
    assert steps[10] == ["chck_1M"] and steps[len(million) - 1] == ["chck_100M"]


@given(st.lists(st.integers(1, 50), min_size=2, max_size=30), st.lists(st.integers(50, 900), min_size=1, unique=True))
def test_a_checkpoint_is_the_last_that_has_seen_no_more(read, wanted):
    words = np.cumsum([0, *read])
    for step, names in checkpoint_steps(wanted, words).items():
        for number in (int(name.removeprefix("chck_")) for name in names):
            assert words[step] <= number
            assert words[step + 1] > number if step < len(read) else words[step] >= 0.95 * number


def test_a_checkpoint_before_the_first_update_is_an_error():
    with pytest.raises(ValueError, match="A checkpoint at 10 words is wanted, but the first update reads 64"):
        checkpoint_steps([10, 100], np.array([0, 64, 128]))
    assert checkpoint_steps(None, np.array([0, 64])) == {}


# --- words -----------------------------------------------------------------------------------------------------------

SENTENCES = st.lists(st.text(min_size=1, max_size=20).map(str.strip).filter(bool), min_size=1, max_size=6)


@given(SENTENCES)
def test_every_word_is_counted_once_in_the_token_it_begins_in(tiny_tokenizer, sentences):
    tokens, words = tokenize_and_count(sentences, tiny_tokenizer)
    expected = [[*ids, tiny_tokenizer.eos_token_id] for ids in tiny_tokenizer(sentences)["input_ids"]]
    assert tokens.tolist() == [token for ids in expected for token in ids]
    ends = np.cumsum([len(ids) for ids in expected])
    assert [part.sum() for part in np.split(words, ends[:-1])] == [len(sentence.split()) for sentence in sentences]


def test_words_of_a_block_are_those_that_begin_in_it(tiny_tokenizer):
    blocks = TextBlocks(LINES, tiny_tokenizer, 7)
    texts = [tiny_tokenizer.decode(block, skip_special_tokens=True) for block in blocks.blocks]
    assert all(abs(len(text.split()) - words) <= 1 for text, words in zip(texts, blocks.words, strict=True))
    assert 0 <= count_words(LINES) - blocks.words.sum() < 7


@pytest.mark.parametrize("opener", [open, gzip.open])
def test_text_that_is_no_utf8_is_named_with_its_line(tmp_path, opener):
    file = tmp_path / ("a.txt" if opener is open else "a.txt.gz")
    with opener(file, "wb") as stream:
        stream.write("one\nzwei Wörter\n".encode() + "drei Wörter\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{file.name}:3 is no UTF-8 text \(invalid .*\): convert the file"):
        read_sentences(str(file))
