"""The loss in chunks is the loss of the library, and so are its gradients.

Run: pytest tests/test_loss.py
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import TINY_RUN
from transformers import LlamaConfig, LlamaForCausalLM

from babylm_vlm.data.packing import IGNORED
from babylm_vlm.model import BabylmVlmForConditionalGeneration
from babylm_vlm.training.loss import use_chunked_loss
from babylm_vlm.training.recipe import make_recipe
from babylm_vlm.training.train import make_fast, train


def loss_and_gradients(model: torch.nn.Module, **inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_loss(plain: torch.nn.Module, chunked: torch.nn.Module, **inputs) -> None:
    expected, gradients = loss_and_gradients(plain, **inputs)
    loss, found = loss_and_gradients(chunked, **inputs)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    assert set(found) == set(gradients)
    for name in gradients:
        torch.testing.assert_close(found[name], gradients[name], atol=1e-6, rtol=1e-5)


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 40), divide_by=st.sampled_from([None, 7]))
@settings(max_examples=12)
def test_any_targets_of_a_language_model(seed, rows, divide_by):
    """Up to 760 targets: one chunk, or two."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=seed % 2 == 0, **shape))
    chunked = LlamaForCausalLM(plain.config)
    chunked.load_state_dict(plain.state_dict())
    use_chunked_loss(chunked)
    ids = torch.randint(50, (rows, 20))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, IGNORED)
    labels[0, 1] = ids[0, 1]  # at least one target
    items = None if divide_by is None else torch.tensor(divide_by)
    assert_same_loss(plain, chunked, input_ids=ids, labels=labels, num_items_in_batch=items)


def test_captions_with_their_pictures(tiny_multimodal, multimodal_checkpoint):
    plain, processor = tiny_multimodal
    chunked = BabylmVlmForConditionalGeneration.from_pretrained(multimodal_checkpoint).eval()
    use_chunked_loss(chunked)
    image = processor.tokenizer.image_token * 4
    ids = processor.tokenizer(
        [f"{image} the cat sat", f"{image} a red cat is under"], padding=True, return_tensors="pt"
    )
    ignored = (ids["attention_mask"] == 0) | (ids["input_ids"] == plain.config.image_token_id)
    labels = ids["input_ids"].masked_fill(ignored, IGNORED)
    assert_same_loss(plain, chunked, **ids, labels=labels, image_features=torch.randn(2, 4, 16))


def test_a_compiled_run_has_the_loss_of_plain_transformers(tmp_path, monkeypatch):
    """On a CPU with another attention, of which the checkpoint says nothing."""
    (tmp_path / "text.txt").write_text("".join(f"the red {thing} is big\n" for thing in "abcdefghijklmnop"))
    keys = {**TINY_RUN, "text": str(tmp_path / "text.txt"), "max_steps": 4, "torch_compile_backend": "aot_eager"}
    models = []
    monkeypatch.setattr(
        "babylm_vlm.training.train.make_fast", lambda *given: models.append(given[0]) or make_fast(*given)
    )
    compiled = train(make_recipe({**keys, "output_dir": str(tmp_path / "compiled")}, "the test"))
    assert models[0].config._attn_implementation == "eager"
    assert "attn" not in (tmp_path / "compiled" / "config.json").read_text()
    monkeypatch.setattr("babylm_vlm.training.train.make_fast", lambda model, arguments: None)
    plain = train(make_recipe({**keys, "output_dir": str(tmp_path / "plain")}, "the test"))
    assert compiled["final_loss"] == pytest.approx(plain["final_loss"], abs=1e-5)


@pytest.mark.parametrize("more", [{"gradient_accumulation_steps": 2}, {"embedding_learning_rate": 0.0}])
def test_a_run_has_the_loss_of_plain_transformers(tmp_path, monkeypatch, more):
    (tmp_path / "text.txt").write_text("".join(f"the red {thing} is big\n" for thing in "abcdefghijklmnop"))
    keys = {**TINY_RUN, "text": str(tmp_path / "text.txt"), "max_steps": 4, "logging_steps": 1, **more}
    ours = train(make_recipe({**keys, "output_dir": str(tmp_path / "ours")}, "the test"))
    monkeypatch.setattr("babylm_vlm.training.train.use_chunked_loss", lambda model: None)
    plain = train(make_recipe({**keys, "output_dir": str(tmp_path / "plain")}, "the test"))
    assert ours["final_loss"] == pytest.approx(plain["final_loss"], abs=1e-5)
