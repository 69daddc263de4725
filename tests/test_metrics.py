"""The metrics as `evaluate` sees them: loaded by path, against independent computations, alone, and in the wheel.

Run: pytest tests/test_metrics.py
"""

import doctest
import itertools
import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import evaluate
import numpy as np
import pytest
from huggingface_hub import SpaceCard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import babylm_vlm.metrics
from babylm_vlm.metrics.minimal_pair_accuracy.minimal_pair_accuracy import item_credit
from babylm_vlm.metrics.winoground_score.winoground_score import example_credit

METRICS = Path(babylm_vlm.metrics.__file__).parent
NAMES = ["minimal_pair_accuracy", "reading_delta_r2", "surprisal_correlation", "winoground_score"]
FILES = ["README.md", "app.py", "requirements.txt"]
PAIRS = [[-20.0, -22.0], [-15.0, -15.0], [-12.0, -11.0], [-9.0, -10.0]]
INFINITE = float("inf")
NAN = float("nan")


@pytest.fixture(scope="module")
def load():
    """A metric by its name, loaded once."""
    loaded = {name: evaluate.load(str(METRICS / name)) for name in NAMES}
    return loaded.__getitem__


def test_folders_are_spaces():
    assert sorted(path.name for path in METRICS.iterdir() if (path / "README.md").exists()) == NAMES
    for name in NAMES:
        card = SpaceCard.load(METRICS / name / "README.md").data
        assert (card.sdk, card.app_file, card.license) == ("gradio", "app.py", "apache-2.0")
        assert {"evaluate", "metric"} <= set(card.tags)
        assert all((METRICS / name / file).is_file() for file in (*FILES, f"{name}.py"))


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_cards_and_docstrings(name, load, monkeypatch):
    monkeypatch.chdir(METRICS)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for text in (Path(name, "README.md").read_text(encoding="utf-8"), load(name).inputs_description):
        example = doctest.DocTestParser().get_doctest(text, {"metric": load(name)}, name, None, None)
        result = doctest.DocTestRunner(optionflags=flags).run(example)
        assert result.attempted and not result.failed


# --- minimal pairs ---------------------------------------------------------------------------------------------------


def test_accuracy_ties_failures_and_paradigms(load):
    metric = load("minimal_pair_accuracy")
    assert metric.compute(predictions=PAIRS) == {"accuracy": 2.5 / 4, "chance": 0.5, "ties": 1, "nonfinite": 0}
    assert metric.compute(predictions=PAIRS, official=True)["accuracy"] == 3 / 4
    found = metric.compute(predictions=PAIRS, paradigms=["a", "b", "b", "b"])
    assert found["accuracy"] == pytest.approx((1 + (0.5 + 0 + 1) / 3) / 2)
    rows = [[NAN, NAN], [-1.0, NAN], [INFINITE, 0.0], [0.0, 0.0, 0.0], [-1.0, -1.0, 0.0]]
    found = metric.compute(predictions=rows)
    assert found == pytest.approx({"accuracy": (1 / 3) / 5, "chance": (3 / 2 + 2 / 3) / 5, "ties": 1, "nonfinite": 3})
    assert metric.compute(predictions=rows, official=True)["accuracy"] == 3 / 5


def test_batches_add_up(load):
    metric = load("minimal_pair_accuracy")
    for row in PAIRS:
        metric.add(prediction=row)
    assert metric.compute() == metric.compute(predictions=np.array(PAIRS))


# --- Winoground ------------------------------------------------------------------------------------------------------

SCORES = ("text_score", "image_score", "group_score", "unpaired_score")
EXAMPLES = arrays(np.float64, st.tuples(st.integers(1, 6), st.just(2), st.just(2)), elements=st.integers(-3, 0))


def by_breaking_ties(example):
    """The four scores, averaged over all orders in which equal scores can come out."""
    flat = np.asarray(example).ravel()  # s_00, s_01, s_10, s_11
    found = []
    for order in itertools.permutations(range(4)):
        rank = np.argsort(np.lexsort((order, flat)))
        text = [rank[0] > rank[1], rank[3] > rank[2]]
        image = [rank[0] > rank[2], rank[3] > rank[1]]
        found.append([all(text), all(image), all(text + image), np.mean(text)])
    return np.mean(found, axis=0)


@given(EXAMPLES)
def test_winoground_gives_ties_what_breaking_them_would(examples):
    credit, ties, _ = example_credit(examples)
    expected = np.array([by_breaking_ties(example) for example in examples])
    for name, column in zip(SCORES, expected.T, strict=True):
        np.testing.assert_allclose(credit[name], column)
    assert ties.tolist() == [bool({s[0, 0], s[1, 1]} & {s[0, 1], s[1, 0]}) for s in examples]


@given(EXAMPLES)
def test_winoground_by_the_official_rules(examples):
    credit, _, _ = example_credit(examples, official=True)
    for i, s in enumerate(examples):
        text = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
        image = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
        unpaired = np.mean([s[0, 0] >= s[0, 1], s[1, 1] >= s[1, 0]])
        assert [credit[name][i] for name in SCORES] == [text, image, text and image, unpaired]


@given(EXAMPLES, st.booleans())
def test_unpaired_is_the_accuracy_of_pictures_alone(examples, official):
    alone = [row if picture == 0 else row[::-1] for example in examples for picture, row in enumerate(example)]
    credit, *_ = item_credit(alone, official)
    unpaired = example_credit(examples, official)[0]["unpaired_score"]
    np.testing.assert_array_equal(unpaired, credit.reshape(-1, 2).mean(axis=1))


def test_winoground_scores_are_means_over_examples(load):
    examples = np.random.default_rng(0).integers(-3, 0, (20, 2, 2)).astype(float)
    for official in (False, True):
        found = load("winoground_score").compute(predictions=examples, official=official)
        credit, ties, _ = example_credit(examples, official)
        means = {name: credit[name].mean() for name in SCORES}
        assert found == pytest.approx({**means, "ties": ties.sum(), "nonfinite": 0})


def test_winoground_failures(load):
    examples = [[[0.0, -1.0], [-1.0, NAN]], [[0.0, -1.0], [-INFINITE, 0.0]]]
    failed = load("winoground_score").compute(predictions=examples)
    assert failed == {**dict.fromkeys(SCORES, 0), "ties": 0, "nonfinite": 2}
    official = load("winoground_score").compute(predictions=examples, official=True)
    assert official == {**dict.fromkeys(SCORES, 0.5), "unpaired_score": 1, "ties": 0, "nonfinite": 2}


# --- correlation and regression --------------------------------------------------------------------------------------


def ranks(values):
    """1-based, the mean rank where values are equal."""
    return [(sum(v < value for v in values) + sum(v <= value for v in values) + 1) / 2 for value in values]


def test_spearman_by_hand(load):
    generator = np.random.default_rng(0)
    scores, ratios = generator.integers(-4, 0, (40, 2)).astype(float), generator.random(40).round(1)
    preference = ranks((scores[:, 0] - scores[:, 1]).tolist())  # in the order of the softmax
    expected = np.cov(preference, ranks(ratios.tolist()))
    found = load("surprisal_correlation").compute(predictions=scores, references=ratios)
    assert found["spearman"] == pytest.approx(expected[0, 1] / np.sqrt(expected[0, 0] * expected[1, 1]))
    assert found["ties"] == sum(first == second for first, second in scores)
    nothing = load("surprisal_correlation").compute(predictions=np.full((3, 2), np.nan), references=[0.1, 0.2, 0.3])
    assert nothing == {"spearman": 0, "ties": 0, "nonfinite": 3}


def test_delta_r2_by_least_squares(load):
    """By projection with QR, on data with gaps."""
    generator = np.random.default_rng(1)
    baseline, surprisal = generator.normal(size=(50, 3)), generator.normal(size=50)
    times = baseline[:, 0] * baseline[:, 1] + 0.5 * surprisal + generator.normal(size=50)
    gaps = times.copy()
    gaps[[3, 30]] = np.nan

    def r2(columns):
        q, _ = np.linalg.qr(np.stack([np.ones(48), *columns], axis=1))
        measured = np.delete(times, [3, 30])
        rest = measured - q @ (q.T @ measured)
        return 1 - rest @ rest / ((measured - measured.mean()) ** 2).sum()

    a, b, c = np.delete(baseline, [3, 30], axis=0).T
    base = [a, b, c, a * b, a * c, b * c]
    without, joined = r2(base), r2([*base, np.delete(surprisal, [3, 30])])
    found = load("reading_delta_r2").compute(predictions=surprisal, references=gaps, baseline=baseline)
    assert found == pytest.approx({"delta_r2": 100 * (joined - without) / (1 - without), "words": 48})
    alone = load("reading_delta_r2").compute(predictions=surprisal, references=times, baseline=[[]] * 50)
    assert alone["delta_r2"] == pytest.approx(100 * np.corrcoef(surprisal, times)[0, 1] ** 2)


# --- combined, wrong, alone ------------------------------------------------------------------------------------------


def test_combine(load):
    ratios = [0.9, 0.5, 0.1, 0.8]
    chosen = [load("minimal_pair_accuracy"), load("surprisal_correlation")]
    found = evaluate.combine(chosen).compute(predictions=PAIRS, references=ratios)
    assert found["accuracy"] == 2.5 / 4
    assert found["spearman"] == pytest.approx(chosen[1].compute(predictions=PAIRS, references=ratios)["spearman"])
    assert found["minimal_pair_accuracy_ties"] == found["surprisal_correlation_ties"] == 1


WRONG = [
    ("minimal_pair_accuracy", {"predictions": []}, "there are no items"),
    ("minimal_pair_accuracy", {"predictions": [[1, 2], [1]]}, "item 1 must hold the scores of two or more texts"),
    ("minimal_pair_accuracy", {"predictions": [[1, 2]], "paradigms": ["a", "b"]}, "need 1 paradigms, not 2"),
    ("winoground_score", {"predictions": []}, "there are no examples"),
    ("winoground_score", {"predictions": [[[1, 2], [3]]]}, "example 0 must hold two scores for each of two pictures"),
    ("surprisal_correlation", {"predictions": [], "references": []}, "there are no items"),
    ("surprisal_correlation", {"predictions": [[1, 2, 3]], "references": [1]}, "item 0 must hold the scores of two"),
    ("surprisal_correlation", {"predictions": [[1, 2]], "references": [NAN]}, "reference of item 0 must be a finite"),
    (
        "reading_delta_r2",
        {"predictions": [1, 2], "references": [1, 2], "baseline": [[1], [1, 2]]},
        "same number of baseline predictors; word 1 has",
    ),
    (
        "reading_delta_r2",
        {"predictions": [1, 2, NAN], "references": [1, 2, 3], "baseline": [[1], [2], [3]]},
        "2 words have all their numbers; a regression with 3 parameters needs more",
    ),
    (
        "reading_delta_r2",
        {"predictions": [1, 2, 4], "references": [1, 1, 1], "baseline": [[], [], []]},
        "the reading times .* are all the same",
    ),
]


@pytest.mark.parametrize(("name", "inputs", "message"), WRONG)
def test_wrong_inputs_are_named(name, inputs, message, load):
    with pytest.raises(ValueError, match=message) as raised:
        load(name).compute(**inputs)
    assert "\n" not in str(raised.value)


ALONE = """
import importlib.util, json, os, socket, sys

def refuse(*arguments):
    raise OSError("no network here")

socket.socket.connect = socket.getaddrinfo = refuse
sys.modules["babylm_vlm"] = sys.modules["gradio"] = None
import evaluate

for name in sys.argv[1:]:
    metric = evaluate.load("./" + name)
    spec = importlib.util.spec_from_file_location("app", os.path.join(name, "app.py"))
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    print(json.dumps([metric.name, app.compute(*app.EXAMPLE)]))
"""


def test_alone_in_a_fresh_process_without_network(tmp_path):
    """Neither this package nor gradio can be imported there; each page computes its own example."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", ALONE, *NAMES]
    done = subprocess.run(command, cwd=METRICS, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    assert list(found) == NAMES
    assert found["winoground_score"]["image_score"] == 0.625 and found["reading_delta_r2"]["words"] == 8


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling, which builds the wheel, is not installed")
def test_the_wheel_contains_them(tmp_path):
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=root, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = set(wheel.namelist())
    wanted = {f"babylm_vlm/metrics/{name}/{file}" for name in NAMES for file in (*FILES, f"{name}.py")}
    assert wanted <= packed
