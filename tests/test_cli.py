"""The command line: right inputs leave what they should, wrong ones end with one sentence and exit code 1.

Run: pytest tests/test_cli.py
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor

from babylm_vlm.evaluation.caption import caption_pictures
from babylm_vlm.merging import interpolate, linear_plan_yaml

GRAMMAR = [{"sentence_good": f"the {thing} sat", "sentence_bad": f"sat the {thing}"} for thing in ("cat", "dog")]
GROUNDED = [
    {"sentence_good": f"a {good} ball", "sentence_bad": f"a {bad} ball", "image": f"{good}.png", "pair": "balls"}
    for good, bad in (("red", "blue"), ("blue", "red"))
]
RECIPE = """
model: language
output_dir: run
text: [text.txt]
vocab_size: 300
hidden_size: 16
intermediate_size: 32
num_hidden_layers: 1
num_attention_heads: 2
block_size: 16
max_steps: 2
per_device_train_batch_size: 2
disable_tqdm: true
"""

COMMANDS = ["demo", "train", "merge", "verify", "sweep", "diagnose", "evaluate", "finetune", "compare", "caption"]
COMMANDS += ["features", "push", "push-metrics"]


@pytest.fixture
def place(tmp_path, monkeypatch, language_checkpoint, multimodal_checkpoint):
    """The current folder: checkpoints `language` and `multimodal`, data, a recipe, a merge plan."""
    monkeypatch.chdir(tmp_path)
    Path("language").symlink_to(language_checkpoint)
    Path("multimodal").symlink_to(multimodal_checkpoint)
    for task, rows in (("grammar", GRAMMAR), ("grounded", GROUNDED)):
        Path("data", task).mkdir(parents=True)
        Path("data", task, "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for colour in ("red", "blue"):
        Image.new("RGB", (28, 28), colour).save(f"data/grounded/{colour}.png")
    Path("broken.png").write_bytes(b"no picture")
    Path("broken", "broken").mkdir(parents=True)
    Path("broken", "broken", "pairs.jsonl").write_text('{"sentence_good": "the cat sat"}')
    Path("text.txt").write_text("the cat sat next to the tree\n" * 20)
    Path("recipe.yaml").write_text(RECIPE)
    Path("plan.yaml").write_text(linear_plan_yaml("./multimodal", "./language", 0.3))
    shutil.copytree(language_checkpoint, "oops")
    Path("oops", "config.json").write_text("{oops")
    Path("oops.yaml").write_text(linear_plan_yaml("./multimodal", "./oops", 0.3))
    Path("taken").mkdir()
    Path("taken", "results.json").write_text("{}")
    return tmp_path


@pytest.fixture
def command(place, run_command):
    """Run a command line; returns exit code, stdout and stderr."""
    return lambda line: run_command(*line.split())


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- the installed command -------------------------------------------------------------------------------------------


def test_the_installed_command_lists_the_commands(tmp_path):
    installed = Path(sys.executable).with_name("babylm-vlm")
    done = subprocess.run([installed, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    for name in COMMANDS:
        assert f" {name} " in done.stdout


def test_an_error_in_a_fresh_process_is_one_line(tmp_path):
    command = [sys.executable, "-m", "babylm_vlm.cli", "merge", "nowhere [1].yaml", "--output-dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: There is no merge plan nowhere [1].yaml") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_code_that_mergekit_would_have_to_run_is_not_run_unasked(place):
    plan = {"merge_method": "slerp", "base_model": "./multimodal", "parameters": {"t": 0.5}}
    plan["models"] = [{"model": "./multimodal"}, {"model": "./language"}]
    Path("slerp.yaml").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "babylm_vlm.cli", "merge", "slerp.yaml", "--output-dir", "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "pass --trust-remote-code" in done.stderr.splitlines()[-1]
    assert not Path("out").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(command, name):
    code, out, err = command(f"{name} --help")
    assert code == 0 and err == "" and "Usage" in out


# --- wrong inputs ----------------------------------------------------------------------------------------------------

WRONG = [
    ("train nowhere.yaml", "There is no recipe nowhere.yaml"),
    ("train recipe.yaml learning_rat=1", "Unknown key 'learning_rat' in recipe.yaml or the keys given with it. Did"),
    ("train recipe.yaml learning_rate", "'learning_rate' is not of the form key=value"),
    ("train recipe.yaml text=nowhere.txt", "There is no text file nowhere.txt"),
    ("train recipe.yaml --output-dir language", "language exists"),
    ("train recipe.yaml init_from=runs/nowhere/model", "runs/nowhere/model"),
    ("train recipe.yaml init_from=runs/nowhere", "runs/nowhere"),
    ("train plan.yaml", "Unknown key 'merge_method' in plan.yaml"),
    ("features nowhere --vision-tower multimodal --output-dir out", "There are no captions nowhere"),
    ("merge nowhere.yaml --output-dir out", "There is no merge plan nowhere.yaml"),
    ("merge lost.yaml --output-dir out", "names the checkpoint folder ./nowhere, which is not there"),
    ("merge oops.yaml --output-dir out", "oops/config.json is not a JSON file"),
    ("merge recipe.yaml --output-dir out", "recipe.yaml: the plan has the unknown key"),
    ("merge plan.yaml --output-dir data", "data exists"),
    ("merge plan.yaml", "Say where the merge is to be written with --output-dir"),
    ("merge plan.yaml --output-dir out --max-shard-size 5", "Unit '5' not supported"),
    ("verify nowhere plan.yaml", "There is no merged checkpoint nowhere"),
    ("verify data plan.yaml", "data has no weights"),
    ("evaluate nowhere/at/all --data data --output-dir out", "There is no checkpoint nowhere/at/all"),
    ("evaluate data --data data --output-dir out", "data holds no config.json"),
    ("evaluate language --data nowhere --output-dir out", "the data folder nowhere does not exist"),
    (
        "evaluate language --data data --tasks verbs --output-dir out",
        "holds no task verbs; tasks there: grammar, grou",
    ),
    ("evaluate language --data data --output-dir taken", "taken/results.json exists"),
    ("evaluate language --data broken --output-dir out", "pairs.jsonl:1: the field sentence_bad is missing"),
    ("compare nowhere taken", "There are no results nowhere"),
    ("compare taken taken", "taken/results.json holds no results of `babylm-vlm evaluate`"),
    ("caption multimodal broken.png", "The picture broken.png cannot be read"),
    ("caption multimodal nowhere.png", "There is no picture nowhere.png"),
    ("caption language data/grounded/red.png", "This model is language-only"),
    ("caption nowhere/at/all data/grounded/red.png", "There is no checkpoint nowhere/at/all"),
    ("demo --quick --output-dir data", "data exists"),
    ("demo --quick --overwrite --output-dir data", "it is no earlier output and is not overwritten"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_input_ends_with_one_sentence_and_leaves_nothing(command, place, line, message):
    Path("lost.yaml").write_text(Path("plan.yaml").read_text().replace("./language", "./nowhere"))
    before = names(place)
    code, out, err = command(line)
    errors = [row for row in err.splitlines() if row and "Loading weights" not in row]  # a bar is no error
    assert code == 1 and out == ""
    assert len(errors) == 1 and errors[0].startswith("Error: ") and message in errors[0]
    assert names(place) == before


# --- right inputs ----------------------------------------------------------------------------------------------------


def test_train_leaves_a_checkpoint_where_it_is_told(command):
    code, out, _ = command("train recipe.yaml seed=7 --output-dir runs/small")
    assert code == 0 and "runs/small: " in out
    assert json.loads(Path("runs/small/training_state.json").read_text())["seed"] == 7
    AutoModelForCausalLM.from_pretrained("runs/small")
    code, _, err = command("train recipe.yaml --output-dir runs/small")
    assert code == 1 and "pass --overwrite" in err
    assert command("train recipe.yaml seed=8 --output-dir runs/small --overwrite")[0] == 0
    assert json.loads(Path("runs/small/training_state.json").read_text())["seed"] == 8


def test_train_prints_json(command):
    code, out, _ = command("train recipe.yaml --json")
    assert code == 0 and json.loads(out) == json.loads(Path("run/training_state.json").read_text())


def test_merge_writes_the_weights_and_a_card_with_alpha(command):
    code, out, _ = command("merge plan.yaml --output-dir runs/merged")
    assert code == 0 and out.startswith("runs/merged: merged from ./multimodal and ./language")
    parents = [load_file(f"{name}/model.safetensors") for name in ("multimodal", "language")]
    merged, expected = load_file("runs/merged/model.safetensors"), interpolate(*parents, 0.3)
    assert set(merged) == set(expected) and all((merged[name] == expected[name]).all() for name in merged)
    card = ModelCard.load("runs/merged/README.md")
    assert "**alpha = 0.3**" in card.text and "model-merging" in card.data.tags
    pictures = AutoProcessor.from_pretrained("runs/merged")(
        "a ball", images=Image.open("data/grounded/red.png"), return_tensors="pt"
    )
    assert AutoModelForCausalLM.from_pretrained("runs/merged")(**pictures).logits.isfinite().all()


def test_dry_run_prints_the_plan_and_writes_nothing(command, place):
    before = names(place)
    code, out, _ = command("merge plan.yaml --dry-run --json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and set(rows) == set(load_file("multimodal/model.safetensors"))
    assert rows["model.norm.weight"] == {
        "name": "model.norm.weight",
        "operation": "interpolate",
        "sources": ["./multimodal", "./language"],
        "weights": [0.3, 0.7],
        "dtype": "float32",
        "shape": [32],
    }
    copied = rows["model.multi_modal_projector.linear_1.weight"]
    assert (copied["operation"], copied["sources"]) == ("copy", ["./multimodal"])
    code, out, _ = command("merge plan.yaml --dry-run")
    assert code == 0 and "0.3 B + 0.7 A" in out and "copy of B" in out and "B = ./multimodal" in out
    assert f"{len(rows)} tensors: 4 copied, {len(rows) - 4} merged." in out
    assert names(place) == before


def test_verify_says_whether_a_merge_is_what_its_plan_makes(command):
    command("merge plan.yaml --output-dir runs/merged --max-shard-size 20KB")
    assert Path("runs/merged/model.safetensors.index.json").is_file()
    code, out, _ = command("verify runs/merged plan.yaml")
    assert code == 0 and "tensors are bit for bit as plan.yaml makes them" in out
    Path("other.yaml").write_text(linear_plan_yaml("./multimodal", "./language", 0.4))
    code, out, _ = command("verify runs/merged other.yaml")
    assert code == 1 and "model.embed_tokens.weight: " in out and "elements differ" in out
    code, out, _ = command("verify runs/merged other.yaml --json")
    assert code == 1 and json.loads(out)["different"]


def test_evaluate_writes_and_prints_the_same_results(command):
    code, out, _ = command("evaluate multimodal --data data --output-dir runs/scores --json")
    assert code == 0
    results = json.loads(out)
    assert results == json.loads(Path("runs/scores/results.json").read_text())
    assert {task: row["items"] for task, row in results["tasks"].items()} == {"grammar": 2, "grounded": 2}
    assert [results["tasks"][task]["pictures_used"] for task in ("grammar", "grounded")] == [False, True]

    code, out, _ = command("evaluate language --data data --tasks grounded --output-dir runs/blind")
    assert code == 0 and "grounded" in out and "50.0" in out  # mirrored pairs without pictures
    assert set(json.loads(Path("runs/blind/results.json").read_text())["tasks"]) == {"grounded"}


def test_evaluate_names_a_failed_task_and_keeps_the_others(command):
    Path("data/broken").symlink_to(Path("broken/broken").resolve())
    code, out, err = command("evaluate language --data data --output-dir runs/scores")
    assert code == 1 and "grammar" in out
    assert "Error: broken failed: data/broken/pairs.jsonl:1: the field sentence_bad is missing" in err
    assert set(json.loads(Path("runs/scores/results.json").read_text())["tasks"]) == {"grammar", "grounded"}


def test_compare_prints_the_differences(command):
    for name in ("language", "multimodal"):
        assert command(f"evaluate {name} --data data --output-dir runs/{name}")[0] == 0
    code, out, _ = command("compare runs/multimodal runs/language --json")
    assert code == 0 and set(json.loads(out)["tasks"]) == {"grammar", "grounded"}
    code, out, _ = command("compare runs/multimodal runs/language")
    assert code == 0 and "difference" in out and "grounded" in out


def test_caption_prints_a_line_for_every_picture(command):
    pictures = ["data/grounded/red.png", "data/grounded/blue.png"]
    model, processor = AutoModelForCausalLM.from_pretrained("multimodal"), AutoProcessor.from_pretrained("multimodal")
    options = "--prompt the --max-new-tokens 5"
    expected = caption_pictures(model.eval(), processor, pictures, "the", 5)
    code, out, _ = command(f"caption multimodal {' '.join(pictures)} {options} --json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {"image": picture, "caption": caption} for picture, caption in zip(pictures, expected, strict=True)
    ]
    assert all(caption.startswith("the") for caption in expected)
    code, out, _ = command(f"caption multimodal {' '.join(pictures)} {options}")
    assert [out.index(f"{picture}: ") for picture in pictures] == sorted(out.index(picture) for picture in pictures)
