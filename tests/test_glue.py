"""Fine-tuning on (Super)GLUE tasks: files of the official format, made for the purpose, and what comes out of them.

Run: pytest tests/test_glue.py
"""

import json
import os
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pair_files import write_lines
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2Model

from babylm_vlm.evaluation import glue
from babylm_vlm.evaluation.glue import Example, LastTokenClassifier, read_glue, set_aside
from babylm_vlm.evaluation.output import items_file, read_items
from babylm_vlm.evaluation.statistics import label_accuracy, label_f1

QUICK = ("--epochs", "3", "--learning-rate", "0.003")


def rows(number, fields=("sentence1", "sentence2"), labels=2):
    """The last word of the second text tells the label."""
    words = ["cat", "ball", "tree"]
    return [
        dict.fromkeys(fields, f"the girl {i}") | {fields[-1]: f"{i} sees a {words[i % labels]}", "label": i % labels}
        for i in range(number)
    ]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "glue_filtered"
    for task in ("rte", "mrpc"):
        write_lines(folder / f"{task}.train.jsonl", rows(120))
        write_lines(folder / f"{task}.valid.jsonl.gz", rows(15))
    return folder


# --- the classifier --------------------------------------------------------------------------------------------------


def bodies():
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    yield GPT2Model(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    yield BertModel(BertConfig(**small, intermediate_size=32, max_position_embeddings=32))


@pytest.mark.parametrize("kind", ["language", "multimodal", "gpt2", "bert", "lora"])
def test_the_last_token_that_is_no_padding_is_classified(kind, request):
    torch.manual_seed(0)
    if kind in ("gpt2", "bert"):
        body = dict(zip(("gpt2", "bert"), bodies(), strict=True))[kind]
    else:
        name = "language" if kind == "lora" else kind
        body = AutoModel.from_pretrained(request.getfixturevalue(f"{name}_checkpoint"))
    if kind == "lora":
        body = get_peft_model(body, LoraConfig(target_modules="all-linear"))
    classifier = LastTokenClassifier(body, labels=3).eval()
    texts = [[1, 7, 9, 4], [1, 5], [1, 6, 6]]
    ids, mask = torch.full((3, 6), 2), torch.zeros(3, 6, dtype=torch.long)
    for i, text in enumerate(texts):
        ids[i, : len(text)], mask[i, : len(text)] = torch.tensor(text), 1
    with torch.no_grad():
        together = classifier(ids, mask, labels=torch.tensor([0, 1, 2]))
        for i, text in enumerate(texts):
            states = body(input_ids=torch.tensor([text])).last_hidden_state
            torch.testing.assert_close(together["logits"][i], classifier.head(states[0, -1]), atol=1e-5, rtol=1e-5)
    expected = torch.nn.functional.cross_entropy(together["logits"], torch.tensor([0, 1, 2]))
    assert together["loss"] == expected and set(classifier(ids, mask)) == {"logits"}


def test_padding_in_front_is_no_last_token(language_checkpoint):
    classifier = LastTokenClassifier(AutoModel.from_pretrained(language_checkpoint), labels=2).eval()
    with torch.no_grad():
        alone = classifier(torch.tensor([[1, 5, 8]]), torch.ones(1, 3, dtype=torch.long))
        behind = classifier(torch.tensor([[2, 2, 1, 5, 8]]), torch.tensor([[0, 0, 1, 1, 1]]))
    torch.testing.assert_close(alone["logits"], behind["logits"], atol=1e-5, rtol=1e-5)


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", glue.TASKS)
def test_the_official_fields_and_templates(name, tmp_path):
    task = glue.TASKS[name]
    fields = [
        field for text in (task.first, task.second) for _, field, _, _ in string.Formatter().parse(text) if field
    ]
    row = {field: f"<{field}>" for field in fields} | {"label": task.labels - 1, "idx": 3}
    (example,) = read_glue(write_lines(tmp_path / f"{name}.train.jsonl", [row]), name)
    assert example.label == task.labels - 1
    if name == "wsc":
        assert example == Example('Does "<span2_text>" refer to "<span1_text>" in this passage?', "<text>", 1)
    if name == "multirc":
        assert example == Example("Question: <question> Answer: <answer>", "<paragraph>", 1)
    for wrong, message in ((task.labels, "must be from 0 to"), (None, "must be from 0 to"), ("1", "not '1'")):
        write_lines(tmp_path / "x.jsonl", [row | {"label": wrong}])
        with pytest.raises(ValueError, match=rf"x\.jsonl:1: the field label {message}|{message}"):
            read_glue(tmp_path / "x.jsonl", name)
    del row[fields[0]]
    with pytest.raises(ValueError, match=rf"x\.jsonl:1: the field {fields[0]} is missing"):
        read_glue(write_lines(tmp_path / "x.jsonl", [row]), name)


@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=200).filter(lambda texts: len(set(texts)) > 1), st.integers(0)
)
def test_nothing_set_aside_shares_a_passage_with_what_is_trained_on(passages, seed):
    examples = [Example(str(i), str(passage), 0) for i, passage in enumerate(passages)]
    train, aside = set_aside(examples, seed)
    assert sorted([*train, *aside], key=lambda example: int(example.first)) == examples
    assert train and aside and not {e.second for e in train} & {e.second for e in aside}
    assert len({example.second for example in aside}) == max(1, round(len(set(passages)) / 10))
    assert (train, aside) == set_aside(examples, seed)


def test_label_statistics():
    predicted, right = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 1])
    once = np.ones((1, 5), dtype=int)
    assert label_accuracy(predicted, right, once) == pytest.approx(3 / 5)
    assert label_f1(predicted, right, once) == pytest.approx(2 / 3)  # precision and recall are both 2/3
    counts = np.array([[0, 2, 0, 1, 1], [0, 0, 0, 3, 0]])
    assert label_accuracy(predicted, right, counts) == pytest.approx([1 / 2, 1])
    assert label_f1(predicted, right, counts) == pytest.approx([2 / (2 + 2), 0])


# --- from a checkpoint to results ------------------------------------------------------------------------------------


def test_a_task_that_can_be_learned_is_learned(language_checkpoint, data, tmp_path, run_command):
    command = ("finetune", language_checkpoint, "--data", data, "--predictions", *QUICK)
    code, printed, _ = run_command(*command, "--output-dir", tmp_path / "a", "--json")
    assert code == 0
    results = json.loads(printed)
    assert results == json.loads((tmp_path / "a" / "results.json").read_text())
    assert set(results["tasks"]) == {"rte", "mrpc", "mrpc_f1"}
    for name, row in results["tasks"].items():
        assert row["value"] > 0.9 and row["interval"][0] <= row["value"] <= row["interval"][1]
        assert row["metric"] == ("f1" if name == "mrpc_f1" else "accuracy") and not row["pictures_used"]
    assert results["tasks"]["rte"]["chance"] == pytest.approx(8 / 15)  # of the labels 0 to say always 0
    assert results["tasks"]["mrpc_f1"]["chance"] == 0
    assert set(results["data_sha256"]["rte"]) == {"rte.train.jsonl", "rte.valid.jsonl.gz"}
    assert results["fine_tuning"] == {
        "seeds": [42],
        "lora": False,
        "learning_rate": 0.003,
        "epochs": 3,
        "patience": 3,
        "batch_size": 32,
    }

    tree = tmp_path / "a" / "predictions" / language_checkpoint.name
    made = json.loads((tree / "main" / "finetune" / "rte" / "predictions.json").read_text())
    assert [one["id"] for one in made["rte"]["predictions"]] == [f"rte_{i}" for i in range(15)]
    right = [one["pred"] == i % 2 for i, one in enumerate(made["rte"]["predictions"])]
    assert np.mean(right) == results["tasks"]["rte"]["value"]
    collated = json.loads((tree / "all_full_preds_and_fast_scores_causal.json").read_text())
    assert set(collated["glue"]) == {"rte", "mrpc"} and collated["glue"]["rte"] == made["rte"]
    notes = " ".join(results["predictions"])
    assert "blimp is missing" in notes and "7 of 7 subsets of glue have not the official number of items" in notes

    time = items_file(tmp_path / "a", "rte").stat().st_mtime_ns
    code, printed, _ = run_command(*command, "--output-dir", tmp_path / "a", "--overwrite")
    assert code == 0 and "F1 %" in printed and items_file(tmp_path / "a", "rte").stat().st_mtime_ns == time

    code, printed, _ = run_command(
        *("finetune", language_checkpoint, "--data", data, "--tasks", "mrpc", "--seed", "1", "--seed", "2"),
        *("--epochs", "1", "--learning-rate", "1e-9", "--output-dir", tmp_path / "b"),
    )
    assert code == 0
    code, printed, _ = run_command("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert code == 0 and set(json.loads(printed)["tasks"]) == {"mrpc", "mrpc_f1"}
    assert json.loads((tmp_path / "b" / "results.json").read_text())["fine_tuning"]["seeds"] == [1, 2]


def test_the_same_seed_gives_the_same_labels(language_checkpoint, tmp_path):
    write_lines(tmp_path / "mnli.train.jsonl", rows(30, ("premise", "hypothesis"), labels=3))
    write_lines(tmp_path / "mnli.valid.jsonl", rows(9, ("premise", "hypothesis"), labels=3))
    found = glue.find_glue(tmp_path, ["mnli"])
    settings = glue.FineTuning(seeds=(1, 1, 2), learning_rate=1e-3, epochs=1)
    results = glue.finetune(str(language_checkpoint), found, tmp_path / "out", settings, progress=False)
    _, outcomes = read_items(items_file(tmp_path / "out", "mnli"))
    assert results["tasks"]["mnli"]["ties"] == 0  # seeds that agree are no ties
    first, again, _ = zip(*(outcome.scores for outcome in outcomes), strict=True)
    assert first == again and set(first) <= {0.0, 1.0, 2.0}


def test_lora_trains_additions_and_the_head_alone(multimodal_checkpoint, data, tmp_path, run_command, monkeypatch):
    trained = {}
    train = glue.Trainer.train

    def watched(trainer):
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        train(trainer)
        after = trainer.model.state_dict()
        trained.update({name: not torch.equal(before[name], after[name]) for name in before})

    monkeypatch.setattr(glue.Trainer, "train", watched)
    code, _, _ = run_command(
        *("finetune", multimodal_checkpoint, "--data", data, "--tasks", "rte", "--lora", "--epochs", "1"),
        *("--output-dir", tmp_path / "out"),
    )
    assert code == 0
    changed = {name for name, value in trained.items() if value}
    assert changed and all(name.startswith("head.") or ".lora_" in name for name in changed)
    assert any(".lora_B" in name for name in changed) and any(name.startswith("head.") for name in changed)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["fine_tuning"]["lora"] and results["fine_tuning"]["learning_rate"] == 3e-4


def test_a_task_that_fails_loses_nothing_of_the_others(language_checkpoint, data, tmp_path, run_command):
    write_lines(data / "wsc.train.jsonl", [{"text": "a"}])
    write_lines(data / "wsc.valid.jsonl", [{"text": "a"}])
    code, printed, err = run_command(
        *("finetune", language_checkpoint, "--data", data, "--tasks", "wsc,rte", "--epochs", "1"),
        *("--output-dir", tmp_path / "out"),
    )
    assert code == 1 and "rte" in printed and "wsc failed: " in err and "wsc.train.jsonl:1: the field" in err
    assert set(json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]) == {"rte"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "the data folder nowhere does not exist"),
        (["--data", "empty"], "empty holds no TASK.train.jsonl"),
        (["--data", "glue_filtered", "--tasks", "cola"], "There is no GLUE task cola; choose among boolq, mnli"),
        (["--data", "glue_filtered", "--tasks", "qqp"], "glue_filtered lacks qqp.train.jsonl or qqp.valid.jsonl"),
        (["--data", "one"], "two or more different second texts"),
        (["--data", "glue_filtered", "--output-dir", "taken"], "taken/results.json exists"),
    ],
)
def test_wrong_input_is_one_sentence(
    arguments, message, language_checkpoint, data, tmp_path, run_command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_lines(tmp_path / "taken" / "results.json", ["{}"])
    for part in ("train", "valid"):
        write_lines(tmp_path / "one" / f"rte.{part}.jsonl", rows(1))
    before = sorted(tmp_path.rglob("*"))
    code, printed, err = run_command("finetune", language_checkpoint, "--output-dir", "out", *arguments)
    errors = [line for line in err.splitlines() if line and "Loading weights" not in line]
    assert code == 1 and printed == "" and len(errors) == 1 and message in errors[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(
    not Path(os.environ.get("BABYLM_EVALUATION_DATA", "-"), "full_eval", "glue_filtered").is_dir(),
    reason="BABYLM_EVALUATION_DATA names no copy of the official evaluation_data",
)
def test_the_official_files_are_read():
    found = glue.find_glue(Path(os.environ["BABYLM_EVALUATION_DATA"], "full_eval", "glue_filtered"))
    for name, files in found.items():
        training, reported = (read_glue(file, name) for file in files)
        assert len(training) > len(reported) > 50
        assert {example.label for example in training} == set(range(glue.TASKS[name].labels))
