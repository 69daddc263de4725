"""The card of a merge: it is in the folder when the folder appears, and what it says of the parents is so.

Run: pytest tests/test_merged_card.py
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from babylm_vlm.files import sha256
from babylm_vlm.hub import facts
from babylm_vlm.merging import linear_plan_yaml

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


@pytest.fixture
def parents(tmp_path, monkeypatch, language_checkpoint, multimodal_checkpoint):
    """The current folder, with the checkpoints `language` and `multimodal`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(language_checkpoint, "language")
    shutil.copytree(multimodal_checkpoint, "multimodal")


@pytest.fixture
def merged_card(parents, run_command):
    """Merge `multimodal` and a language-only model by the command line; returns the card's text."""

    def run(language: str = "language", *arguments: str, plan: str | None = None) -> str:
        Path("plan.yaml").write_text(plan or linear_plan_yaml("multimodal", language, 0.3))
        code, _, err = run_command("merge", "plan.yaml", "--output-dir", "merged", *arguments)
        assert code == 0, err
        return ModelCard.load("merged/README.md").text

    return run


def fail(*_):
    raise AssertionError("this must not run")


def rows(card: str) -> dict[str, str]:
    """Role -> the last cell of the table of parents."""
    return dict(re.findall(r"^\| (multimodal|language) \|.*\| ([0-9a-f +]+) \|$", card, flags=re.MULTILINE))


def test_hashes_are_taken_while_the_parents_are_read(merged_card, monkeypatch):
    expected = {role: sha256(Path(role, WEIGHTS)) for role in ("multimodal", "language")}
    monkeypatch.setattr("babylm_vlm.files.sha256", fail)
    assert rows(merged_card()) == expected


def test_two_language_models_get_no_card_and_nothing_is_hashed(parents, run_command, monkeypatch):
    shutil.copytree("language", "other")
    for name in ("files.sha256", "merging.linear.HashedReads"):
        monkeypatch.setattr(f"babylm_vlm.{name}", fail)
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("language", "other")]
    plan = {"merge_method": "linear", "base_model": "language", "models": models}
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    code, _, err = run_command("merge", "plan.yaml", "--output-dir", "merged")
    assert code == 0, err
    assert Path("merged", WEIGHTS).is_file() and not Path("merged", "README.md").exists()


def test_a_merge_whose_card_cannot_be_written_does_not_appear(parents, run_command, monkeypatch):
    Path("plan.yaml").write_text(linear_plan_yaml("multimodal", "language", 0.3))
    before = sorted(Path().rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(facts, "write_card", full)
    code, out, err = run_command("merge", "plan.yaml", "--output-dir", "merged")
    assert code == 1 and "No space left on device" in err and "merged from" not in out
    assert sorted(Path().rglob("*")) == before


def test_a_parent_with_an_adapter_has_the_hashes_of_both(merged_card, caplog):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained("language"), config).save_pretrained("adapter")
    ancestor = {"name": "somewhere/language", "sha256": sha256(Path("language", WEIGHTS))}
    Path("multimodal", "training_state.json").write_text(json.dumps({"ancestor": ancestor}))
    here = Path.cwd()
    card = merged_card(f"{here}/language+{here}/adapter")
    assert rows(card)["language"] == f"{ancestor['sha256']} + {sha256(Path('adapter', ADAPTER))}"
    assert "| language | language+adapter |" in card and '- model: "language+adapter"' in card
    assert "Common ancestor: `somewhere/language`" in card and str(here) not in card
    assert "No common ancestor" not in caplog.text


def test_an_ancestor_that_is_a_parent_is_named_and_hashed_once_more_only_for_the_check(merged_card, monkeypatch):
    ancestor = {"name": "somewhere/language", "sha256": sha256(Path("language", WEIGHTS))}
    Path("multimodal", "training_state.json").write_text(json.dumps({"ancestor": ancestor, "data": []}))
    hashed = []
    monkeypatch.setattr("babylm_vlm.files.sha256", lambda path: hashed.append(path) or sha256(path))
    assert "Common ancestor: `./language`" in merged_card()
    assert hashed == [Path("language", WEIGHTS)]


def test_alpha_is_not_said_where_it_is_not_that_of_all_tensors(merged_card):
    assert "**alpha = 0.3**" in merged_card()
    lose("model.layers.0.mlp.down_proj.weight")
    card = merged_card("language", "--allow-missing", "--overwrite")
    assert "**alpha" not in card and set(rows(card)) == {"multimodal", "language"}


def test_alpha_is_not_said_where_tokens_are_matched(merged_card):
    tokenizer = json.loads(Path("language/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [token for token in vocabulary if len(token) > 2][-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    Path("language/tokenizer.json").write_text(json.dumps(tokenizer))
    plan = linear_plan_yaml("multimodal", "language", 0.3) + "tokenizer: {source: base}\n"
    assert "**alpha" not in merged_card(plan=plan)


def test_a_model_needs_no_weight_for_what_only_the_other_has(merged_card):
    lost = lose("model.layers.0.mlp.down_proj.weight")
    plan = yaml.safe_load(linear_plan_yaml("multimodal", "language", 0.3))
    plan["models"][0]["parameters"]["weight"] = [{"filter": lost, "value": 1.0}, {"value": 0.3}]
    filters = ("layers.1", "self_attn", "gate_proj", "up_proj", "norm", "embed_tokens", "lm_head")
    plan["models"][1]["parameters"]["weight"] = [{"filter": part, "value": 0.7} for part in filters]
    assert "**alpha" not in merged_card("language", "--allow-missing", plan=yaml.safe_dump(plan))


def lose(name: str) -> str:
    """Take a tensor out of `language`."""
    weights = load_file(f"language/{WEIGHTS}")
    del weights[name]
    save_file(weights, f"language/{WEIGHTS}", metadata={"format": "pt"})
    return name
