"""From a run of the demo to a stranger who believes it, and README's section "Publish", on a Hub on loopback.

Run: pytest tests/test_hub_demo.py
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from pair_files import write_lines
from safetensors.torch import load_file

from babylm_vlm.data.captions import open_picture
from babylm_vlm.evaluation import load_model, read_pairs, score_pairs
from babylm_vlm.merging import linear_plan_yaml

REPOSITORY = Path(__file__).resolve().parents[1]
MERGEKIT = "from mergekit.scripts.run_yaml import main; main()"
STRANGER = """
import json
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor
name, revision, folder, *sentences = sys.argv[1:]
options = {"revision": revision, "trust_remote_code": True}
processor = AutoProcessor.from_pretrained(name, **options)
model = AutoModelForCausalLM.from_pretrained(name, **options).eval()
scores = []
with torch.no_grad():
    for line in Path(folder, "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        picture = Image.open(Path(folder, row["image"])).convert("RGB")
        for sentence in (row["sentence_good"], row["sentence_bad"]):
            inputs = processor(text=f"<image> {sentence}", images=picture, return_tensors="pt")
            first = int((inputs["input_ids"][0] == processor.tokenizer.image_token_id).nonzero().max()) + 1
            logits = model(**inputs).logits[0, first - 1 : -1].log_softmax(-1)
            scores.append(logits.gather(1, inputs["input_ids"][0, first:, None]).sum().item())
    inputs = processor(text="<image> a", images=picture, return_tensors="pt")
    caption = processor.tokenizer.decode(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0])
print(json.dumps({"scores": scores, "caption": caption}))
"""


@pytest.fixture
def ten_pairs(demo, tmp_path) -> Path:
    """Folder with a task "grounded" of ten of the demo's pairs and their pictures."""
    rows = [json.loads(line) for line in next(demo.folder.glob("data/test/grounded/*.jsonl")).open()][:10]
    write_lines(tmp_path / "ten" / "grounded" / "pairs.jsonl", rows)
    for name in {row["image"] for row in rows}:
        shutil.copy(demo.folder / "data" / "test" / "grounded" / name, tmp_path / "ten" / "grounded" / name)
    return tmp_path / "ten"


def test_a_demo_run_arrives_whole_and_is_believed(local_hub, run_command, demo, ten_pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(demo.place)  # the recipe's paths are relative to it
    run = shutil.copytree(demo.folder, tmp_path / "run", ignore=shutil.ignore_patterns("data"))
    state = demo.results["training"]["multimodal"]
    words = state["words_seen"]
    wanted = [words // 2, words * 5 // 6, words]  # after each of its three updates
    recipe = state["recipe"] | {"checkpoint_words": wanted, "output_dir": str(tmp_path / "again")}
    recipe = {key: value for key, value in recipe.items() if value is not None}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, _, err = run_command("train", tmp_path / "recipe.yaml")
    assert code == 0, err
    names = [f"chck_{number}" for number in wanted]
    for name in names:
        shutil.copytree(tmp_path / "again" / name, run / "multimodal" / name)

    code, _, err = local_hub.command("push", run, "--repo-id", "someone/demo", cache=tmp_path / "ours")
    assert code == 0, err
    multimodal, language, merged = (f"someone/demo-{name}" for name in ("multimodal", "language", "merged"))
    assert {f"models/{name}" for name in (multimodal, language, merged)} == set(local_hub.repositories)
    assert list(local_hub.repositories[f"models/{multimodal}"].branches) == ["main", *names]
    published = {result.dataset_name: result.metric_value for result in card(local_hub, merged).data.eval_results}
    measured = demo.results["test"]["models"]["merged"]
    assert published == {f"{task} minimal pairs (demo)": round(measured[task]["accuracy"], 4) for task in measured}

    grounded = ten_pairs / "grounded"
    seen = json.loads(local_hub.python(STRANGER, multimodal, names[1], grounded, cache=tmp_path / "theirs"))
    model, processor = load_model(run / "multimodal" / names[1])
    pairs = read_pairs(grounded)
    scores = torch.from_numpy(score_pairs(model, processor, pairs, progress=False)).flatten()
    torch.testing.assert_close(torch.tensor(seen["scores"], dtype=scores.dtype), scores, atol=1e-3, rtol=1e-5)
    inputs = processor("<image> a", images=open_picture(pairs[-1].image), return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert seen["caption"] == processor.tokenizer.decode(output[0])

    plan = tmp_path / "plan.yaml"
    plan.write_text(linear_plan_yaml(multimodal, language, demo.results["alpha"]))
    ours, theirs = tmp_path / "merge", tmp_path / "mergekit"
    code, _, err = local_hub.command("merge", plan, "--output-dir", ours, cache=tmp_path / "cache")
    assert code == 0, err
    done = subprocess.run(
        [sys.executable, "-c", MERGEKIT, plan, theirs, "--trust-remote-code", "--quiet", "--no-write-model-card"],
        env=local_hub.environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    weights = [load_file(folder / "model.safetensors") for folder in (ours, theirs, demo.folder / "merged")]
    for other in weights[1:]:
        assert set(other) == set(weights[0])
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())

    code, _, err = run_command("evaluate", ours, "--data", ten_pairs, "--output-dir", tmp_path / "scores")
    assert code == 0, err
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    line = ["push", ours, "--repo-id", "someone/again", "--results", tmp_path / "scores" / "results.json"]
    code, _, err = local_hub.command(*line, cache=tmp_path / "ours")
    assert code == 0, err
    again = card(local_hub, "someone/again")
    assert again.data.base_model == [multimodal, language]
    published = {result.dataset_name: result.metric_value for result in again.data.eval_results}
    assert published == {task: round(row["value"], 4) for task, row in results["tasks"].items()}


def card(local_hub, repo_id: str) -> ModelCard:
    return ModelCard(local_hub.files(repo_id)["README.md"].decode())


def test_the_section_publish_does_what_it_says(local_hub, run_command, demo, ten_pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo.folder, "runs/demo")
    merge = ["merge", REPOSITORY / "merge_configs" / "linear.yaml", "--output-dir", "runs/merged"]
    for line in (merge, ["evaluate", "runs/merged", "--data", ten_pairs, "--output-dir", "runs/scores"]):
        code, _, err = run_command(*line)
        assert code == 0, err
    section = re.search(r"\n## Publish\n.*", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)[0]
    (commands,) = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    environment = local_hub.environment(tmp_path / "cache")
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", commands.replace("your-name", "someone")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing was sent." in done.stdout
    family = [f"someone/demo-babylm-{name}" for name in ("language", "merged", "multimodal")]
    models = [name for name in sorted(local_hub.repositories) if name.startswith("models/")]
    assert models == [f"models/{name}" for name in [*family, "someone/merged-babylm"]]
    (collection,) = local_hub.collections.values()
    assert [item["id"] for item in collection["items"]] == family
    assert "spaces/someone/minimal_pair_accuracy" in local_hub.repositories
    assert set(local_hub.files("someone/demo-features", kind="datasets")) == {"README.md", "features-00000.arrow"}
