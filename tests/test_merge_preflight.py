"""What is refused, warned of or said before a merge.

Run: pytest tests/test_merge_preflight.py
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from babylm_vlm.files import sha256, weights_sha256
from babylm_vlm.merging import linear_plan_yaml, merge, read_plan
from babylm_vlm.merging.linear import preflight
from babylm_vlm.merging.preflight import common_ancestor


@pytest.fixture
def pair(tmp_path, monkeypatch, multimodal_checkpoint, language_checkpoint):
    """Copies of the tiny checkpoints as `multimodal/` and `language/` of the current folder, and their plan."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(multimodal_checkpoint, "multimodal")
    shutil.copytree(language_checkpoint, "language")
    write_plan()
    return tmp_path


def write_plan(alpha: float = 0.3, more: str = "") -> None:
    Path("plan.yaml").write_text(linear_plan_yaml("./multimodal", "./language", alpha) + more)


def change_config(name: str, **changes) -> None:
    file = Path(name, "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(name: str, change) -> None:
    weights = load_file(f"{name}/model.safetensors")
    change(weights)
    save_file(weights, f"{name}/model.safetensors")


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CONFIGS = {
    "rope_theta is 10000.0 in ./multimodal and 5000.0 in ./language": {"rope_parameters": ROPE | {"rope_theta": 5000}},
    "rope_scaling is None in ./multimodal and {'factor': 2.0, 'rope_type': 'linear'}": {
        "rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}
    },
    "rms_norm_eps is 1e-06 in ./multimodal and 0.1": {"rms_norm_eps": 0.1},
    "num_attention_heads is 2 in ./multimodal and 4": {"num_attention_heads": 4},
    "hidden_act is 'silu' in ./multimodal and 'gelu'": {"hidden_act": "gelu"},
    "tie_word_embeddings is True in ./multimodal and False": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("message", CONFIGS)
def test_configurations_that_change_the_meaning_of_weights_are_refused(pair, message):
    change_config("language", **CONFIGS[message])
    with pytest.raises(ValueError) as caught:
        merge(read_plan("plan.yaml"), "merged")
    assert str(caught.value).startswith(message)


def test_an_older_way_to_write_the_same_configuration_is_accepted(pair):
    change_config("language", rope_parameters=None, rope_theta=10000, rope_scaling=None, head_dim=None)
    steps, weights = preflight(read_plan("plan.yaml"))
    assert {step.name for step in steps} == weights[0].names | weights[1].names


def test_output_embeddings_on_one_side_are_named(pair):
    change_weights("language", lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    with pytest.raises(ValueError, match=r"lm_head\.weight is in ./language but not in ./multimodal: one has output"):
        merge(read_plan("plan.yaml"), "merged")


def test_mixed_dtypes_need_a_decision(pair):
    change_weights("language", lambda w: w.update({name: tensor.bfloat16() for name, tensor in w.items()}))
    with pytest.raises(ValueError, match=r"is float32 in ./multimodal and bfloat16 in ./language; say in the plan"):
        merge(read_plan("plan.yaml"), "merged")
    write_plan(more="dtype: float32\n")
    merge(read_plan("plan.yaml"), "merged")
    assert {tensor.dtype for tensor in load_file("merged/model.safetensors").values()} == {torch.float32}


def test_missing_tensors_are_copied_and_listed_only_when_allowed(pair, caplog):
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights("language", lambda weights: weights.pop(name))
    change_weights("language", lambda weights: weights.update({"model.extra": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"model\.extra is in ./language but not in ./multimodal.*--allow-missing"):
        merge(read_plan("plan.yaml"), "merged")
    merge(read_plan("plan.yaml"), "merged", allow_missing=True)
    merged, multimodal = load_file("merged/model.safetensors"), load_file("multimodal/model.safetensors")
    assert torch.equal(merged[name], multimodal[name]) and torch.equal(merged["model.extra"], torch.ones(3))
    assert f"{name} is not in ./language: copied from ./multimodal." in caplog.messages
    assert "model.extra is not in ./multimodal: copied from ./language." in caplog.messages
    assert len([message for message in caplog.messages if "projector" in message]) == 4  # they are missing too


# --- common descent --------------------------------------------------------------------------------------------------


def record_ancestor(name: str, ancestor: dict | None) -> None:
    Path(name, "training_state.json").write_text(json.dumps({"ancestor": ancestor}))


def test_models_without_a_common_ancestor_get_a_warning_with_numbers(pair, caplog):
    preflight(read_plan("plan.yaml"))
    (warning,) = caplog.messages
    assert warning.startswith("Warning: No common ancestor of ./multimodal and ./language is on record")
    cosine = float(warning.split("mean cosine is ")[1].split()[0])
    distance = float(warning.split("mean relative distance ")[1].split(";")[0])
    assert abs(cosine) < 0.1 and abs(distance - 2**0.5) < 0.1  # independent matrices of one size


@pytest.mark.parametrize("kind", ["same", "parent", "other"])
def test_a_common_ancestor_is_known_by_the_hash_of_its_weights(pair, caplog, kind):
    own = sha256(Path("language/model.safetensors"))
    record_ancestor("multimodal", {"name": "runs/first", "sha256": own if kind == "parent" else "abc"})
    record_ancestor("language", {"name": "elsewhere", "sha256": "abc"} if kind == "same" else None)
    plan = read_plan("plan.yaml")
    assert common_ancestor(plan.sources) == {"same": "runs/first", "parent": "./language", "other": None}[kind]
    preflight(plan)
    assert bool(caplog.messages) == (kind == "other")


def test_hash_of_shards_is_what_the_shell_prints(tmp_path):
    import subprocess

    for number in (1, 2):
        save_file({f"t{number}": torch.ones(number)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    weight_map = {f"t{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    command = "sha256sum model-*.safetensors | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert weights_sha256(tmp_path) == printed.split()[0]
