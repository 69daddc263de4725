"""Statistics follow their formulae.

Run: pytest tests/test_statistics.py
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pair_files import text_pair

from babylm_vlm.evaluation import accuracy, difference_interval
from babylm_vlm.metrics.minimal_pair_accuracy.minimal_pair_accuracy import official_choice

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
    with pytest.raises(ValueError, match="2 items need 2 rows of scores, not 1"):
        accuracy(np.zeros((1, 2)), [text_pair(0), text_pair(1)])


@given(scored_pairs())
def test_the_official_rule_takes_the_first_of_the_highest_or_the_first_nan(case):
    """As `torch.max` does: ties and all-NaN items count as right."""
    scores, pairs = case
    found = accuracy(scores, pairs, 50, official=True)
    chosen = torch.tensor(scores, dtype=torch.float32).max(dim=1)[1].tolist()
    assert [official_choice(row) for row in scores] == chosen
    right = {uid: [] for uid in (pair.uid for pair in pairs)}
    for choice, pair in zip(chosen, pairs, strict=True):
        right[pair.uid].append(choice == 0)
    assert found.accuracy == pytest.approx(np.mean([np.mean(values) for values in right.values()]))


def test_more_than_two_texts_and_groups_of_paradigms():
    """Five texts: chance is one fifth, a tie of the right one with another is half. Groups count equally."""
    items = [text_pair(uid=uid, pair=str(i)) for i, uid in enumerate(["a_0_ops", "a_1_ops", "b_0_ops", "b_0_ops"])]
    scores = [[0, -1, -1, -1, -1], [0, 0, -1, -1, -1], [-1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    found = accuracy(scores, items, group_of=lambda uid: uid[0])
    assert found.chance == pytest.approx(0.2)
    assert found.accuracy == pytest.approx(((1 + 1 / 2) / 2 + (0 + 1 / 5) / 2) / 2)
    assert found.ties == 3


def test_p_is_uniform_without_a_difference_and_small_with_one():
    """Under no difference about one experiment in ten has p below 0.1; 100 experiments, so up to 18 are allowed."""
    below = 0
    for seed in range(100):
        a, pairs = simulated(2 * seed, paradigms=2, items=60, probability=0.6)
        b, _ = simulated(2 * seed + 1, paradigms=2, items=60, probability=0.6)
        below += difference_interval(a, b, pairs, 300).p_value < 0.1
    assert 3 <= below <= 18
    a, pairs = simulated(0, paradigms=2, items=200, probability=0.9)
    b, _ = simulated(1, paradigms=2, items=200, probability=0.6)
    assert difference_interval(a, b, pairs).p_value < 0.002
    assert difference_interval(a, a, pairs).p_value == 1
