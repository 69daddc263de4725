"""From a checkpoint and benchmark files to results that can be trusted, repeated and compared.

Run: pytest tests/test_evaluation.py
"""

import copy
import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from pair_files import SENTENCES, row, write_lines
from rich.console import Console
from transformers import AutoTokenizer, ByT5Tokenizer

from babylm_vlm.evaluation import (
    accuracy,
    compare_results,
    evaluate_model,
    find_tasks,
    load_model,
    print_comparison,
    print_results,
    read_pairs,
    score_pairs,
    sequence_scores,
)
from babylm_vlm.evaluation.output import items_file, read_items, write_items
from babylm_vlm.evaluation.tasks import Outcome


def test_find_tasks(tmp_path):
    for name in ("one/x.jsonl", "two/y.jsonl.gz", "two/z.jsonl"):
        write_lines(tmp_path / name, [row()])
    (tmp_path / "pictures").mkdir()
    assert find_tasks(tmp_path) == {"one": tmp_path / "one", "two": tmp_path / "two"}
    assert find_tasks(tmp_path, ["two"]) == {"two": tmp_path / "two"}
    assert find_tasks(tmp_path / "two") == {"two": tmp_path / "two"}
    assert find_tasks(tmp_path / "two", ["z", "y"]) == {
        "z": tmp_path / "two" / "z.jsonl",
        "y": tmp_path / "two" / "y.jsonl.gz",
    }
    assert find_tasks(tmp_path / "two" / "z.jsonl") == {"z": tmp_path / "two" / "z.jsonl"}
    with pytest.raises(FileNotFoundError, match="holds no task three; tasks there: one, two"):
        find_tasks(tmp_path, ["one", "three"])
    with pytest.raises(FileNotFoundError, match="nor its subfolders"):
        find_tasks(tmp_path / "pictures")
    with pytest.raises(FileNotFoundError, match=r"data folder .* does not exist"):
        find_tasks(tmp_path / "nowhere")


@pytest.fixture
def suite(tmp_path, grounded_file):
    """A data folder of four tasks: the user's grammar and grounded pairs, and two in the official layout."""
    data = grounded_file.parent.parent
    write_lines(data / "grammar" / "agreement.jsonl.gz", [row(), row("a red cat", "a red red cat")])
    entities = [
        {"input_prefix": "Box 0 contains the ball. Box 0 contains ", "options": ["the ball.", "the cat."], "numops": n}
        for n in (0, 1)
    ]
    write_lines(data / "entity_tracking" / "regular.jsonl", entities)
    forms = [{"sentences": f"a {word} cat\tthe {word} cat", "ratio": i / 4} for i, word in enumerate("abcde")]
    write_lines(data / "wug_adj_nominalization" / "wug_adj_nominalization.jsonl", forms)
    return data


def evaluate(checkpoint, data, output_dir, **options):
    model, processor = load_model(checkpoint)
    return evaluate_model(model, processor, find_tasks(data), output_dir, name=str(checkpoint), **options)


@pytest.mark.parametrize("kind", ["language", "multimodal"])
def test_results_of_a_checkpoint(kind, tmp_path, suite, request):
    checkpoint = request.getfixturevalue(f"{kind}_checkpoint")
    model, processor = load_model(checkpoint)
    assert next(model.parameters()).dtype == torch.float32
    output = tmp_path / "out" / kind
    results = evaluate_model(model, processor, find_tasks(suite), output, name=str(checkpoint))

    assert json.loads((output / "results.json").read_text()) == results
    assert {path.name for path in output.iterdir()} == {"results.json", "paradigms.csv", "items"}
    assert set(results["tasks"]) == {"entity_tracking", "grammar", "grounded", "wug_adj_nominalization"}
    assert results["tasks"]["grounded"]["pictures_used"] is (kind == "multimodal")
    assert results["tasks"]["grammar"]["pictures_used"] is False
    pairs = read_pairs(suite / "grounded")
    expected = accuracy(score_pairs(model, processor, pairs), pairs)
    assert results["tasks"]["grounded"]["value"] == expected.accuracy
    assert results["tasks"]["grammar"]["paradigms"]["agreement"]["items"] == 2
    assert results["tasks"]["wug_adj_nominalization"]["metric"] == "spearman"
    assert list(results["model"]["weights_sha256"]) == ["model.safetensors"]
    assert list(results["data_sha256"]["grammar"]) == ["agreement.jsonl.gz"]

    table = list(csv.DictReader((output / "paradigms.csv").open()))
    assert [line["paradigm"] for line in table if line["task"] == "entity_tracking"] == [
        "",
        "regular_0_ops",
        "regular_1_ops",
    ]
    with pytest.raises(FileExistsError, match=r"results\.json exists"):
        evaluate_model(model, processor, find_tasks(suite), output, name=str(checkpoint))

    console = Console(record=True, width=120)
    print_results(results, console)
    printed = console.export_text()
    assert "grammar" in printed and "95 % interval" in printed and "Spearman's ρ" in printed


def test_a_task_that_fails_loses_nothing_of_the_others(tmp_path, suite, language_checkpoint):
    """And a repeated run takes up the scores of the others, without computing them again."""
    broken = write_lines(suite / "ewok_filtered" / "social.jsonl", [{"Context1": "a", "Target1": "b"}])
    first = evaluate(language_checkpoint, suite, tmp_path / "out")
    assert list(first["failed"]) == ["ewok_filtered"]
    assert "social.jsonl:1: the field Target2 is missing" in first["failed"]["ewok_filtered"]
    assert len(first["tasks"]) == 4

    write_lines(broken, [{"Context1": "a", "Target1": "b", "Target2": "c", "Domain": "social"}])
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "items").iterdir()}
    second = evaluate(language_checkpoint, suite, tmp_path / "out", overwrite=True)
    assert not second["failed"] and second["tasks"]["ewok_filtered"]["items"] == 1
    assert {name: second["tasks"][name] for name in first["tasks"]} == first["tasks"]
    assert all((tmp_path / "out" / "items" / name).stat().st_mtime_ns == time for name, time in kept.items())


def test_scores_are_kept_only_for_the_same_model_and_data(tmp_path, suite, language_checkpoint):
    copied = tmp_path / "model"
    shutil.copytree(language_checkpoint, copied)
    first = evaluate(copied, suite, tmp_path / "out")
    write_lines(suite / "grammar" / "agreement.jsonl.gz", [row("a red red cat", "a red cat")])
    second = evaluate(copied, suite, tmp_path / "out", overwrite=True)
    assert second["tasks"]["grammar"]["items"] == 1
    _, before = read_items(items_file(tmp_path / "out", "entity_tracking"))
    model, _ = load_model(copied)
    model.get_input_embeddings().weight.data.zero_()
    model.save_pretrained(copied)
    third = evaluate(copied, suite, tmp_path / "out", overwrite=True)
    assert first["data_sha256"]["entity_tracking"] == third["data_sha256"]["entity_tracking"]
    _, after = read_items(items_file(tmp_path / "out", "entity_tracking"))
    assert before != after and len({outcome.scores for outcome in after}) == 1  # a uniform model


def test_when_all_tasks_fail_nothing_is_written(tmp_path, language_checkpoint):
    write_lines(tmp_path / "data" / "comps" / "comps_base.jsonl", [row()])
    with pytest.raises(ValueError, match=r"comps: .*the field prefix_acceptable is missing"):
        evaluate(language_checkpoint, tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failures_are_printed(tmp_path, tiny_language, tiny_tokenizer):
    write_lines(tmp_path / "grammar" / "pairs.jsonl", [row()])
    tiny_language.model.norm.weight.data.fill_(float("nan"))
    tasks = find_tasks(tmp_path)
    results = evaluate_model(tiny_language, tiny_tokenizer, tasks, tmp_path / "out", name="broken")
    console = Console(record=True, width=120)
    print_results(results, console)
    assert "grammar: 1 items have scores that are not finite" in console.export_text()
    assert results["tasks"]["grammar"]["value"] == 0.0
    official = evaluate_model(tiny_language, tiny_tokenizer, tasks, tmp_path / "o", name="broken", official=True)
    assert official["tasks"]["grammar"]["value"] == 1.0  # as the official pipeline has it


def test_impossible_texts_are_kept_as_they_are(tmp_path):
    """An official choice needs to tell what is impossible from what has failed."""
    outcomes = [Outcome("u", "0", (-math.inf, -1.0), {"ratio": math.nan}), Outcome("u", "1", (math.nan, math.inf), {})]
    write_items(tmp_path / "x.jsonl.gz", {"task": "x"}, outcomes)
    measured, again = read_items(tmp_path / "x.jsonl.gz")
    assert measured == {"task": "x"} and repr(again) == repr(outcomes)


def remove_bos(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(checkpoint)


def without_offsets(checkpoint):
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    ByT5Tokenizer(bos_token="</s>").save_pretrained(checkpoint)


EWOK = {"Context1": "a", "Target1": "b", "Target2": "c", "Domain": "social"}


@pytest.mark.parametrize(
    ("lines", "change", "message"),
    [
        (None, None, "data does not exist"),
        ([], None, "social.jsonl is empty"),
        ([EWOK, {"Context1": "a"}], None, "social.jsonl:2: the field Target1 is missing"),
        ([EWOK], remove_bos, "the tokenizer has no BOS token"),
        ([EWOK], without_offsets, "the tokenizer cannot say which characters a token stands for"),
    ],
)
def test_wrong_input_is_one_sentence(lines, change, message, tmp_path, language_checkpoint, run_command):
    """And nothing is left behind."""
    if lines is not None:
        write_lines(tmp_path / "data" / "ewok_filtered" / "social.jsonl", lines)
    shutil.copytree(language_checkpoint, tmp_path / "model")
    if change:
        change(tmp_path / "model")
    code, printed, err = run_command(
        *("evaluate", tmp_path / "model", "--data", tmp_path / "data", "--output-dir", tmp_path / "out")
    )
    (sentence,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert code == 1 and printed == "" and message in sentence and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_weights_in_memory_are_scored_anew(tmp_path, language_checkpoint):
    """Also those that were made of a model from the Hub, whose commit says nothing of them."""
    write_lines(tmp_path / "data" / "grammar" / "pairs.jsonl", [row()])
    model, processor = load_model(language_checkpoint)
    model.config._commit_hash = "c" * 40
    found = []
    for weight in (1, 0.5):
        model.model.norm.weight.data *= weight
        evaluate_model(
            model, processor, find_tasks(tmp_path / "data"), tmp_path / "out", name="merged", overwrite=True
        )
        found.append(read_items(items_file(tmp_path / "out", "grammar"))[1])
    assert found[0] != found[1]


# --- predictions -----------------------------------------------------------------------------------------------------


def test_official_predictions(tmp_path, suite, language_checkpoint):
    results = evaluate(language_checkpoint, suite, tmp_path / "out", predictions=True)
    assert results["official"]
    model, tokenizer = load_model(language_checkpoint)
    tree = tmp_path / "out" / "predictions" / language_checkpoint.name
    place = tree / "main" / "zero_shot" / "causal"
    entities = json.loads((place / "entity_tracking" / "entity_tracking" / "predictions.json").read_text())
    assert set(entities) == {"regular_0_ops", "regular_1_ops"}
    (first,) = entities["regular_0_ops"]["predictions"]
    assert first["id"] == "regular_0_ops_0" and first["pred"] in ("the ball.", "the cat.")
    assert (first["pred"] == "the ball.") == (
        results["tasks"]["entity_tracking"]["paradigms"]["regular_0_ops"]["value"] == 1
    )
    forms = json.loads((place / "wug_adj" / "wug_adj_nominalization" / "predictions.json").read_text())
    scores = sequence_scores(model, tokenizer, ["a c cat", "the c cat"])
    assert forms["wug_adj"]["predictions"][2]["prob"] == pytest.approx(
        np.exp(scores[0]) / np.exp(scores).sum(), abs=1e-4
    )
    assert forms["wug_adj"]["predictions"][2]["pred"] == ("a c cat" if scores[0] > scores[1] else "the c cat")
    collated = json.loads((tree / "all_full_preds_and_fast_scores_causal.json").read_text())
    assert collated == {"entity_tracking": entities, "wug_adj": forms}  # the user's own pairs are no official task
    notes = " ".join(results["predictions"])
    assert "blimp is missing" in notes
    assert "18 of 18 subsets of entity_tracking" in notes and "such as regular_0_ops with 1 instead of 606" in notes


# --- comparisons -----------------------------------------------------------------------------------------------------


def test_compare_two_models(tmp_path, suite, language_checkpoint, multimodal_checkpoint):
    a = evaluate(language_checkpoint, suite, tmp_path / "a")
    write_lines(suite / "other" / "pairs.jsonl", [row()])
    b = evaluate(multimodal_checkpoint, suite, tmp_path / "b")
    comparison = compare_results(tmp_path / "a" / "results.json", tmp_path / "b")
    assert set(comparison["tasks"]) == set(a["tasks"])
    for name, found in comparison["tasks"].items():
        assert found["difference"] == pytest.approx(a["tasks"][name]["value"] - b["tasks"][name]["value"])
        assert found["interval"][0] <= found["interval"][1] and 0 < found["p_value"] <= 1
    assert comparison["not_compared"] == ["other is in one of the two only."]
    console = Console(record=True, width=120)
    print_comparison(comparison, console)
    printed = console.export_text()
    assert "grounded" in printed and "95 % interval" in printed
    same = compare_results(tmp_path / "a", tmp_path / "a")
    assert {(found["difference"], found["p_value"]) for found in same["tasks"].values()} == {(0.0, 1.0)}


def test_what_cannot_be_compared_is_named(tmp_path, suite, language_checkpoint):
    evaluate(language_checkpoint, suite, tmp_path / "a")
    evaluate(language_checkpoint, suite, tmp_path / "official", official=True)
    with pytest.raises(ValueError, match="the other does not"):
        compare_results(tmp_path / "a", tmp_path / "official")
    with pytest.raises(FileNotFoundError, match="There are no results"):
        compare_results(tmp_path / "a", tmp_path / "nowhere")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="evaluate again"):
        compare_results(tmp_path / "results.json", tmp_path / "a")
    (tmp_path / "a" / "items" / "grammar.jsonl.gz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="no outcomes that can be read"):
        compare_results(tmp_path / "a", tmp_path / "a")


# --- models ----------------------------------------------------------------------------------------------------------


def test_low_precision_checkpoints_are_scored_in_fp32(tmp_path, tiny_language, tiny_tokenizer):
    """The reference has rounded parameters but fp32 rotary frequencies, which `model.bfloat16()` would round too."""
    copy.deepcopy(tiny_language).bfloat16().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for parameter in tiny_language.parameters():
        parameter.data = parameter.data.bfloat16().float()
    model, tokenizer = load_model(tmp_path)
    assert model.dtype == torch.float32
    expected = sequence_scores(tiny_language, tiny_tokenizer, SENTENCES)
    np.testing.assert_allclose(sequence_scores(model, tokenizer, SENTENCES), expected, atol=1e-4)


def test_load_model_names_what_is_missing(tmp_path, language_checkpoint):
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint runs/nowhere here") as raised:
        load_model("runs/nowhere")
    assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text((language_checkpoint / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(FileNotFoundError, match="pickled weights are not read"):
        load_model(tmp_path)


def test_a_narrow_terminal_breaks_names_and_no_numbers(capsys):
    shown = {
        "metric": "accuracy",
        "value": 0.6531,
        "interval": [0.557, 0.7214],
        "chance": 0.5,
        "items": 13400,
        "ties": 12,
    }
    results = {"model": {"name": "m"}, "official": False, "predictions": []}
    results["tasks"] = {"a_task_with_a_very_long_name": shown | {"nonfinite": 0, "pictures": 0}}
    print_results(results, Console(width=72))
    printed = capsys.readouterr().out
    for number in ("65.3", "55.7 to 72.1", "50.0", "13400", "12"):
        assert f" {number} " in printed
