"""Evaluation: exact scores, honest statistics, clear errors.

Run: pytest tests/test_evaluation.py
"""

import copy
import gzip
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from rich.console import Console

from babylm_vlm.evaluation import (
    MinimalPair,
    accuracy,
    difference_interval,
    evaluate_model,
    find_tasks,
    load_model,
    picture_features,
    print_results,
    read_pairs,
    score_pairs,
    sequence_scores,
    token_scores,
    write_results,
)

SENTENCES = [
    "the cat sat",
    "who did the girl see under the very blue table that the boys were running to",
    "a",
    "the dog sees a red ball",
    "Zażółć gęślą jaźń",
    "the cat sat",
]


def naive_score(model, ids, scored_from, **pictures):
    """One sentence, no batch, no padding: Σ log p of the tokens from position `scored_from` on."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), **pictures).logits[0].double()
    log_probabilities = logits.log_softmax(-1)
    return sum(log_probabilities[t - 1, ids[t]].item() for t in range(scored_from, len(ids)))


def text_pair(number=0, uid="agreement", pair=None):
    return MinimalPair("the girls were", "the girls was", uid, None, pair or f"alone-{number}")


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return path


def row(good="the girls were", bad="the girls was", **fields):
    return {"sentence_good": good, "sentence_bad": bad, **fields}


@pytest.fixture
def grounded_file(tmp_path):
    """Eight mirrored pairs under sixteen pictures of one colour each."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(8):
        captions = [f"a red ball {number}", f"the blue cat {number}"]
        for picture in range(2):
            name = f"pictures/{number}_{picture}.png"
            (tmp_path / "grounded" / "pictures").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), tuple(generator.integers(256, size=3).tolist())).save(
                tmp_path / "grounded" / name
            )
            good, bad = captions if picture == 0 else captions[::-1]
            rows.append(row(good, bad, image=name, pair=number, UID="colour"))
    return write_lines(tmp_path / "grounded" / "pairs.jsonl", rows)


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_scores_equal_single_sentence_scoring(tiny_language, tiny_tokenizer, batch_tokens):
    expected = [naive_score(tiny_language, tiny_tokenizer(s)["input_ids"], scored_from=1) for s in SENTENCES]
    scores = sequence_scores(tiny_language, tiny_tokenizer, SENTENCES, batch_tokens=batch_tokens)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)
    assert scores[0] == scores[5]  # the same request, the same score


def test_scores_with_pictures_equal_the_processors_own_prompt(tiny_multimodal, grounded_file):
    model, processor = tiny_multimodal
    pictures = [Image.open(path) for path in sorted(grounded_file.parent.glob("pictures/*.png"))[: len(SENTENCES)]]
    pixel_values = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    features = model.pooled_features(pixel_values)
    expected, blind = [], []
    for sentence, picture in zip(SENTENCES, pictures, strict=True):
        inputs = processor(text="<image> " + sentence, images=picture, return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        expected.append(naive_score(model, ids, scored_from=1 + 4, pixel_values=inputs["pixel_values"]))
        blind.append(naive_score(model, processor(text=sentence)["input_ids"], scored_from=1))
    for batch_tokens in (1, 60, 4096):
        scores = sequence_scores(model, processor, SENTENCES, features, batch_tokens=batch_tokens)
        np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(sequence_scores(model, processor, SENTENCES), blind, atol=1e-4, rtol=0)
    assert np.abs(np.array(expected) - blind).min() > 1e-3  # the pictures do matter
    assert scores[0] != scores[5]  # the same sentence, another picture


def test_equal_requests_are_computed_once(tiny_language, tiny_tokenizer):
    rows = []
    tiny_language.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    sequence_scores(tiny_language, tiny_tokenizer, SENTENCES * 3)
    assert sum(rows) == len(set(SENTENCES))


def test_token_scores_sum_to_sequence_scores(tiny_language, tiny_tokenizer):
    per_token = token_scores(tiny_language, tiny_tokenizer, SENTENCES)
    assert [len(scores) for scores in per_token] == [len(tiny_tokenizer(s)["input_ids"]) - 1 for s in SENTENCES]
    sums = [scores.sum(dtype=np.float64) for scores in per_token]
    np.testing.assert_array_equal(sums, sequence_scores(tiny_language, tiny_tokenizer, SENTENCES))


def test_low_precision_weights_are_normalised_in_fp32(tiny_language, tiny_tokenizer):
    """bf16 log-probabilities would be rounded to multiples of 1/32 here; under autocast nothing changes."""
    model = tiny_language.bfloat16()
    per_token = token_scores(model, tiny_tokenizer, ["the cat sat"])[0]
    assert not np.array_equal(per_token, torch.tensor(per_token).bfloat16().float().numpy())
    model = model.float()
    outside = sequence_scores(model, tiny_tokenizer, SENTENCES)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(sequence_scores(model, tiny_tokenizer, SENTENCES), outside)


def test_scoring_ignores_dropout_and_restores_the_mode(tiny_language, tiny_tokenizer):
    tiny_language.config.attention_dropout = 0.5
    for layer in tiny_language.model.layers:
        layer.self_attn.attention_dropout = 0.5
    expected = sequence_scores(tiny_language, tiny_tokenizer, SENTENCES)
    tiny_language.train()
    np.testing.assert_array_equal(sequence_scores(tiny_language, tiny_tokenizer, SENTENCES), expected)
    assert tiny_language.training


def test_uniform_model_ties_exactly(tiny_language, tiny_tokenizer):
    tiny_language.get_input_embeddings().weight.data.zero_()
    scores = sequence_scores(
        tiny_language, tiny_tokenizer, ["the cat sat", "the dog sat", *SENTENCES], batch_tokens=30
    )
    counts = [len(ids) - 1 for ids in tiny_tokenizer(["the cat sat", "the dog sat", *SENTENCES])["input_ids"]]
    np.testing.assert_allclose(scores, -np.array(counts) * math.log(320), rtol=1e-6)
    ratio = scores / counts
    assert len(set(ratio[np.array(counts) == counts[0]])) == 1


def test_non_finite_scores_are_returned(tiny_language, tiny_tokenizer):
    tiny_language.model.norm.weight.data.fill_(float("nan"))
    assert np.isnan(sequence_scores(tiny_language, tiny_tokenizer, SENTENCES)).all()


def test_scoring_nothing(tiny_language, tiny_tokenizer):
    assert sequence_scores(tiny_language, tiny_tokenizer, []).shape == (0,)
    assert sequence_scores(tiny_language, tiny_tokenizer, [""]).tolist() == [0.0]


def test_wrong_inputs_to_scoring_are_named(tiny_multimodal, tiny_language, tiny_tokenizer):
    model, processor = tiny_multimodal
    with pytest.raises(ValueError, match="6 sentences but 2 pictures"):
        sequence_scores(model, processor, SENTENCES, torch.zeros(2, 4, 16))
    tiny_language.resize_token_embeddings(270)
    with pytest.raises(ValueError, match="the model knows only 270 tokens"):
        sequence_scores(tiny_language, tiny_tokenizer, SENTENCES)


# --- minimal pairs ---------------------------------------------------------------------------------------------------


def test_read_pairs_of_a_folder(tmp_path):
    write_lines(tmp_path / "b.jsonl.gz", [row(UID="island", pair_id=3), "", row(UID=None, pair=None)])
    write_lines(tmp_path / "a.jsonl", [row("x", "y", pair=7)])
    pairs = read_pairs(tmp_path)
    assert [pair.uid for pair in pairs] == ["a", "island", "b"]
    assert pairs[0] == MinimalPair("x", "y", "a", None, "7")
    assert pairs[2].pair == f"{tmp_path / 'b.jsonl.gz'}:3"
    assert read_pairs(tmp_path / "a.jsonl") == pairs[:1]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "is empty"),
        ([row(), "{broken"], ValueError, r"x\.jsonl:2: not valid JSON"),
        ([["a", "b"]], ValueError, r"x\.jsonl:1: a line must be a JSON object"),
        ([row(), "", {"sentence_good": "x"}], ValueError, r"x\.jsonl:3: the field sentence_bad is missing"),
        ([row(bad=" ")], ValueError, r"x\.jsonl:1: the field sentence_bad must be a sentence"),
        ([row(good=5)], ValueError, r"x\.jsonl:1: the field sentence_good must be a sentence, not 5"),
        ([row(image=["a.png"])], ValueError, r"x\.jsonl:1: the field image must be the path"),
        ([row(), row(image="gone.png")], FileNotFoundError, r"x\.jsonl:2: the picture .*gone\.png does not exist"),
        ([row(image="x.jsonl")], ValueError, r"x\.jsonl:1: the picture .*x\.jsonl cannot be read"),
    ],
)
def test_bad_lines_are_named(tmp_path, rows, error, message):
    file = write_lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(error, match=message) as raised:
        read_pairs(file)
    assert "\n" not in str(raised.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_pairs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no \.jsonl"):
        read_pairs(tmp_path)
    (tmp_path / "plain.jsonl.gz").write_text(json.dumps(row()))
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_pairs(tmp_path)
    whole = gzip.compress(json.dumps(row()).encode() * 100)
    (tmp_path / "plain.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_pairs(tmp_path)
    write_lines(tmp_path / "plain.jsonl", [row()])
    with pytest.raises(ValueError, match="both plain and compressed"):
        read_pairs(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes('{"sentence_good": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_pairs(tmp_path / "latin.jsonl")
    (tmp_path / "pairs.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"is not a \.jsonl"):
        read_pairs(tmp_path / "pairs.csv")


def test_a_damaged_picture_is_named(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    file = write_lines(tmp_path / "x.jsonl", [row(image="cut.png")])
    with pytest.raises(ValueError, match=r"x\.jsonl:1: the picture .*cut\.png cannot be read"):
        read_pairs(file)


def test_score_pairs_without_pictures(tiny_language, tiny_tokenizer):
    pairs = [text_pair(), MinimalPair("a red cat", "who did", "other", None, "b")]
    scores = score_pairs(tiny_language, tiny_tokenizer, pairs)
    expected = sequence_scores(
        tiny_language, tiny_tokenizer, ["the girls were", "the girls was", "a red cat", "who did"]
    )
    np.testing.assert_allclose(scores, expected.reshape(2, 2), atol=1e-4)


def test_score_pairs_with_pictures(tiny_multimodal, grounded_file):
    """Grounded and plain pairs in one set: each grounded sentence is scored after its own picture."""
    model, processor = tiny_multimodal
    pairs = [text_pair(), *read_pairs(grounded_file), text_pair(1)]
    scores = score_pairs(model, processor, pairs)
    features = picture_features(model, processor, pairs)
    assert len(features) == 16 and all(feature.shape == (4, 16) for feature in features.values())
    np.testing.assert_array_equal(score_pairs(model, processor, pairs, features), scores)
    for i in (1, 2, 16):
        picture = [features[pairs[i].image]] * 2
        expected = sequence_scores(model, processor, [pairs[i].good, pairs[i].bad], picture)
        np.testing.assert_allclose(scores[i], expected, atol=1e-4)
    np.testing.assert_allclose(scores[0], sequence_scores(model, processor, [pairs[0].good, pairs[0].bad]), atol=1e-4)


def test_the_tower_sees_every_picture_once(tiny_multimodal, grounded_file, monkeypatch):
    model, processor = tiny_multimodal
    seen, pooled_features = [], model.pooled_features
    monkeypatch.setattr(model, "pooled_features", lambda pixels: seen.append(len(pixels)) or pooled_features(pixels))
    score_pairs(model, processor, read_pairs(grounded_file) * 2)
    assert sum(seen) == 16


def test_text_alone_is_at_chance_on_mirrored_pairs(tiny_language, tiny_tokenizer, grounded_file):
    pairs = read_pairs(grounded_file)
    result = accuracy(score_pairs(tiny_language, tiny_tokenizer, pairs), pairs)
    assert result.accuracy == 0.5
    assert result.interval == (0.5, 0.5)  # clusters of two mirrored pairs: the bootstrap knows it cannot be otherwise


# --- statistics ------------------------------------------------------------------------------------------------------

SCORES = st.sampled_from([-3.0, -2.0, -1.5, -1.0, float("nan"), float("-inf"), float("inf")])


@st.composite
def scored_pairs(draw, values=SCORES):
    """Pairs in up to three paradigms and four clusters, with scores that often tie or fail."""
    n = draw(st.integers(1, 30))
    names = [(draw(st.sampled_from("abc")), draw(st.sampled_from("1234"))) for _ in range(n)]
    pairs = [text_pair(uid=uid, pair=pair) for uid, pair in names]
    return draw(arrays(np.float64, (n, 2), elements=values)), pairs


@given(scored_pairs())
def test_accuracy_follows_its_formula(case):
    scores, pairs = case
    result = accuracy(scores, pairs, resamples=50)
    credit = {uid: [] for uid in (pair.uid for pair in pairs)}
    for (good, bad), pair in zip(scores, pairs, strict=True):
        failed = not (math.isfinite(good) and math.isfinite(bad))
        credit[pair.uid].append(0.0 if failed else 0.5 if good == bad else float(good > bad))
    means = {uid: sum(values) / len(values) for uid, values in credit.items()}
    assert result.accuracy == pytest.approx(sum(means.values()) / len(means))
    assert {uid: paradigm.accuracy for uid, paradigm in result.paradigms.items()} == pytest.approx(means)
    assert result.items == len(pairs) == sum(paradigm.items for paradigm in result.paradigms.values())
    assert result.nonfinite == np.sum(~np.isfinite(scores).all(axis=1))
    assert result.ties == np.sum(np.isfinite(scores).all(axis=1) & (scores[:, 0] == scores[:, 1]))
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()


@given(scored_pairs(st.sampled_from([-3.0, -2.0, -1.0])))
def test_swapping_good_and_bad_mirrors_the_result(case):
    scores, pairs = case
    straight, swapped = accuracy(scores, pairs, 50), accuracy(scores[:, ::-1], pairs, 50)
    assert swapped.accuracy == pytest.approx(1 - straight.accuracy)
    assert swapped.ties == straight.ties


@given(scored_pairs())
def test_no_preference_is_chance_and_failure_is_zero(case):
    scores, pairs = case
    assert accuracy(np.zeros_like(scores), pairs, 50).accuracy == 0.5
    failed = accuracy(np.full_like(scores, np.nan), pairs, 50)
    assert (failed.accuracy, failed.nonfinite) == (0.0, len(pairs))


@given(scored_pairs(), st.integers(0, 5))
def test_intervals_are_ordered_and_bounded(case, seed):
    scores, pairs = case
    result = accuracy(scores, pairs, 200, seed)
    for entry in (result, *result.paradigms.values()):
        assert 0 <= entry.interval[0] <= entry.interval[1] <= 1
    difference = difference_interval(scores, scores[:, ::-1], pairs, 200, seed)
    assert -1 <= difference.interval[0] <= difference.interval[1] <= 1
    assert difference_interval(scores, scores, pairs, 50).interval == (0.0, 0.0)


def simulated(seed, paradigms, items, probability, cluster=1):
    """Scores that are right with the given probability, the same for a whole cluster."""
    generator = np.random.default_rng(seed)
    right = np.repeat(generator.random((paradigms, items // cluster)) < probability, cluster, axis=1).ravel()
    scores = np.stack([np.where(right, -1.0, -2.0), np.full(len(right), -1.5)], axis=1)
    places = [(i // items, i % items // cluster) for i in range(len(right))]
    return scores, [text_pair(uid=f"u{paradigm}", pair=f"{number}") for paradigm, number in places]


def test_interval_agrees_with_the_binomial_standard_error():
    scores, pairs = simulated(0, paradigms=4, items=400, probability=0.7)
    result = accuracy(scores, pairs)
    variances = [p.accuracy * (1 - p.accuracy) / p.items for p in result.paradigms.values()]
    expected = 2 * 1.96 * math.sqrt(sum(variances)) / 4
    low, high = result.interval
    assert low < result.accuracy < high
    assert high - low == pytest.approx(expected, rel=0.1)


def test_clusters_widen_the_interval():
    """Four copies of each item carry no more information than one: the interval is as wide as with a quarter of n."""
    scores, pairs = simulated(1, paradigms=1, items=800, probability=0.6, cluster=4)
    clustered = accuracy(scores, pairs).interval
    alone = accuracy(scores, [text_pair(i, uid="u0") for i in range(len(pairs))]).interval
    assert clustered[1] - clustered[0] == pytest.approx(2 * (alone[1] - alone[0]), rel=0.15)


def test_intervals_cover_the_truth():
    """About 95 of 100 repeated experiments; 88 allows for chance."""
    covered = 0
    for seed in range(100):
        low, high = accuracy(*simulated(seed, paradigms=3, items=60, probability=0.7), resamples=500).interval
        covered += low <= 0.7 <= high
    assert 88 <= covered <= 100


def test_difference_is_paired():
    """Two models that differ on one pair in fifty: far narrower than two separate intervals suggest."""
    scores_a, pairs = simulated(2, paradigms=2, items=500, probability=0.5)
    scores_b = scores_a.copy()
    scores_b[::50] = [-2.0, -1.0]
    result = difference_interval(scores_a, scores_b, pairs)
    assert result.difference == pytest.approx(accuracy(scores_a, pairs).accuracy - accuracy(scores_b, pairs).accuracy)
    assert result.interval[0] <= result.difference <= result.interval[1]
    separate = accuracy(scores_a, pairs).interval
    assert result.interval[1] - result.interval[0] < (separate[1] - separate[0]) / 3
    assert result.to_dict()["interval"] == list(result.interval)


def test_statistics_refuse_wrong_shapes():
    with pytest.raises(ValueError, match="no minimal pairs"):
        accuracy(np.zeros((0, 2)), [])
    with pytest.raises(ValueError, match=r"\(2, 2\), not \(1, 2\)"):
        accuracy(np.zeros((1, 2)), [text_pair(0), text_pair(1)])


# --- tasks and results -----------------------------------------------------------------------------------------------


def test_find_tasks(tmp_path):
    for name in ("one/x.jsonl", "two/y.jsonl.gz", "two/z.jsonl"):
        write_lines(tmp_path / name, [row()])
    (tmp_path / "pictures").mkdir()
    assert find_tasks(tmp_path) == {"one": tmp_path / "one", "two": tmp_path / "two"}
    assert find_tasks(tmp_path, ["two"]) == {"two": tmp_path / "two"}
    assert find_tasks(tmp_path / "two") == {"two": tmp_path / "two"}
    assert find_tasks(tmp_path / "two", ["z", "y"]) == {
        "z": tmp_path / "two" / "z.jsonl",
        "y": tmp_path / "two" / "y.jsonl.gz",
    }
    assert find_tasks(tmp_path / "two" / "z.jsonl") == {"z": tmp_path / "two" / "z.jsonl"}
    with pytest.raises(FileNotFoundError, match="holds no task three; tasks there: one, two"):
        find_tasks(tmp_path, ["one", "three"])
    with pytest.raises(FileNotFoundError, match="nor its subfolders"):
        find_tasks(tmp_path / "pictures")
    with pytest.raises(FileNotFoundError, match=r"data folder .* does not exist"):
        find_tasks(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["language", "multimodal"])
def test_results_of_a_checkpoint(kind, tmp_path, grounded_file, request):
    write_lines(tmp_path / "grammar" / "agreement.jsonl.gz", [row(), row("a red cat", "a red red cat")])
    checkpoint = request.getfixturevalue(f"{kind}_checkpoint")
    paths = find_tasks(tmp_path)
    tasks = {name: read_pairs(path) for name, path in paths.items()}
    model, processor = load_model(checkpoint)
    assert next(model.parameters()).dtype == torch.float32
    results = evaluate_model(model, processor, tasks, name=str(checkpoint), data=paths)

    output = write_results(results, tmp_path / "out" / kind)
    assert json.loads(output.read_text()) == results
    assert [path.name for path in output.parent.iterdir()] == ["results.json"]
    assert results["tasks"]["grounded"]["pictures_used"] is (kind == "multimodal")
    assert results["tasks"]["grammar"]["pictures_used"] is False
    expected = accuracy(score_pairs(model, processor, tasks["grounded"]), tasks["grounded"])
    assert results["tasks"]["grounded"]["accuracy"] == expected.accuracy
    assert results["tasks"]["grammar"]["paradigms"]["agreement"]["items"] == 2
    assert list(results["model"]["weights_sha256"]) == ["model.safetensors"]
    assert list(results["data_sha256"]["grammar"]) == ["agreement.jsonl.gz"]

    with pytest.raises(FileExistsError, match=r"results\.json exists"):
        write_results(results, output.parent)
    write_results({**results, "schema_version": 0}, output.parent, overwrite=True)
    assert json.loads(output.read_text())["schema_version"] == 0

    console = Console(record=True, width=120)
    print_results(results, console)
    printed = console.export_text()
    assert "grammar" in printed and "95 % interval" in printed


def test_failures_are_printed(tiny_language, tiny_tokenizer):
    tiny_language.model.norm.weight.data.fill_(float("nan"))
    results = evaluate_model(tiny_language, tiny_tokenizer, {"grammar": [text_pair()]}, name="broken")
    console = Console(record=True, width=120)
    print_results(results, console)
    assert "grammar: 1 pairs have scores that are not finite" in console.export_text()
    assert results["tasks"]["grammar"]["accuracy"] == 0.0


def test_low_precision_checkpoints_are_scored_in_fp32(tmp_path, tiny_language, tiny_tokenizer):
    """The reference has rounded parameters but fp32 rotary frequencies, which `model.bfloat16()` would round too."""
    copy.deepcopy(tiny_language).bfloat16().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for parameter in tiny_language.parameters():
        parameter.data = parameter.data.bfloat16().float()
    model, tokenizer = load_model(tmp_path)
    assert model.dtype == torch.float32
    expected = sequence_scores(tiny_language, tiny_tokenizer, SENTENCES)
    np.testing.assert_allclose(sequence_scores(model, tokenizer, SENTENCES), expected, atol=1e-4)


def test_load_model_names_what_is_missing(tmp_path, language_checkpoint):
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint runs/nowhere here") as raised:
        load_model("runs/nowhere")
    assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text((language_checkpoint / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(FileNotFoundError, match="pickled weights are not read"):
        load_model(tmp_path)
