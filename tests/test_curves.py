"""Learning curves over the checkpoints of a run, and ages of acquisition.

Run: pytest tests/test_curves.py
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import GitRefInfo, GitRefs, HfApi, constants
from hypothesis import given
from hypothesis import strategies as st
from pair_files import row, write_lines
from PIL import Image
from scipy.stats import pearsonr
from transformers import AutoTokenizer, Dinov2Model, LlamaForCausalLM

from babylm_vlm.data import features as data_features
from babylm_vlm.evaluation import aoa, choices, conditional_scores, curves, evaluate_model, find_tasks, load_model
from babylm_vlm.evaluation.output import items_file, read_items

NAMES = ["chck_1M", "chck_2M", "chck_10M"]
WORDS = {"cat": "the red", "ball": "the dog sees a red", "tree": "the cat sat next to the", "home": "running"}


def make_run(folder, language_checkpoint, names=NAMES):
    """A run whose checkpoints are the same tokenizer and different random weights."""
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        model = LlamaForCausalLM.from_pretrained(language_checkpoint)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(language_checkpoint).save_pretrained(folder / name)
    return folder


@pytest.fixture
def run(tmp_path, language_checkpoint):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    return make_run(tmp_path / "run", language_checkpoint)


@pytest.fixture
def data(tmp_path):
    """Two tasks of the fast data, and children's words."""
    folder = tmp_path / "data"
    for uid in ("agreement", "island"):
        pairs = [row(f"the {noun} were {uid}", f"the {noun} was {uid}", UID=uid) for noun in ("girls", "boys", "cats")]
        write_lines(folder / "blimp_fast" / f"{uid}.jsonl", pairs)
    entities = [{"input_prefix": "Box 0 contains ", "options": ["the ball.", "the cat."], "numops": n} for n in (0, 1)]
    write_lines(folder / "entity_tracking_fast" / "regular.jsonl", entities)
    contexts = {word: [{"context": context}, {"context": f" {context} "}] for word, context in WORDS.items()}
    (folder / "cdi_childes").mkdir()
    (folder / "cdi_childes" / "cdi_childes.json").write_text(json.dumps(contexts | {"a": [{"context": "left out"}]}))
    write_children(folder / "cdi_childes" / "cdi_human.csv", {word: 18 + 3 * i for i, word in enumerate(WORDS)})
    return folder


def write_children(file, ages, steepness=0.5):
    """Proportions that cross one half at the given months."""
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["word", *aoa.MONTHS])
        for word, age in ages.items():
            writer.writerow([word, *(1 / (1 + np.exp(-steepness * (float(month) - age))) for month in aoa.MONTHS)])


def evaluate(model, data, output_dir, asked="all", **options):
    revisions = curves.find_revisions(str(model), asked)
    options |= {"resamples": 50, "progress": False}
    return curves.evaluate_revisions(str(model), revisions, find_tasks(data), output_dir, **options)


# --- revisions -------------------------------------------------------------------------------------------------------


def test_revisions_of_a_folder_are_in_order_of_words_seen(run):
    found = curves.find_revisions(str(run))
    assert [(revision.name, revision.words) for revision in found] == list(
        zip(NAMES, [1_000_000, 2_000_000, 10_000_000], strict=True)
    )
    assert {(revision.model, revision.branch) for revision in found} == {(str(run / name), None) for name in NAMES}
    assert [revision.name for revision in curves.find_revisions(str(run), "chck_10M, chck_1M")] == NAMES[::2]
    with pytest.raises(FileNotFoundError, match=r"chck_3M holds no config\.json"):
        curves.find_revisions(str(run), "chck_1M,chck_3M")
    with pytest.raises(ValueError, match="has no checkpoints named chck_1M"):
        curves.find_revisions(str(run / "logs"))


@pytest.fixture
def hub_run(tmp_path, language_checkpoint, monkeypatch):
    """A repository in the Hub's cache on this disk, with two checkpoint branches."""
    names = ["chck_1M", "chck_2M"]
    made = make_run(tmp_path / "made", language_checkpoint, names)
    repository = Path(constants.HF_HUB_CACHE, "models--user--run")
    for number, name in enumerate(names):
        commit = f"{number + 1:040x}"
        shutil.copytree(made / name, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    branches = [GitRefInfo(name=name, ref="", target_commit="") for name in ("main", *reversed(names))]
    monkeypatch.setattr(HfApi, "list_repo_refs", lambda *_: GitRefs(branches=branches, converts=[], tags=[]))
    yield "user/run"
    shutil.rmtree(repository)


def test_branches_on_the_hub(hub_run, data, tmp_path):
    found = evaluate(hub_run, data, tmp_path / "out")
    assert [revision["name"] for revision in found["revisions"]] == ["chck_1M", "chck_2M"]
    results = json.loads((tmp_path / "out" / "chck_2M" / "results.json").read_text())
    assert (results["model"]["name"], results["model"]["revision"]) == ("user/run", "chck_2M")
    assert results["model"]["commit"] == f"{2:040x}"
    kept = tmp_path / "out" / "chck_2M" / "items" / "blimp_fast.jsonl.gz"
    time = kept.stat().st_mtime_ns
    again = evaluate(hub_run, data, tmp_path / "out", overwrite=True)
    assert again == found and kept.stat().st_mtime_ns == time


def test_checkpoints_whose_names_say_nothing_of_words(run, data, tmp_path):
    (run / "chck_1M").rename(run / "first")
    found = evaluate(run, data, tmp_path / "out", "first", predictions=True)
    assert found["complete"] and found["revisions"] == [{"name": "first", "words": None}]
    assert not (tmp_path / "out" / "curves.png").exists() and "age_of_acquisition" not in found


def test_checkpoints_of_fewer_than_a_million_words(run, data, tmp_path):
    """`train checkpoint_words="[1_500]"` leaves `chck_1500`."""
    (run / "chck_1M").rename(run / "chck_1500")
    (run / "chck_2M").rename(run / "chck_40000")
    found = curves.find_revisions(str(run))
    assert [(one.name, one.words) for one in found] == [
        ("chck_1500", 1500),
        ("chck_40000", 40_000),
        ("chck_10M", 10_000_000),
    ]
    evaluate(run, data, tmp_path / "out", "chck_1500,chck_40000")
    assert (tmp_path / "out" / "curves.png").is_file()


def test_a_repository_that_is_not_there(run_command, data, tmp_path):
    code, _, err = run_command("evaluate", "user/nowhere", "--revisions", "all", "--data", data, "--output-dir", "out")
    assert code == 1 and err.startswith("Error: There is no checkpoint user/nowhere here or on the Hub")
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_are_the_results_of_every_checkpoint(run, data, tmp_path, run_command):
    out = tmp_path / "out"
    command = ("evaluate", run, "--data", data, "--output-dir", out, "--revisions")
    code, printed, _ = run_command(*command, "all", "--json")
    assert code == 0
    found = json.loads(printed)
    assert found == json.loads((out / "curves.json").read_text()) and found["complete"]
    assert {path.name for path in out.iterdir()} == {*NAMES, "curves.json", "curves.png"}
    with Image.open(out / "curves.png") as picture:
        assert picture.width > 500
    tasks = find_tasks(data)
    for place, name in enumerate(NAMES):
        model, tokenizer = load_model(run / name)
        alone = evaluate_model(model, tokenizer, tasks, tmp_path / "alone" / name, name=str(run / name))
        assert alone == json.loads((out / name / "results.json").read_text())
        for task, curve in found["tasks"].items():
            measured = {key: curve[key][place] for key in ("value", "interval")}
            assert measured == {key: alone["tasks"][task][key] for key in measured}
    assert found["tasks"]["cdi_childes"]["metric"] == "surprisal" and "fast_eval_results" not in found

    code, _, err = run_command(*command, "all")
    assert code == 1 and "curves.json exists" in err
    code, printed, _ = run_command(*command, "chck_2M", "--overwrite")
    assert code == 0 and "chck_2M" in printed and "Age of acquisition" in printed


def test_data_is_read_once(tmp_path, data, grounded_file, multimodal_checkpoint, monkeypatch):
    """Texts are tokenized and pictures seen once for all checkpoints, but not where another tokenizer reads them."""
    for name in NAMES:
        shutil.copytree(multimodal_checkpoint, tmp_path / "run" / name)
    tokenized, seen = [], []
    make_requests, picture_features = choices.make_requests, data_features.picture_features
    monkeypatch.setattr(choices, "make_requests", lambda *args: tokenized.append(1) or make_requests(*args))
    monkeypatch.setattr(
        data_features, "picture_features", lambda *args: seen.extend(args[2]) or picture_features(*args)
    )
    found = curves.evaluate_revisions(
        "run",
        curves.find_revisions(str(tmp_path / "run")),
        find_tasks([data, grounded_file.parent], ["blimp_fast", "grounded"]),
        tmp_path / "out",
        progress=False,
    )
    assert len(tokenized) == 4  # two tasks, each with and without pictures
    assert len(seen) == len(set(seen)) == 16
    assert len(set(found["tasks"]["grounded"]["value"])) == 1  # three times the same checkpoint

    other = AutoTokenizer.from_pretrained(multimodal_checkpoint)
    other.add_tokens("girls")
    other.save_pretrained(tmp_path / "run" / "chck_2M")
    found = evaluate(tmp_path / "run", data, tmp_path / "again")
    assert {name.partition(":")[0] for name in found["failed"]} == {"chck_2M"}  # its new token is not in the model


def test_pictures_are_seen_again_by_another_tower(tmp_path, grounded_file, multimodal_checkpoint, tiny_tower):
    shutil.copytree(multimodal_checkpoint, tmp_path / "run" / "chck_1M")
    shutil.copytree(multimodal_checkpoint, tmp_path / "run" / "chck_2M")
    tower = Dinov2Model.from_pretrained(tiny_tower)
    for parameter in tower.parameters():
        parameter.data *= 2
    tower.save_pretrained(tmp_path / "run" / "chck_2M" / "vision_tower")
    evaluate(tmp_path / "run", grounded_file.parent, tmp_path / "out")
    model, processor = load_model(tmp_path / "run" / "chck_2M")
    alone = tmp_path / "alone"
    evaluate_model(model, processor, find_tasks(grounded_file.parent), alone, name="alone", progress=False)
    found, expected = (read_items(items_file(folder, "grounded"))[1] for folder in (tmp_path / "out/chck_2M", alone))
    assert found == expected != read_items(items_file(tmp_path / "out" / "chck_1M", "grounded"))[1]


def test_a_run_that_was_cut_off_goes_on(run, data, tmp_path, monkeypatch):
    calls = []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate_model(*args, **options)

    monkeypatch.setattr(curves, "evaluate_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, data, tmp_path / "out")
    monkeypatch.undo()
    begun = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert not begun["complete"] and [revision["name"] for revision in begun["revisions"]] == ["chck_1M"]
    kept = tmp_path / "out" / "chck_1M" / "items" / "blimp_fast.jsonl.gz"
    time = kept.stat().st_mtime_ns
    found = evaluate(run, data, tmp_path / "out")
    assert found["complete"] and len(found["revisions"]) == 3 and kept.stat().st_mtime_ns == time
    assert found["tasks"]["blimp_fast"]["value"][0] == begun["tasks"]["blimp_fast"]["value"][0]


def test_results_of_another_command_are_not_replaced(run, data, tmp_path):
    write_lines(tmp_path / "out" / "chck_2M" / "results.json", ["{}"])
    with pytest.raises(FileExistsError, match=r"chck_2M/results\.json exists"):
        evaluate(run, data, tmp_path / "out")
    assert (tmp_path / "out" / "chck_2M" / "results.json").read_text() == "{}\n"


def test_a_checkpoint_that_cannot_be_read_loses_nothing_of_the_others(run, data, tmp_path, run_command):
    (run / "chck_2M" / "model.safetensors").write_bytes(b"cut off")
    code, printed, err = run_command(
        "evaluate", run, "--revisions", "all", "--data", data, "--output-dir", tmp_path / "out"
    )
    assert code == 1 and "chck_2M failed" in err and "chck_10M" in printed
    found = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert [revision["name"] for revision in found["revisions"]] == NAMES[::2] and not found["complete"]
    broken = write_lines(data / "ewok_fast" / "social.jsonl", [{"Context1": "a"}])
    assert set(evaluate(run, data, tmp_path / "out")["failed"]) == {"chck_2M", "ewok_fast"}
    shutil.rmtree(broken.parent)
    shutil.copy(run / "chck_1M" / "model.safetensors", run / "chck_2M")
    assert evaluate(run, data, tmp_path / "out")["complete"]


# --- what the leaderboard takes --------------------------------------------------------------------------------------


def test_predictions_of_every_checkpoint(run, data, tmp_path):
    """The scores are those that the official collation computes from the predictions and the data files."""
    forms = [{"sentences": f"a {word} cat\tthe {word} cat", "ratio": i / 4} for i, word in enumerate("abcde")]
    write_lines(data / "wug_adj_nominalization" / "wug_adj_nominalization.jsonl", forms)
    found = evaluate(run, data, tmp_path / "out", predictions=True)
    tree = tmp_path / "out" / "predictions" / "run"
    collated = json.loads((tree / "all_full_preds_and_fast_scores_causal.json").read_text())
    assert collated["fast_eval_results"] == found["fast_eval_results"]
    assert set(found["fast_eval_results"]) == {"blimp", "entity_tracking", "wug_adj"}
    for place, name in enumerate(NAMES):
        folder = tree / name / "zero_shot" / "causal"
        pairs = json.loads((folder / "blimp" / "blimp_fast" / "predictions.json").read_text())
        for uid, made in pairs.items():
            lines = (data / "blimp_fast" / f"{uid}.jsonl").read_text().splitlines()
            right = [
                one["pred"].strip() == json.loads(line)["sentence_good"]
                for one, line in zip(made["predictions"], lines, strict=True)
            ]
            assert found["fast_eval_results"]["blimp"][place][uid] == np.mean(right)
        assert set(found["fast_eval_results"]["entity_tracking"][place]) == {"regular_0_ops", "regular_1_ops"}
        assert (folder / "wug_adj" / "wug_adj_nominalization" / "predictions.json").is_file()
        assert not (folder / "aoa").exists()
    assert found["predictions"][:1] == [
        "The leaderboard takes 19 checkpoints to chck_100M; 16 are missing, such as chck_3M."
    ]

    surprisals = json.loads((tree / "main" / "zero_shot" / "causal" / "AoA_word" / "surprisal.json").read_text())
    assert surprisals == collated["aoa"]
    assert len(surprisals["results"]) == len(NAMES) * 2 * len(WORDS)
    first = surprisals["results"][1]
    assert {key: first[key] for key in ("step", "word_count", "target_word", "context_id", "context")} == {
        "step": "chck_1M",
        "word_count": 1_000_000,
        "target_word": "cat",
        "context_id": 1,
        "context": " the red ",
    }
    model, tokenizer = load_model(run / "chck_1M")
    expected = -conditional_scores(model, tokenizer, ["the red "], ["cat"])[0]
    assert first["surprisal"] == pytest.approx(expected, abs=1e-4)


def test_what_other_commands_have_collated_stays(run, data, tmp_path):
    file = tmp_path / "out" / "predictions" / "run" / "all_full_preds_and_fast_scores_causal.json"
    write_lines(file, [{"glue": {"rte": {"predictions": []}}, "fast_eval_results": "old"}])
    found = evaluate(run, data, tmp_path / "out", predictions=True)
    collated = json.loads(file.read_text())
    assert (
        collated["glue"] == {"rte": {"predictions": []}}
        and collated["fast_eval_results"] == found["fast_eval_results"]
    )


# --- ages of acquisition ---------------------------------------------------------------------------------------------


def test_children_s_ages(tmp_path):
    write_children(tmp_path / "cdi_human.csv", {"cat": 20, "dog": 24.5, "late": 60})
    ages = aoa.read_children(tmp_path / "cdi_human.csv")
    assert ages["cat"] == pytest.approx(20, abs=0.01) and ages["dog"] == pytest.approx(24.5, abs=0.01)
    assert ages["late"] is None
    lines = (tmp_path / "cdi_human.csv").read_text().splitlines()
    (tmp_path / "cdi_human.csv").write_text("\n".join([lines[0], lines[1].replace("0.", "x.", 1)]))
    with pytest.raises(ValueError, match=r"cdi_human\.csv:2: the field 16 must be a number"):
        aoa.read_children(tmp_path / "cdi_human.csv")
    (tmp_path / "cdi_human.csv").write_text("item,16\ncat,1\n")
    with pytest.raises(ValueError, match=r"cdi_human\.csv:2: the column word"):
        aoa.read_children(tmp_path / "cdi_human.csv")


@given(st.floats(6.3, 7.7), st.floats(3, 8), st.floats(2, 6))
def test_a_model_s_age_is_where_its_curve_crosses(midpoint, steepness, lowest):
    """A noiseless sigmoid from chance down to `lowest` is halfway exactly at its midpoint."""
    seen = np.array([revision * 1e6 for revision in (*range(1, 10), *range(10, 101, 10))])
    fall = 1 / (1 + np.exp(-steepness * (np.log10(seen + 1) - midpoint)))
    values = aoa.CHANCE_SURPRISAL + (lowest - aoa.CHANCE_SURPRISAL) * fall
    halfway = (aoa.CHANCE_SURPRISAL + values.min()) / 2
    share = (halfway - aoa.CHANCE_SURPRISAL) / (lowest - aoa.CHANCE_SURPRISAL)
    expected = midpoint - np.log(1 / share - 1) / steepness
    found = aoa.model_age(np.repeat(seen, 2), np.repeat(values, 2))
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_correlation_of_ages(tmp_path):
    seen = [10**6 * words for words in (*range(1, 10), *range(10, 101, 10))]
    words = ["cat", "dog", "ball", "tree", "unknown to children"]
    midpoints = np.array([6.5, 6.8, 7.0, 7.4, 7.0])
    fall = 1 / (1 + np.exp(-5 * (np.log10(seen)[:, None] - midpoints)))
    surprisals = aoa.CHANCE_SURPRISAL - 14 * fall
    children = {"cat": 18.0, "dog": 22.0, "ball": 21.0, "tree": 27.0}
    found = aoa.acquisition(words, surprisals, seen, children, resamples=200)
    assert list(found["ages"]) == words[:4] and found["items"] == 4
    model, child = np.array(list(found["ages"].values())).T
    assert child.tolist() == list(children.values())
    assert found["value"] == pytest.approx(pearsonr(model, child).statistic) and found["value"] > 0.9
    assert found["interval"][0] <= found["value"] <= found["interval"][1]
    few = aoa.acquisition(words, surprisals, seen, {"cat": 18.0, "dog": 22.0})
    assert (few["value"], few["items"]) == (0.0, 2)
    flat = aoa.acquisition(words, np.full_like(surprisals, 5.0), seen, children)
    assert flat["items"] == 0


def test_without_children_s_data_the_surprisals_are_kept(run, data, tmp_path):
    (data / "cdi_childes" / "cdi_human.csv").unlink()
    found = evaluate(run, data, tmp_path / "out", predictions=True)
    assert "cdi_human.csv is missing" in found["failed"]["age of acquisition"] and "age_of_acquisition" not in found
    assert (tmp_path / "out" / "predictions" / "run" / "main" / "zero_shot" / "causal" / "AoA_word").is_dir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must map each word to its contexts"),
        ("{", "not valid JSON"),
        ('{"cat": [{"text": "the"}]}', "a context of the word cat must be an object with the text `context`"),
        ("", "is empty"),
        ('{"a": [{"context": "the"}], "cat": []}', "holds no context of a word"),
    ],
)
def test_wrong_contexts_are_named(text, message, tmp_path):
    (tmp_path / "cdi_childes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        aoa.read(tmp_path)
