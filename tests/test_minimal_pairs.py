"""Files of minimal pairs, and scores of pairs with and without pictures.

Run: pytest tests/test_minimal_pairs.py
"""

import gzip
import json

import numpy as np
import pytest
from pair_files import row, text_pair, write_lines
from PIL import Image

from babylm_vlm.evaluation import MinimalPair, accuracy, picture_features, read_pairs, score_pairs, sequence_scores


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
        ([row(bad=" ")], ValueError, r"x\.jsonl:1: the field sentence_bad must be text"),
        ([row(good=5)], ValueError, r"x\.jsonl:1: the field sentence_good must be text, not 5"),
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
