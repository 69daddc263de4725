"""A sweep scores what a merge writes, chooses by its rule, and leaves a whole folder or none.

Run: pytest tests/test_sweep.py
"""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from babylm_vlm.evaluation import accuracy, load_model, read_pairs, score_pairs
from babylm_vlm.files import sha256
from babylm_vlm.merging import interpolate, linear_plan_yaml, merge, read_plan
from babylm_vlm.merging.sweep import choose_alpha, parse_alphas

ROWS = {
    "order": [
        (f"the {a} sees the {b}", f"{a} the the sees {b}", None) for a in ("cat", "dog") for b in ("ball", "girl")
    ],
    "number": [(f"the {a}s were running", f"the {a}s was running", None) for a in ("girl", "boy", "cat")],
    "colour": [
        (f"a {good} {thing}", f"a {bad} {thing}", f"{good}.png")
        for thing in ("ball", "table", "cat")
        for good, bad in (("red", "blue"), ("blue", "red"))
    ],
}


def write_task(folder: Path, *paradigms: str) -> None:
    folder.mkdir(parents=True)
    for name in paradigms:
        rows = [dict(zip(("sentence_good", "sentence_bad", "image"), row, strict=True)) for row in ROWS[name]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for colour in ("red", "blue"):
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")


@pytest.fixture
def place(tmp_path, monkeypatch, language_checkpoint, multimodal_checkpoint):
    """The current folder: checkpoints, selection and test data, a plan."""
    monkeypatch.chdir(tmp_path)
    Path("language").symlink_to(language_checkpoint)
    Path("multimodal").symlink_to(multimodal_checkpoint)
    write_task(Path("data/grammar"), "order", "number")
    write_task(Path("data/grounded"), "colour")
    write_task(Path("data/mixed"), "order", "colour")
    write_task(Path("test/grammar"), "order")
    write_task(Path("test/grounded"), "colour")
    Path("plan.yaml").write_text(linear_plan_yaml("./multimodal", "./language", 0.3))
    return tmp_path


@pytest.fixture
def command(place, run_command):
    """Run `babylm-vlm sweep …`; returns exit code, stdout and stderr."""
    return lambda line: run_command("sweep", *line.split())


RIGHT = "plan.yaml --data data --tasks grammar,grounded --output-dir out"


def measure(folder: str, task: str) -> dict:
    model, processor = load_model(folder)
    pairs = read_pairs(Path(task))
    return accuracy(score_pairs(model, processor, pairs, progress=False), pairs).to_dict()


def test_a_sweep_scores_the_merged_files_and_leaves_a_folder(command):
    code, out, _ = command(f"{RIGHT} --alphas 0.3,0.7 --test-data test --save --json")
    assert code == 0
    result = json.loads(out)
    assert result == json.loads(Path("out/sweep.json").read_text())
    assert {path.name for path in Path("out").iterdir()} == {
        *("sweep.json", "curve.png", "pareto.png", "merge.yaml", "merged")
    }
    assert [point["alpha"] for point in result["curve"]] == [0.0, 0.3, 0.7, 1.0]
    assert result["abilities"] == {"grammar": ["grammar"], "grounded": ["grounded"]}

    merge(read_plan("plan.yaml"), Path("at-0.3"))
    for task in ("grammar", "grounded"):
        expected = {folder: measure(folder, f"data/{task}") for folder in ("at-0.3", "multimodal")}
        assert result["curve"][1]["tasks"][task] == expected["at-0.3"]
        assert result["curve"][3]["tasks"][task] == expected["multimodal"]
        assert result["curve"][1][task]["accuracy"] == expected["at-0.3"]["accuracy"]
    assert result["curve"][0]["tasks"]["grammar"] == measure("language", "data/grammar")
    assert set(result["curve"][2]["tasks"]["grammar"]["paradigms"]) == {"order", "number"}

    parents = [load_file(f"{name}/model.safetensors") for name in ("multimodal", "language")]
    merged, expected = load_file("out/merged/model.safetensors"), interpolate(*parents, result["alpha"])
    assert all((merged[name] == expected[name]).all() for name in expected)
    first = yaml.safe_load(Path("out/merge.yaml").read_text())["models"][0]
    assert first["parameters"]["weight"][-1]["value"] == result["alpha"] and first["model"] == "./multimodal"
    assert Path("out/merged/README.md").is_file()

    assert result["models"]["language"]["weights_sha256"] == {
        "model.safetensors": sha256(Path("language/model.safetensors"))
    }
    assert result["data_sha256"]["grammar"]["order.jsonl"] == sha256(Path("data/grammar/order.jsonl"))
    assert result["test_data_sha256"]["grounded"] == {"colour.jsonl": sha256(Path("test/grounded/colour.jsonl"))}


def test_the_test_split_is_scored_at_the_parents_and_the_choice_alone(command):
    code, out, _ = command(f"{RIGHT} --alphas 0:1:0.25 --test-data test --objective mean --json")
    result = json.loads(out)
    alphas = [point["alpha"] for point in result["test"]["points"]]
    assert code == 0 and alphas == sorted({0.0, 1.0, result["alpha"]})
    points = {point["alpha"]: point for point in result["test"]["points"]}
    for ability, differences in result["test"]["differences"].items():
        for name, alpha in (("chosen - language", 0.0), ("chosen - multimodal", 1.0)):
            expected = points[result["alpha"]][ability]["accuracy"] - points[alpha][ability]["accuracy"]
            assert differences[name]["difference"] == pytest.approx(expected)


def test_an_ability_is_the_macro_average_over_the_paradigms_of_its_tasks(command):
    write_task(Path("data/more"), "order")
    code, out, _ = command("plan.yaml --data data --tasks grammar,more,grounded --output-dir out --alphas 0.5 --json")
    point = json.loads(out)["curve"][1]
    paradigms = [
        paradigm["accuracy"] for task in ("grammar", "more") for paradigm in point["tasks"][task]["paradigms"].values()
    ]
    assert code == 0 and point["grammar"]["accuracy"] == pytest.approx(sum(paradigms) / 3)
    assert point["grammar"]["items"] == 11 and point["grounded"]["items"] == 6


def test_plots_are_pictures_and_people_read_a_table(command):
    code, out, _ = command(f"{RIGHT} --alphas 0.5")
    assert code == 0 and "chosen: α =" in out and "0.5" in out and not Path("out/merged").exists()
    for name in ("curve", "pareto"):
        with Image.open(f"out/{name}.png") as plot:
            assert plot.width >= 600 and len(plot.convert("RGB").getcolors(1 << 20)) > 10
    code, _, err = command(f"{RIGHT} --alphas 0.5")
    assert code == 1 and "pass --overwrite" in err
    assert command(f"{RIGHT} --alphas 0.25 --overwrite")[0] == 0
    assert json.loads(Path("out/sweep.json").read_text())["curve"][1]["alpha"] == 0.25


WRONG = [
    (RIGHT + " --alphas 0:2:0.5", "alpha is 1.5, but it must lie between 0"),
    (RIGHT + " --alphas=-0.5,1", "alpha is -0.5, but it must lie between 0"),
    (RIGHT + " --alphas 1:0:0.1", "is an empty grid"),
    (RIGHT + " --alphas 0:1:0", "is an empty grid"),
    (RIGHT + " --alphas half", "neither start:stop:step nor numbers"),
    (RIGHT + " --alphas nan", "alpha is nan"),
    (RIGHT + " --objective best", "The objective 'best' is unknown; take grammar, grounded, mean or keep:F"),
    (RIGHT + " --objective keep:2", "The objective 'keep:2' is unknown"),
    (RIGHT.replace("grammar,grounded", "grammar"), "None of the tasks grammar in data is with pictures"),
    (RIGHT.replace("grammar,grounded", "grounded"), "None of the tasks grounded in data is of text alone"),
    (RIGHT.replace("grammar,grounded", "mixed"), "Some pairs of the task mixed have pictures and some have none"),
    (RIGHT.replace("grammar,grounded", "verbs"), "holds no task verbs"),
    (RIGHT + " --test-data nowhere", "nowhere does not exist"),
    (RIGHT.replace("--output-dir out", "--output-dir data"), "data exists"),
    (RIGHT.replace("--output-dir out", "--overwrite --output-dir data"), "is no earlier output"),
    (RIGHT.replace("plan.yaml", "nowhere.yaml"), "There is no merge plan nowhere.yaml"),
    (RIGHT.replace("plan.yaml", "three.yaml"), "exactly two models"),
    (RIGHT.replace("plan.yaml", "same.yaml"), "are both language-only; a sweep needs one of each kind"),
    (RIGHT.replace("plan.yaml", "layers.yaml"), "decoder tensors of ./multimodal different weights"),
    (RIGHT.replace("plan.yaml", "gradient.yaml"), "decoder tensors of ./multimodal different weights"),
    (RIGHT.replace("--output-dir out", "--output-dir multimodal/sweep"), "overlaps with the input"),
    (RIGHT.replace("plan.yaml", "dtype.yaml"), "The plan changes the dtype"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_input_is_one_sentence_and_leaves_nothing(command, place, line, message):
    good = Path("plan.yaml").read_text()
    Path("again").symlink_to(Path("language").resolve())
    third = "  - model: ./again\n    parameters: {weight: 0.1}\nparameters:"
    Path("three.yaml").write_text(good.replace("parameters: {normalize", f"{third} {{normalize"))
    Path("same.yaml").write_text(good.replace("./multimodal", "./again"))
    Path("layers.yaml").write_text(good.replace("{value: 0.3}", "{filter: norm, value: 0.1}\n        - {value: 0.3}"))
    Path("gradient.yaml").write_text(good.replace("{value: 0.3}", "{value: [0.3, 0.7]}"))
    Path("dtype.yaml").write_text(good + "out_dtype: bfloat16\n")
    before = {str(path) for path in place.rglob("*")}
    code, out, err = command(line)
    errors = [row for row in err.splitlines() if row and "Loading weights" not in row]  # a bar is no error
    assert code == 1 and out == ""
    assert len(errors) == 1 and errors[0].startswith("Error: ") and message in errors[0]
    assert {str(path) for path in place.rglob("*")} == before


# --- grid and choice, without a model --------------------------------------------------------------------------------


def test_grids():
    assert parse_alphas("0:1:0.1") == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert parse_alphas("0.2:0.5:0.2") == [0.2, 0.4]
    assert parse_alphas("0.7,0.3,0.7") == [0.3, 0.7] and parse_alphas("0.5:0.5:1") == [0.5]


accuracies = st.integers(0, 20).map(lambda twentieth: twentieth / 20)
curves = st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=11).map(
    lambda rows: [
        {"alpha": i / (len(rows) - 1), "grammar": {"accuracy": text}, "grounded": {"accuracy": seen, "chance": 0.5}}
        for i, (text, seen) in enumerate(rows)
    ]
)


@given(curve=curves, kept=st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0]))
def test_keep_takes_the_best_grammar_of_those_that_keep_enough(curve, kept):
    chosen = next(point for point in curve if point["alpha"] == choose_alpha(curve, f"keep:{kept}"))
    gain = curve[-1]["grounded"]["accuracy"] - 0.5
    keeping = [point for point in curve if gain <= 0 or point["grounded"]["accuracy"] - 0.5 >= kept * gain]
    assert chosen in keeping
    assert chosen["grammar"]["accuracy"] == max(point["grammar"]["accuracy"] for point in keeping)
    assert not [point for point in keeping[: keeping.index(chosen)] if point["grammar"] == chosen["grammar"]]


@given(curve=curves)
def test_other_objectives_take_the_best_score(curve):
    scores = {point["alpha"]: (point["grammar"]["accuracy"], point["grounded"]["accuracy"]) for point in curve}
    assert scores[choose_alpha(curve, "grammar")][0] == max(grammar for grammar, _ in scores.values())
    assert scores[choose_alpha(curve, "grounded")][1] == max(grounded for _, grounded in scores.values())
    assert sum(scores[choose_alpha(curve, "mean")]) == max(sum(pair) for pair in scores.values())
