"""Models that share their ancestor are told from models that do not, by weights and by the loss between them.

Run: pytest tests/test_diagnose.py
"""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from babylm_vlm.evaluation import read_pairs
from babylm_vlm.files import sha256
from babylm_vlm.merging.diagnose import HELD_OUT, barrier, diagnose, held_out_sentences
from babylm_vlm.merging.interpolation import read_tensors

NOUNS, VERBS = ("cat", "dog", "girl", "boy", "ball", "tree"), ("sees", "sat next to", "is under", "did see")


def sentences(seed: int, count: int) -> list[str]:
    words = random.Random(seed)
    return [f"the {words.choice(NOUNS)} {words.choice(VERBS)} the {words.choice(NOUNS)}" for _ in range(count)]


def train(model: LlamaForCausalLM, tokenizer, seed: int, steps: int, learning_rate: float) -> LlamaForCausalLM:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    texts = sentences(seed, 16 * steps)
    for step in range(steps):
        batch = tokenizer(texts[16 * step : 16 * (step + 1)], padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def save(model, tokenizer, folder: Path, ancestor: Path | None = None) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {"name": str(ancestor), "sha256": sha256(ancestor / "model.safetensors")} if ancestor else None
    (folder / "training_state.json").write_text(json.dumps({"ancestor": record}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_tokenizer, decoder_fields):
    """Folders: an ancestor, two children of it, and a stranger trained as long from weights of its own."""
    place = tmp_path_factory.mktemp("trained")

    def fresh(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**decoder_fields))

    save(train(fresh(0), tiny_tokenizer, 0, 60, 1e-2), tiny_tokenizer, place / "ancestor")
    save(train(fresh(1), tiny_tokenizer, 1, 60, 1e-2), tiny_tokenizer, place / "stranger")
    for seed, name in ((2, "child"), (3, "sibling")):
        model = LlamaForCausalLM.from_pretrained(place / "ancestor")
        save(train(model, tiny_tokenizer, seed, 20, 1e-3), tiny_tokenizer, place / name, place / "ancestor")
    (place / "text.txt").write_text("\n".join(sentences(4, 40)))
    return place


def test_siblings_merge_and_strangers_do_not(trained):
    siblings = diagnose(trained / "child", trained / "sibling", text=trained / "text.txt")
    assert siblings["verdict"] == "merge" and siblings["relative_barrier"] < 0.02
    assert siblings["ancestor"] == {"name": str(trained / "ancestor"), "source": "training_state.json"}
    strangers = diagnose(trained / "child", trained / "stranger", text=trained / "text.txt")
    assert strangers["verdict"] == "do not merge" and strangers["relative_barrier"] > 0.2
    assert strangers["ancestor"] is None
    for near, far in zip(siblings["layers"], strangers["layers"], strict=True):
        assert near["layer"] == far["layer"]
        assert near["distance"] < 0.5 < far["distance"] and abs(far["cosine"]) < 0.3 < near["cosine"]
    assert [layer["layer"] for layer in siblings["layers"]] == ["embeddings", "layer 0", "layer 1"]


def test_a_model_may_be_stored_in_another_dtype(trained, tmp_path, tiny_tokenizer):
    exact = diagnose(trained / "child", trained / "sibling", text=trained / "text.txt")
    half = LlamaForCausalLM.from_pretrained(trained / "sibling", dtype=torch.bfloat16)
    save(half, tiny_tokenizer, tmp_path / "half", trained / "ancestor")
    found = diagnose(trained / "child", tmp_path / "half", text=trained / "text.txt")
    assert found["verdict"] == exact["verdict"]
    assert [point["loss"] for point in found["path"]] == pytest.approx([p["loss"] for p in exact["path"]], rel=0.02)


def test_the_path_ends_at_the_losses_of_the_models_and_alpha_weighs_the_first(trained, tiny_tokenizer):
    found = diagnose(trained / "child", trained / "stranger", text=trained / "text.txt")
    texts = (trained / "text.txt").read_text().splitlines()
    for point, name in ((found["path"][0], "stranger"), (found["path"][-1], "child")):
        model = LlamaForCausalLM.from_pretrained(trained / name)
        batch = tiny_tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with torch.no_grad():
            expected = model(**batch, labels=labels).loss.item()
        assert point["loss"] == pytest.approx(expected, abs=1e-3)


def test_cosines_are_of_task_vectors_where_the_ancestor_is_known(trained):
    found = diagnose(trained / "child", trained / "sibling", text=trained / "text.txt")
    child, sibling, ancestor = (read_tensors(trained / name) for name in ("child", "sibling", "ancestor"))
    name = "model.embed_tokens.weight"
    steps = [(weights[name] - ancestor[name]).flatten() for weights in (child, sibling)]
    distance = (child[name] - sibling[name]).norm() / (0.5 * (child[name].norm() + sibling[name].norm()))
    assert found["layers"][0]["cosine"] == pytest.approx(torch.cosine_similarity(*steps, dim=0).item(), abs=1e-4)
    assert found["layers"][0]["distance"] == pytest.approx(distance.item(), abs=1e-5)


def test_a_model_and_its_own_ancestor(trained):
    found = diagnose(trained / "child", trained / "ancestor", text=trained / "text.txt")
    assert found["ancestor"]["name"] == str(trained / "ancestor") and found["verdict"] == "merge"
    assert all(layer["cosine"] is None for layer in found["layers"])  # one of the steps is zero


def test_an_ancestor_whose_weights_have_changed_is_not_believed(trained, tmp_path, tiny_tokenizer):
    for name in ("child", "sibling"):
        model = LlamaForCausalLM.from_pretrained(trained / name)
        save(model, tiny_tokenizer, tmp_path / name, trained / "ancestor")
        state = tmp_path / name / "training_state.json"
        state.write_text(state.read_text().replace(sha256(trained / "ancestor" / "model.safetensors"), "0" * 64))
    assert diagnose(tmp_path / "child", tmp_path / "sibling", text=trained / "text.txt")["ancestor"] is None


def test_the_package_has_held_out_sentences():
    sentences = held_out_sentences()
    assert len(sentences) >= 100 and len(set(sentences)) == len(sentences) and all(map(str.strip, sentences))
    assert {pair.uid for pair in read_pairs(HELD_OUT) if pair.good in sentences} == {
        pair.uid for pair in read_pairs(HELD_OUT)
    }


def test_barrier_is_the_excess_over_the_line_between_the_ends():
    path = [{"alpha": a, "loss": loss} for a, loss in ((0.0, 2.0), (0.25, 5.0), (0.5, 4.0), (1.0, 4.0))]
    assert barrier(path) == {"barrier": 2.5, "barrier_alpha": 0.25, "relative_barrier": 2.5 / 3}
    valley = [{"alpha": a, "loss": loss} for a, loss in ((0.0, 2.0), (0.5, 1.0), (1.0, 4.0))]
    assert barrier(valley)["barrier"] == 0.0


@pytest.fixture
def command(tmp_path, monkeypatch, run_command):
    """Run `babylm-vlm diagnose …` in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command("diagnose", *arguments)


def test_command_prints_and_writes(trained, command):
    arguments = (trained / "child", trained / "stranger", "--text", trained / "text.txt", "--output-dir", "found")
    code, out, _ = command(*arguments, "--json")
    assert code == 0 and json.loads(out) == json.loads(Path("found/diagnosis.json").read_text())
    with Image.open("found/diagnosis.png") as plot:
        assert plot.width >= 600 and len(plot.convert("RGB").getcolors(1 << 20)) > 10
    code, out, err = command(*arguments)
    assert code == 1 and "pass --overwrite" in err
    code, out, _ = command(*arguments, "--ancestor", trained / "ancestor", "--overwrite")
    assert code == 0 and "do not merge. They lie in different basins" in out and "layer 1" in out
    assert json.loads(Path("found/diagnosis.json").read_text())["ancestor"]["source"] == "given"


def test_a_multimodal_model_is_weighed_by_alpha_in_either_order(command, multimodal_checkpoint, language_checkpoint):
    Path("text.txt").write_text("the cat sat next to the tree")
    for pair in ((multimodal_checkpoint, language_checkpoint), (language_checkpoint, multimodal_checkpoint)):
        code, out, _ = command(*pair, "--text", "text.txt", "--json")
        assert code == 0 and json.loads(out)["a"] == str(multimodal_checkpoint)


def test_wrong_input_is_one_sentence(command, trained, multimodal_checkpoint):
    other = Path("other")
    other.mkdir()
    for file in ("tokenizer_config.json", "config.json", "model.safetensors"):
        (other / file).write_bytes((trained / "child" / file).read_bytes())
    tokenizer = json.loads((trained / "child" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    Path("empty").mkdir()
    for arguments, message in (
        ((trained / "child", "nowhere"), "nowhere holds no config.json"),
        ((trained / "child", "empty"), "empty holds no config.json"),
        ((trained / "child", trained / "sibling", "--text", "no.txt"), "There is no text file no.txt"),
        ((trained / "child", trained / "sibling", "--ancestor", "nowhere"), "nowhere holds no config.json"),
        ((trained / "child", other), "number their tokens differently"),
    ):
        code, out, err = command(*arguments)
        errors = [line for line in err.splitlines() if line and "Loading weights" not in line]
        assert (code, out, len(errors)) == (1, "", 1) and errors[0].startswith("Error: ") and message in errors[0]
