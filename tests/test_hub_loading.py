"""A stranger loads from a Hub on loopback what we pushed: fresh process, empty cache, without this package.

Run: pytest tests/test_hub_loading.py
"""

import json
import re
import shutil

import torch
from conftest import SENTENCES
from local_hub import Repository
from pair_files import write_lines
from PIL import Image
from safetensors.torch import load_file

from babylm_vlm.model import BabylmVlmForConditionalGeneration, BabylmVlmProcessor

NAME = "someone/tiny"
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}

STRANGER = """
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, pipeline
torch.set_num_threads(1)
name, picture, target, answers, *sentences = sys.argv[1:]
options = {"revision": "chck_2M", "trust_remote_code": True}
processor = AutoProcessor.from_pretrained(name, **options)
model = AutoModelForCausalLM.from_pretrained(name, **options).eval()
picture = Image.open(picture)
inputs = processor(text=sentences, images=[picture] * len(sentences), padding=True, return_tensors="pt")
greedy = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
with torch.no_grad():
    saved = {"logits": model(**inputs).logits, "captions": model.generate(**inputs, **greedy)}
    for auto, output in ((AutoModel, "last_hidden_state"), (AutoModelForImageTextToText, "logits")):
        saved[auto.__name__] = auto.from_pretrained(name, **options).eval()(**inputs)[output]
save_file(saved, answers)
captioner = pipeline("image-text-to-text", name, **options)
print(captioner(images=picture, text="<image> the", generate_kwargs=greedy)[0]["generated_text"])
writer = pipeline("text-generation", name, **options)
print(writer("the", **greedy)[0]["generated_text"])
model.save_pretrained(target)
processor.save_pretrained(target)
again = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True).eval()
with torch.no_grad():
    assert torch.equal(again(**inputs).logits, saved["logits"])
"""


def test_a_stranger_loads_a_revision_and_again_offline(local_hub, multimodal_checkpoint, tmp_path):
    run = shutil.copytree(multimodal_checkpoint, tmp_path / "run")
    shutil.copytree(multimodal_checkpoint, run / "chck_2M")
    (run / "model.safetensors").rename(run / "weights")  # on main, weights and tower have changed places
    (run / "vision_tower" / "model.safetensors").rename(run / "model.safetensors")
    (run / "weights").rename(run / "vision_tower" / "model.safetensors")
    code, _, err = local_hub.command("push", run, "--repo-id", NAME, cache=tmp_path / "ours")
    assert code == 0, err
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    arguments = [NAME, tmp_path / "red.png", tmp_path / "again", tmp_path / "answers.safetensors", *SENTENCES[:2]]
    online = local_hub.python(STRANGER, *arguments, cache=tmp_path / "cache")
    answers = load_file(tmp_path / "answers.safetensors")

    model = BabylmVlmForConditionalGeneration.from_pretrained(multimodal_checkpoint).eval()
    processor = BabylmVlmProcessor.from_pretrained(multimodal_checkpoint)
    picture = Image.open(tmp_path / "red.png")
    inputs = processor(SENTENCES[:2], images=[picture] * 2, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(answers["logits"], logits, atol=1e-6, rtol=0)
    assert torch.equal(answers["AutoModelForImageTextToText"], answers["logits"])
    assert torch.equal(answers["captions"], model.generate(**inputs, **GREEDY))
    assert answers["AutoModel"].shape == (*logits.shape[:2], 32)
    tower = "vision_tower/model.safetensors"
    assert (tmp_path / "again" / tower).read_bytes() == (multimodal_checkpoint / tower).read_bytes()

    local_hub.server.shutdown()
    asked = len(local_hub.requests)
    shutil.rmtree(tmp_path / "again")
    offline = local_hub.python(STRANGER, *arguments, cache=tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert offline == online
    assert len(local_hub.requests) == asked
    assert torch.equal(load_file(tmp_path / "answers.safetensors")["logits"], answers["logits"])


def test_foreign_code_runs_only_when_told_and_is_named(local_hub, multimodal_checkpoint, tmp_path):
    other = shutil.copytree(multimodal_checkpoint, tmp_path / "other")
    for name in ("config.json", "configuration_babylm_vlm.py"):
        text = (other / name).read_text()
        (other / name).write_text(re.sub(r'("model_type": |model_type = )"babylm_vlm"', r'\1"other_vlm"', text))
    assert local_hub.command("push", other, "--repo-id", "someone/other", cache=tmp_path / "ours")[0] == 0
    row = {"sentence_good": "the cat sat", "sentence_bad": "sat the cat", "UID": "order"}
    write_lines(tmp_path / "data" / "grammar" / "pairs.jsonl", [row] * 4)
    command = ["evaluate", "someone/other", "--data", tmp_path / "data", "--output-dir", tmp_path / "scores"]

    code, out, err = local_hub.command(*command, cache=tmp_path / "cache")
    assert code == 1
    assert "contains custom code" in " ".join(err.split())
    assert "Traceback" not in out + err
    assert not (tmp_path / "scores").exists()
    code, out, err = local_hub.command(*command, "--trust-remote-code", cache=tmp_path / "cache")
    assert code == 0, err
    commit = local_hub.repositories["models/someone/other"].branches["main"]
    assert f"Running configuration_babylm_vlm.BabylmVlmConfig of someone/other, revision {commit}." in err
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["model"]["commit"] == commit


def test_a_tower_of_the_hub_comes_along_when_asked_for(local_hub, multimodal_checkpoint, tiny_tower, tmp_path):
    repository = local_hub.repositories["models/someone/tower"] = Repository(private=False)
    repository.commit("main", None, "first", {path.name: path.read_bytes() for path in tiny_tower.iterdir()})
    run = shutil.copytree(multimodal_checkpoint, tmp_path / "run", ignore=shutil.ignore_patterns("vision_tower"))
    config = json.loads((run / "config.json").read_text()) | {"vision_tower": "someone/tower"}
    (run / "config.json").write_text(json.dumps(config))
    line = ["push", run, "--repo-id", NAME, "--self-contained"]
    code, _, err = local_hub.command(*line, cache=tmp_path / "ours")
    assert code == 0, err
    files = local_hub.files(NAME)
    assert files["vision_tower/model.safetensors"] == (tiny_tower / "model.safetensors").read_bytes()
    assert json.loads(files["config.json"]) == config | {
        "vision_tower": "./vision_tower",
        "vision_tower_revision": None,
    }
    assert "vision_tower/preprocessor_config.json" in files


def test_all_checkpoints_of_a_repository_are_measured(local_hub, language_checkpoint, tmp_path):
    run = shutil.copytree(language_checkpoint, tmp_path / "run")
    for name in ("chck_1M", "chck_2M"):
        shutil.copytree(language_checkpoint, run / name)
    assert local_hub.command("push", run, "--repo-id", NAME, cache=tmp_path / "ours")[0] == 0
    row = {"sentence_good": "the cat sat", "sentence_bad": "sat the cat", "UID": "order"}
    write_lines(tmp_path / "data" / "grammar" / "pairs.jsonl", [row] * 4)
    line = ["evaluate", NAME, "--revisions", "all", "--data", tmp_path / "data", "--output-dir", tmp_path / "scores"]
    code, _, err = local_hub.command(*line, cache=tmp_path / "cache")
    assert code == 0, err
    branches = local_hub.repositories[f"models/{NAME}"].branches
    for name in ("chck_1M", "chck_2M"):
        results = json.loads((tmp_path / "scores" / name / "results.json").read_text())
        assert results["model"]["commit"] == branches[name]
