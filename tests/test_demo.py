"""The demo, once from the command line with `--quick`: everything is there, agrees and can be used again.

Run: pytest tests/test_demo.py
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LlamaForCausalLM

from babylm_vlm.cli import main
from babylm_vlm.evaluation import accuracy, load_model, read_pairs, score_pairs
from babylm_vlm.files import sha256
from babylm_vlm.merging import interpolate
from babylm_vlm.model import BabylmVlmForConditionalGeneration

MODELS = ("language", "merged", "multimodal")
TASKS = ("grammar", "grounded", "relations")


def measurements(results: dict) -> list[dict]:
    """Every accuracy of the results: of the curve, of the models, of their paradigms."""
    tasks = [point[task] for point in results["selection"] for task in ("grammar", "grounded")]
    tasks += [measured for model in results["test"]["models"].values() for measured in model.values()]
    return tasks + [paradigm for task in tasks for paradigm in task["paradigms"].values()]


def test_everything_is_there_and_nothing_else(demo):
    expected = {"data", *MODELS, "merge.yaml", "results.json", "alpha_curve.png", "report.md"}
    assert {path.name for path in demo.folder.iterdir()} == expected
    assert [path.name for path in demo.place.iterdir()] == ["demo"]


def test_the_three_checkpoints_load_and_run(demo):
    picture = Image.open(next(demo.folder.glob("data/test/grounded/*.png")))
    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(demo.folder / name).eval()
        if name == "language":
            assert type(model) is LlamaForCausalLM
            inputs = AutoTokenizer.from_pretrained(demo.folder / name)("the cat", return_tensors="pt")
        else:
            assert type(model) is BabylmVlmForConditionalGeneration
            processor = AutoProcessor.from_pretrained(demo.folder / name)
            inputs = processor("the cat", images=picture, return_tensors="pt")
        with torch.no_grad():
            assert model(**inputs).logits.isfinite().all()


def test_the_twins_share_the_ancestor_and_one_tokenizer(demo):
    states = [
        json.loads((demo.folder / name / "training_state.json").read_text()) for name in ("language", "multimodal")
    ]
    ancestor = Path(states[0]["ancestor"]["name"])
    assert states[0]["ancestor"] == states[1]["ancestor"]
    assert states[0]["ancestor"]["sha256"] == sha256(ancestor / "model.safetensors")
    assert demo.results["training"] == dict(zip(("language", "multimodal"), states, strict=True))
    assert (
        len({(folder / "tokenizer.json").read_text() for folder in (ancestor, *(demo.folder / m for m in MODELS))})
        == 1
    )
    before = load_file(ancestor / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].float()
    for name in ("language", "multimodal"):  # three steps away from it, not further
        after = load_file(demo.folder / name / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].float()
        assert 0 < (after - before).abs().max() < 0.1


def test_the_merged_weights_are_the_formula_at_the_chosen_alpha(demo):
    weights = {name: load_file(demo.folder / name / "model.safetensors") for name in MODELS}
    expected = interpolate(weights["multimodal"], weights["language"], demo.results["alpha"])
    assert set(weights["merged"]) == set(expected)
    for name, tensor in expected.items():
        assert tensor.dtype == weights["merged"][name].dtype and torch.equal(tensor, weights["merged"][name])


def test_accuracies_are_fractions_within_their_intervals(demo):
    for measured in measurements(demo.results):
        low, high = measured["interval"]
        assert 0 <= low <= measured["accuracy"] <= high <= 1
        assert 0 <= measured["ties"] <= measured["items"] > 0 == measured["nonfinite"]


@pytest.mark.parametrize("task", ["grounded", "relations"])
def test_a_model_without_eyes_is_at_chance_on_pairs_with_pictures(demo, task):
    measured = demo.results["test"]["models"]["language"][task]
    assert measured["accuracy"] == measured["chance"] == 0.5 and measured["interval"] == [0.5, 0.5]


def test_alpha_is_chosen_by_the_rule_that_is_printed(demo):
    curve = demo.results["selection"]
    assert [point["alpha"] for point in curve] == [0.0, 0.5, 1.0]
    gain = curve[-1]["grounded"]["accuracy"] - 0.5
    keeping = [point for point in curve if gain <= 0 or point["grounded"]["accuracy"] - 0.5 >= 0.95 * gain]
    chosen = next(point for point in curve if point["alpha"] == demo.results["alpha"])
    assert chosen in keeping
    assert chosen["grammar"]["accuracy"] == max(point["grammar"]["accuracy"] for point in keeping)
    assert "95%" in demo.results["rule"] and demo.results["rule"] in (demo.folder / "report.md").read_text()


def test_scoring_a_checkpoint_again_gives_the_same_accuracy(demo):
    model, processor = load_model(demo.folder / "merged")
    for task in TASKS:
        reported = demo.results["test"]["models"]["merged"][task]
        pairs = read_pairs(demo.folder / "data" / "test" / task)
        taken = [  # a quick run scores the first rows of every paradigm
            pair
            for uid, paradigm in reported["paradigms"].items()
            for pair in [pair for pair in pairs if pair.uid == uid][: paradigm["items"]]
        ]
        scores = score_pairs(model, processor, taken, progress=False)
        again = accuracy(scores, taken).to_dict()
        assert again["items"] == reported["items"] and set(again["paradigms"]) == {pair.uid for pair in pairs}
        assert again["accuracy"] == pytest.approx(reported["accuracy"], abs=0.02)  # rounding may turn a near tie


def cell(measured: dict) -> str:
    low, high = measured["interval"]
    return f"{100 * measured['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def test_the_report_says_what_the_results_say(demo):
    report = (demo.folder / "report.md").read_text()
    results, test = demo.results, demo.results["test"]
    named = {
        "language": "language-only",
        "merged": f"merged (α = {results['alpha']:g})",
        "multimodal": "multimodal",
    }
    for name, title in named.items():
        model = test["models"][name]
        cells = [cell(model[task]) for task in TASKS]
        assert f"| {title} | {' | '.join(cells)} |" in report
        assert all(text in demo.printed for text in cells)
    for point in results["selection"]:
        assert f"| {point['alpha']:g} | {cell(point['grammar'])} | {cell(point['grounded'])} |" in report
    for task in TASKS:
        for uid, row in test["models"]["merged"][task]["paradigms"].items():
            values = [f"{100 * test['models'][name][task]['paradigms'][uid]['accuracy']:.1f}" for name in MODELS]
            assert f"| {task}: {uid} | {row['items']} | {' | '.join(values)} |" in report
    assert "A quick run" in report and "alpha_curve.png" in report
    difference = test["differences"]["grammar"]["merged - multimodal"]
    accuracies = [test["models"][name]["grammar"]["accuracy"] for name in ("merged", "multimodal")]
    assert difference["difference"] == pytest.approx(accuracies[0] - accuracies[1])
    assert f"{100 * difference['difference']:+.1f} [" in report


def test_the_curve_is_a_picture(demo):
    with Image.open(demo.folder / "alpha_curve.png") as curve:
        assert curve.format == "PNG" and curve.width >= 600 and curve.height >= 400
        assert len(curve.convert("RGB").getcolors(1 << 20)) > 10


@pytest.mark.parametrize("name", MODELS)
def test_cards_carry_the_results(demo, name):
    card = ModelCard.load(demo.folder / name / "README.md")
    assert card.data.language in ("en", ["en"]) and card.data.library_name == "transformers"
    reported = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    expected = demo.results["test"]["models"][name]
    assert sorted(reported.values()) == pytest.approx(
        sorted(expected[task]["accuracy"] for task in expected), abs=1e-3
    )
    assert str(demo.place) not in card.content  # a path of this machine means nothing elsewhere
    if name == "merged":
        assert f"**alpha = {demo.results['alpha']}**" in card.text


def test_a_second_run_needs_overwrite(demo, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in demo.folder.rglob("*")}
    monkeypatch.chdir(demo.place)
    monkeypatch.setattr(sys, "argv", ["babylm-vlm", "demo", "--quick", "--output-dir", "demo"])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("Error: The output folder demo exists: choose another one, or pass --overwrite")
    assert {path: path.stat().st_mtime_ns for path in demo.folder.rglob("*")} == before


def test_the_page_of_results_is_what_the_results_say(monkeypatch):
    """docs/results.md, and the figures in README.md and docs/training.md, come from docs/results/, word for word."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "scripts")
    import write_results

    written = (write_results.DOCS / "results.md").read_text(encoding="utf-8")
    assert write_results.page() == written
    for path in write_results.FIGURES:
        assert write_results.filled(path) == path.read_text(encoding="utf-8")
