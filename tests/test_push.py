"""Publishing to a Hub on loopback: what arrives, what stays at home, and what happens when the wire fails.

Run: pytest tests/test_push.py
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from local_hub import READ_TOKEN, TOKEN
from safetensors.torch import load_file

from babylm_vlm.files import sha256
from babylm_vlm.hub.cards import write_card
from babylm_vlm.hub.facts import write_merged_card
from babylm_vlm.hub.push import fit_to_be_seen
from babylm_vlm.merging import linear_plan_yaml, merge, read_plan

NAME = "someone/tiny"
TOWER = {f"vision_tower/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")}
LANGUAGE = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
LANGUAGE |= {"README.md"}
PRIVATE = {"optimizer.pt", "trainer_state.json", ".env", "events.out.tfevents.1", "notes.py", "training_args.bin"}
CODE = {"configuration_babylm_vlm.py", "modeling_babylm_vlm.py", "processing_babylm_vlm.py"}


@pytest.fixture
def run(tmp_path, multimodal_checkpoint, language_checkpoint) -> Path:
    """A trained multimodal model with two checkpoints (one of other weights) and things that must not travel."""
    run = shutil.copytree(multimodal_checkpoint, tmp_path / "run")
    shutil.copytree(multimodal_checkpoint, run / "chck_2M")
    shutil.copytree(language_checkpoint, run / "chck_10M")
    state = {"recipe": {"text": [str(tmp_path / "secret project" / "text.txt")], "output_dir": "runs/tiny"}}
    (run / "training_state.json").write_text(json.dumps(state, indent=2))
    write_card(run, "multimodal", {"title": "Tiny", "words_seen": 12})
    for name in (
        "optimizer.pt",
        "trainer_state.json",
        ".env",
        "events.out.tfevents.1",
        "notes.py",
        "training_args.bin",
    ):
        (run / name).write_text("private")
    (run / "checkpoint-3").mkdir()
    (run / "checkpoint-3" / "model.safetensors").write_text("private")
    return run


@pytest.fixture
def push(local_hub, tmp_path):
    """Run `babylm-vlm push`; returns exit code, stdout and stderr."""

    def push(*arguments, **environment):
        return local_hub.command("push", *arguments, cache=tmp_path / "cache", **environment)

    return push


def test_what_arrives_and_what_stays_at_home(local_hub, push, run, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, err = push(run, "--repo-id", NAME)
    assert code == 0, err
    repository = local_hub.repositories[f"models/{NAME}"]
    assert list(repository.branches) == ["main", "chck_2M", "chck_10M"]
    assert [len(repository.history(branch)) for branch in repository.branches] == [2, 2, 2]  # one commit each

    files, text = local_hub.files(NAME), LANGUAGE | {"training_state.json"} | CODE | {"processor_config.json"}
    assert set(files) == text | TOWER
    assert set(local_hub.files(NAME, "chck_2M")) == LANGUAGE | CODE | {"processor_config.json"} | TOWER
    assert set(local_hub.files(NAME, "chck_10M")) == LANGUAGE
    for name in ("model.safetensors", "tokenizer.json", "vision_tower/model.safetensors"):
        assert files[name] == (run / name).read_bytes()
    tags = {f"{name}-{sha256(run / name / 'model.safetensors')[:8]}": name for name in ("chck_2M", "chck_10M")}
    assert {tag: repository.branches[branch] for tag, branch in tags.items()} == repository.tags

    state = json.loads(files["training_state.json"])
    assert state["recipe"] == {"text": ["text.txt"], "output_dir": "runs/tiny"}
    everything = b"".join(content for name in repository.branches for content in local_hub.files(NAME, name).values())
    for private in (TOKEN, str(tmp_path), str(Path.home()), "private"):
        assert private.encode() not in everything
        assert private not in out + err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}  # the folder is as it was


def test_cards_name_the_repository_and_the_branch(local_hub, push, run):
    assert push(run, "--repo-id", NAME)[0] == 0
    card = ModelCard(local_hub.files(NAME)["README.md"].decode())
    assert "In training it saw 12 words" in card.text
    assert f'path = "{NAME}"\nmodel = AutoModelForCausalLM.from_pretrained(path, trust' in card.text
    assert card.data.pipeline_tag == "image-text-to-text"
    card = ModelCard(local_hub.files(NAME, "chck_10M")["README.md"].decode())
    assert f'path = "{NAME}"\nmodel = AutoModelForCausalLM.from_pretrained(path, revision="chck_10M")' in card.text
    assert card.data.pipeline_tag == "text-generation"


def test_only_what_changed_is_committed(local_hub, push, run):
    assert push(run, "--repo-id", NAME)[0] == 0
    repository = local_hub.repositories[f"models/{NAME}"]
    before, sent = dict(repository.branches), len(local_hub.requests)
    code, out, _ = push(run, "--repo-id", NAME)
    assert (code, out.count("nothing changed"), repository.branches) == (0, 3, before)
    assert not [request for request in local_hub.requests[sent:] if request.startswith("PUT")]

    model = run / "chck_10M" / "model.safetensors"
    shutil.copy(model, run / "chck_10M" / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(load_file(model), "model-00001-of-00001.safetensors")
    (run / "chck_10M" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    model.unlink()
    assert push(run, "--repo-id", NAME)[0] == 0
    assert {name for name in before if repository.branches[name] != before[name]} == {"chck_10M"}
    shards = {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert set(local_hub.files(NAME, "chck_10M")) == LANGUAGE - {"model.safetensors"} | shards
    assert len(repository.tags) == 2  # the same weights, in another file


def test_dry_run_lists_everything_and_sends_nothing(local_hub, push, run):
    code, out, _ = push(run, "--repo-id", NAME, "--dry-run", "--json")
    rows = json.loads(out)
    assert code == 0
    assert not local_hub.requests
    assert [row["branch"] for row in rows] == ["main", "chck_2M", "chck_10M"]
    assert rows[0]["files"]["model.safetensors"] == (run / "model.safetensors").stat().st_size
    assert set(rows[0]["at_home"]) == PRIVATE | {"card_facts.json", "checkpoint-3/model.safetensors"}
    code, out, _ = push(run, "--repo-id", NAME, "--dry-run")
    assert f"{(run / 'config.json').stat().st_size:,}  config.json" in out
    assert "Does not travel: .env" in out
    assert push(run, "--repo-id", NAME)[0] == 0
    for row in rows:
        assert row["files"] == {name: len(text) for name, text in local_hub.files(NAME, row["branch"]).items()}


@pytest.mark.parametrize(
    "fault",
    [
        {"method": "PUT", "path": "/large/", "after": 1000},
        {"method": "PUT", "path": "/large/", "status": 500},
        {"method": "POST", "path": "/preupload/", "status": 429, "headers": {"Retry-After": "1"}},
    ],
    ids=["dropped in the middle of a file", "500", "429"],
)
def test_a_fault_that_passes_is_survived(local_hub, push, run, fault):
    local_hub.fail(**fault)
    code, _, err = push(run, "--repo-id", NAME)
    assert code == 0, err
    assert local_hub.faults[0].times == 0
    assert local_hub.files(NAME)["model.safetensors"] == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"method": "POST", "path": "/commit/main", "status": 500}, "The Hub is busy or out of order (500); repeat"),
        ({"method": "POST", "path": "/commit/chck_2M"}, "The connection to the Hub broke"),
        ({"method": "POST", "path": "/tag/", "status": 502}, "The Hub is busy or out of order (502); repeat"),
        ({"method": "PUT", "path": "/large/", "status": 400, "times": 9}, "The Hub refuses someone/tiny (400)"),
        ({"method": "POST", "path": "/api/repos", "status": 429}, "The Hub is busy or out of order (429); repeat"),
    ],
    ids=["500 at the commit", "dropped at the commit", "502 at the tag", "upload refused", "429 at the start"],
)
def test_a_fault_leaves_no_half_model_and_a_repeated_push_completes(local_hub, push, run, fault, sentence):
    local_hub.fail(**fault)
    code, out, err = push(run, "--repo-id", NAME)
    assert_one_sentence(code, out + err, sentence)
    for repository in local_hub.repositories.values():
        for commit in repository.commits.values():
            assert commit.title == "initial commit" or {"config.json", "model.safetensors"} <= set(commit.files)
    local_hub.faults.clear()
    code, _, err = push(run, "--repo-id", NAME)
    assert code == 0, err
    repository = local_hub.repositories[f"models/{NAME}"]
    assert [len(repository.history(branch)) for branch in repository.branches] == [2, 2, 2]
    assert len(repository.tags) == 2


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["--repo-id", NAME], {"HF_TOKEN": "hf_" + "expired" * 5}, "The Hub does not accept your token, or has no"),
        (["--repo-id", NAME], {"HF_TOKEN": READ_TOKEN}, "Your token may not write to someone/tiny (403); use one"),
        (["--repo-id", "else/tiny"], {}, "Your token may not write to else/tiny (403); use one with write access"),
        (["--repo-id", "some one/ti ny"], {}, "Repo id must use alphanumeric chars"),
        (["--repo-id", "tiny"], {}, "The repository 'tiny' needs its owner too: user/tiny."),
        (["--repo-id", NAME, "--create-pr"], {}, "A pull request goes to main and holds one checkpoint"),
        (["--repo-id", NAME], {"HF_HUB_OFFLINE": "1"}, "The Hub is not asked, because HF_HUB_OFFLINE is set"),
        (["--repo-id", NAME], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "The connection to the Hub broke"),
    ],
)
def test_a_refusal_is_one_sentence(local_hub, push, run, arguments, environment, sentence):
    code, out, err = push(run, *arguments, **environment)
    assert_one_sentence(code, out + err, sentence)
    assert not local_hub.repositories


def assert_one_sentence(code: int, printed: str, sentence: str) -> None:
    assert code == 1
    assert sentence in printed
    assert "Traceback" not in printed
    assert not re.search(r"hf_\w{10}", printed)


def test_a_public_repository_does_not_become_private_by_wishing(local_hub, push, language_checkpoint):
    assert push(language_checkpoint, "--repo-id", NAME)[0] == 0
    code, out, err = push(language_checkpoint, "--repo-id", NAME, "--private")
    assert_one_sentence(code, out + err, f"{NAME} exists and is public")
    assert push(language_checkpoint, "--repo-id", "someone/hidden", "--private")[0] == 0
    assert local_hub.repositories["models/someone/hidden"].private


def test_a_pull_request_leaves_main_alone(local_hub, push, language_checkpoint, multimodal_checkpoint):
    assert push(language_checkpoint, "--repo-id", NAME)[0] == 0
    repository = local_hub.repositories[f"models/{NAME}"]
    main = repository.branches["main"]
    code, out, err = push(multimodal_checkpoint, "--repo-id", NAME, "--create-pr", HF_TOKEN=READ_TOKEN)
    assert code == 0, err
    assert f"{local_hub.endpoint}/{NAME}/discussions/1" in out
    assert repository.branches["main"] == main
    assert set(local_hub.files(NAME, "refs/pr/1")) >= CODE


def test_a_branch_of_ones_own(local_hub, push, language_checkpoint):
    assert push(language_checkpoint, "--repo-id", NAME, "--revision", "alpha-0.7")[0] == 0
    assert set(local_hub.files(NAME)) == set()
    assert set(local_hub.files(NAME, "alpha-0.7")) == LANGUAGE


def test_results_are_on_the_card_if_they_are_of_these_weights(local_hub, push, language_checkpoint, tmp_path):
    row = {"metric": "accuracy", "value": 0.75, "interval": [0.7, 0.8], "chance": 0.5, "items": 400}
    other = {"metric": "spearman", "value": 0.2, "interval": [0.1, 0.3], "chance": 0.0, "items": 40}
    digest = sha256(language_checkpoint / "model.safetensors")
    model = {"name": str(tmp_path / "language"), "weights_sha256": {"model.safetensors": digest}}
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"model": model, "tasks": {"blimp_filtered": row, "yours": row, "wug": other}}))
    assert push(language_checkpoint, "--repo-id", NAME, "--results", results)[0] == 0
    files = local_hub.files(NAME)
    assert json.loads(files["results.json"])["model"]["name"] == "language"
    card = ModelCard(files["README.md"].decode())
    assert "| blimp_filtered | 75.0 | 70.0 to 80.0 | 50.0 | 400 |" in card.text
    assert {(one.dataset_name, one.metric_value) for one in card.data.eval_results} == {
        ("blimp_filtered", 0.75),
        ("yours", 0.75),
    }
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/babylm.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("nyu-mll/blimp", "blimp_filtered", 0.75)

    assert push(language_checkpoint, "--repo-id", NAME)[0] == 0  # then there are none of another
    assert set(local_hub.files(NAME)) == LANGUAGE

    model["weights_sha256"]["model.safetensors"] = "0" * 64
    results.write_text(json.dumps({"model": model, "tasks": {"blimp": row}}))
    code, out, err = push(language_checkpoint, "--repo-id", NAME, "--results", results)
    assert_one_sentence(code, out + err, "holds the results of other weights")
    code, out, err = push(language_checkpoint, "--repo-id", NAME, "--results", tmp_path / "nowhere.json")
    assert_one_sentence(code, out + err, "There are no results")


def test_content_is_cleaned_as_a_file_is(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"model": str(tmp_path / "model"), "text": "a/b"}))
    for source in (path, path.read_bytes()):
        assert json.loads(fit_to_be_seen("results.json", source)) == {"model": "model", "text": "a/b"}
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        fit_to_be_seen("results.json", b"{")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("training_state.json", json.dumps({"token": TOKEN}), "training_state.json holds what looks like a token"),
        ("README.md", f"Load it with {TOKEN}.", "README.md holds what looks like a token"),
        ("modeling_babylm_vlm.py", None, "lacks modeling_babylm_vlm.py, which its config.json names"),
        ("vision_tower/config.json", None, "names the vision tower ./vision_tower, which is not beside the weights"),
        ("model.safetensors", None, "has no weights"),
        ("config.json", None, "has no config.json, so it is not a checkpoint"),
        ("chck_2M/model.safetensors", None, "has no weights"),
    ],
)
def test_nothing_incomplete_or_secret_is_sent(local_hub, push, run, name, content, sentence):
    (run / name).write_text(content) if content else (run / name).unlink()
    code, out, err = push(run, "--repo-id", NAME)
    assert_one_sentence(code, out + err, sentence)
    assert not local_hub.requests


def test_a_card_written_by_hand_is_sent_as_it_is(local_hub, push, language_checkpoint, tmp_path):
    mine = shutil.copytree(language_checkpoint, tmp_path / "mine")
    (mine / "README.md").write_text("---\nlicense: mit\n---\n\nMy words.\n")
    assert push(mine, "--repo-id", NAME)[0] == 0
    assert local_hub.files(NAME)["README.md"] == (mine / "README.md").read_bytes()


def test_a_family_is_a_collection_and_the_merge_links_its_parents(
    local_hub, push, language_checkpoint, multimodal_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(language_checkpoint, "run/language")
    shutil.copytree(multimodal_checkpoint, "run/multimodal")
    Path("plan.yaml").write_text(linear_plan_yaml("run/multimodal", "run/language", 0.3))
    plan = read_plan("plan.yaml")
    merge(plan, "run/merged")
    write_merged_card(Path("run/merged"), plan)
    Path("run/results.json").write_text(json.dumps({"alpha": 0.3}))
    Path("run/alpha_curve.png").write_bytes(b"a curve")
    for _ in range(2):
        code, _, err = push("run", "--repo-id", "someone/family")
        assert code == 0, err
    (collection,) = local_hub.collections.values()
    names = [f"someone/family-{member}" for member in ("language", "merged", "multimodal")]
    assert (collection["title"], [item["id"] for item in collection["items"]]) == ("family", names)
    assert {"results.json", "alpha_curve.png"} <= set(local_hub.files("someone/family-merged"))
    card = ModelCard(local_hub.files("someone/family-merged")["README.md"].decode())
    assert card.data.base_model == ["someone/family-multimodal", "someone/family-language"]
    assert '- model: "someone/family-language"' in card.text
    assert all(len(repository.commits) == 2 for repository in local_hub.repositories.values())
