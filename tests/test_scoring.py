"""Scores are exact, and the same however they are computed.

Run: pytest tests/test_scoring.py
"""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_files import SENTENCES, naive_score
from PIL import Image
from tokenizers import processors
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from babylm_vlm.evaluation import conditional_scores, engine, load_model, sequence_scores, token_scores
from babylm_vlm.evaluation.engine import Request, packing_agrees, score_requests
from babylm_vlm.evaluation.scoring import make_requests


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


def fed_tokens(model, sentences, tokenizer):
    """Number of tokens, padding included, that the body of the model reads to score sentences."""
    counts = []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    sequence_scores(model, tokenizer, sentences)
    hook.remove()
    return sum(counts)


def test_equal_requests_are_computed_once(tiny_language, tiny_tokenizer):
    once = fed_tokens(tiny_language, SENTENCES, tiny_tokenizer)
    assert fed_tokens(tiny_language, SENTENCES * 3, tiny_tokenizer) == once


def test_shared_prefixes_are_read_once(tiny_language, tiny_tokenizer):
    """Sixty long sentences that differ in their last word: the self-check apart, a few hundred."""
    prefix = "the cat sat next to the tree and the dog sees a red ball under the blue table where boys were running "
    sentences = [prefix + str(number) for number in range(60)]
    length = min(len(tiny_tokenizer(sentence)["input_ids"]) for sentence in sentences)
    assert length > 30
    fed = fed_tokens(tiny_language, sentences, tiny_tokenizer)
    assert fed - 2 * engine.CHECK_TOKENS < 60 * length / 4


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


# --- the engine ------------------------------------------------------------------------------------------------------

BOS, LETTERS = 1, st.integers(4, 8)  # few letters, so that sequences share prefixes


@pytest.fixture(scope="module")
def models(decoder_fields):
    """Architectures that obey a 4-D mask, and some that do not."""
    torch.manual_seed(3)
    ids = {name: decoder_fields[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.2, **ids)
    bloom = BloomConfig(hidden_size=32, n_layer=2, n_head=2, initializer_range=0.2, **ids)
    mamba = MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.2, **ids)
    llama = LlamaConfig(**decoder_fields)
    made = {
        "llama": LlamaForCausalLM(llama),
        "gpt2": GPT2LMHeadModel(gpt2),
        "bloom": BloomForCausalLM(bloom),
        "mamba": MambaForCausalLM(mamba),
    }
    return {name: model.eval() for name, model in made.items()}


@st.composite
def requests(draw):
    tokens = (BOS, *draw(st.lists(LETTERS, min_size=1, max_size=9)))
    scored = draw(st.sets(st.integers(1, len(tokens) - 1), min_size=1))
    return Request(tokens, tuple(sorted(scored)))


def naive(model, request):
    """Log-probabilities of the scored tokens, one sequence, no padding."""
    with torch.no_grad():
        rows = model(input_ids=torch.tensor([request.tokens])).logits[0].double().log_softmax(-1)
    return np.array([rows[t - 1, request.tokens[t]].item() for t in request.scored])


@settings(max_examples=25)
@given(st.lists(requests(), min_size=1, max_size=12), st.integers(1, 60), st.integers(2, 40), st.randoms())
def test_scores_depend_on_nothing_but_the_sequence(models, chosen, batch_tokens, row_tokens, random):
    """Not on order, batch size, packing or padding."""
    expected = {request: naive(models["llama"], request) for request in chosen}
    before = engine.ROW_TOKENS
    engine.ROW_TOKENS = row_tokens
    try:
        for batches in (engine.packed_batches, engine.padded_batches):
            random.shuffle(chosen)
            unique = list(dict.fromkeys(chosen))
            found = {}
            for batch in batches(unique, batch_tokens):
                assert batch.tokens.size <= max(batch_tokens, batch.tokens.shape[1])
                scores = engine._score_batch(models["llama"], unique, batch, ())
                found |= {unique[i]: values for i, values in zip(batch.requests, scores, strict=True)}
            assert found.keys() == expected.keys()
            for request, values in found.items():
                np.testing.assert_allclose(values, expected[request], atol=1e-4, rtol=0)
    finally:
        engine.ROW_TOKENS = before


@pytest.fixture(scope="module")
def eyes(multimodal_checkpoint):
    """A multimodal model, its processor, and the features of three pictures."""
    model, processor = load_model(multimodal_checkpoint)
    return model, processor, torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))


pictured = st.tuples(st.sampled_from(["", "the cat", "the girl"]), st.sampled_from([" sees", " sat", " is red"]))


@settings(max_examples=10)
@given(
    st.lists(st.tuples(pictured, st.integers(0, 2)), min_size=1, max_size=10),
    st.integers(1, 60),
    st.booleans(),
    st.sampled_from(["left", "right"]),
    st.randoms(),
)
def test_scores_after_pictures_depend_on_nothing_but_text_and_picture(
    eyes, chosen, batch_tokens, packed, side, random
):
    """Not on order, batch size, packing, the tokenizer's padding side or what else is scored; nor do choices."""
    model, processor, features = eyes
    processor.tokenizer.padding_side = side

    def score(rows, size):
        texts, numbers = zip(*rows, strict=True)
        prefixes, completions = zip(*texts, strict=True)
        shown = [features[number] for number in numbers]
        return conditional_scores(model, processor, prefixes, completions, shown, size, progress=False)

    expected = {row: score([row], 4096)[0] for row in set(chosen)}
    random.shuffle(chosen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "packing_agrees", lambda *_: packed)
        found = score(chosen, batch_tokens)
    alone = [expected[row] for row in chosen]
    np.testing.assert_allclose(found, alone, atol=1e-4, rtol=0)
    assert np.argmax(found) == np.argmax(alone)


@pytest.mark.parametrize(("name", "packs"), [("llama", True), ("gpt2", True), ("bloom", False), ("mamba", False)])
def test_packing_is_used_only_where_it_changes_no_score(models, name, packs):
    model = models[name]
    chosen = [Request((BOS, 4, 5, 6, 7, 8, last, 4), (5, 6, 7)) for last in range(4, 12)]
    assert packing_agrees(model, chosen, ()) is packs
    for request, values in zip(chosen, score_requests(model, chosen), strict=True):
        np.testing.assert_allclose(values, naive(model, request), atol=1e-4, rtol=0)


def test_a_model_that_scales_its_logits_is_not_packed(models, monkeypatch):
    """The head alone would give other scores than the model does; the self-check sees it."""
    model = models["llama"]
    chosen = [Request((BOS, 4, 5, last), (1, 2, 3)) for last in range(6, 10)]
    assert packing_agrees(model, chosen, ())
    forward = model.forward

    def scaled(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        outputs.logits = outputs.logits / 2
        return outputs

    monkeypatch.setattr(model, "forward", scaled)
    assert not packing_agrees(model, chosen, ())
    np.testing.assert_allclose(score_requests(model, chosen)[0], naive(model, chosen[0]), atol=1e-4, rtol=0)


def test_a_text_longer_than_the_table_of_positions_is_named(models):
    with pytest.raises(ValueError, match="a text has 200 tokens, but the model has positions for 128 only"):
        score_requests(models["gpt2"], [Request((BOS, *[4] * 200), (200,)), Request((BOS, 4), (1,))])


# --- completions -----------------------------------------------------------------------------------------------------


def test_completions_obey_the_chain_rule(tiny_language, tiny_tokenizer):
    """log p(prefix completion) = log p(prefix) + log p(completion | prefix), where a space is between the two."""
    prefixes = ["the cat", "who did the girl", "the cat"]
    completions = [" sat next to the tree", " see", " sees a red ball"]
    texts = [prefix + completion for prefix, completion in zip(prefixes, completions, strict=True)]
    conditional = conditional_scores(tiny_language, tiny_tokenizer, prefixes, completions)
    whole = sequence_scores(tiny_language, tiny_tokenizer, texts)
    np.testing.assert_allclose(
        conditional, whole - sequence_scores(tiny_language, tiny_tokenizer, prefixes), atol=1e-4
    )


def test_completions_after_a_picture(tiny_multimodal):
    model, processor = tiny_multimodal
    pictures = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    texts, prefixes, completions = ["a red ball"] * 2, ["a red"] * 2, [" ball"] * 2
    conditional = conditional_scores(model, processor, prefixes, completions, pictures)
    whole = sequence_scores(model, processor, texts, pictures)
    np.testing.assert_allclose(conditional, whole - sequence_scores(model, processor, prefixes, pictures), atol=1e-4)
    assert conditional[0] != conditional[1]


def test_a_completion_has_the_tokens_that_end_in_it(tiny_language, tiny_tokenizer):
    """Also where the prefix ends with the space that belongs to the first of them."""
    scores = [
        conditional_scores(tiny_language, tiny_tokenizer, [prefix], [completion])[0]
        for prefix, completion in (("the cat ", "sat"), ("the cat", " sat"))
    ]
    assert scores[0] == scores[1] < 0


def without_bos(tokenizer):
    """The same tokenizer, which puts no BOS in front by itself."""
    plain = copy.deepcopy(tokenizer)
    plain.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return plain


def test_the_official_rule_leaves_a_first_token_without_bos_unscored(tiny_language, tiny_tokenizer):
    plain = without_bos(tiny_tokenizer)
    ids = plain("the cat sat")["input_ids"]
    (official,), _ = make_requests(tiny_language, plain, [("", "the cat sat")], official=True)
    (ours,), _ = make_requests(tiny_language, plain, [("", "the cat sat")])
    assert official == Request(tuple(ids), tuple(range(1, len(ids))))
    assert ours == Request((plain.bos_token_id, *ids), tuple(range(1, len(ids) + 1)))


def test_unfit_tokenizers_are_named(tiny_language, tiny_tokenizer):
    nameless = copy.deepcopy(tiny_tokenizer)
    nameless.bos_token = None
    with pytest.raises(ValueError, match="has no BOS token"):
        sequence_scores(tiny_language, nameless, SENTENCES)
    with pytest.raises(ValueError, match="cannot say which characters"):
        conditional_scores(tiny_language, ByT5Tokenizer(bos_token="</s>"), ["a"], [" b"])
