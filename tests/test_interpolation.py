"""A live model set to alpha holds what the merged file holds, bit for bit; the dial refuses what does not fit.

Run: pytest tests/test_interpolation.py
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from babylm_vlm.merging import interpolate, linear_plan_yaml, merge, read_plan
from babylm_vlm.merging.interpolation import Interpolation, read_tensors
from babylm_vlm.model import BabylmVlmConfig, BabylmVlmForConditionalGeneration

SHAPE = {
    "vocab_size": 51,  # odd, so that no tensor's end falls on the end of a vector register
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALPHAS = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0])


def models(tied: bool, dtypes: tuple[str, str] = ("float32", "float32")):
    """A random multimodal and a random language model."""
    torch.manual_seed(0)
    shape = SHAPE | {"tie_word_embeddings": tied}
    eyes = BabylmVlmConfig(vision_tower="./vision_tower", vision_hidden_size=8, image_token_id=3, **shape)
    multimodal = BabylmVlmForConditionalGeneration(eyes).to(DTYPES[dtypes[0]])
    return multimodal, LlamaForCausalLM(LlamaConfig(**shape)).to(DTYPES[dtypes[1]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoint folders of both models by (tied, dtypes), each saved once."""
    made = {}

    def folders(tied: bool, dtypes: tuple[str, str]):
        key = (tied, dtypes)
        if key not in made:
            made[key] = tuple(tmp_path_factory.mktemp(name) for name in ("multimodal", "language"))
            for model, folder in zip(models(tied, dtypes), made[key], strict=True):
                model.save_pretrained(folder)
        return made[key]

    return folders


def assert_same_bits(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    live = model.state_dict()
    for name, tensor in tensors.items():
        assert live[name].dtype == tensor.dtype and torch.equal(
            live[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)
        ), name


@settings(max_examples=40, deadline=None)
@given(
    alphas=st.lists(ALPHAS, min_size=1, max_size=3),
    tied=st.booleans(),
    stored=st.sampled_from(sorted(DTYPES)),
    live=st.sampled_from(sorted(DTYPES)),
)
def test_the_live_model_is_the_merged_file_loaded_in_its_dtype(saved, tmp_path_factory, alphas, tied, stored, live):
    folders = saved(tied, (stored, stored))
    dial = Interpolation.from_pretrained(*folders, dtype=DTYPES[live])
    for alpha in alphas:  # from any alpha to any other
        dial.set(alpha)
    place = tmp_path_factory.mktemp("merge")
    (place / "plan.yaml").write_text(linear_plan_yaml(*map(str, folders), alphas[-1]))
    merge(read_plan(place / "plan.yaml"), place / "merged")
    assert dial.alpha == alphas[-1]
    assert_same_bits(
        dial.model, AutoModelForCausalLM.from_pretrained(place / "merged", dtype=DTYPES[live]).state_dict()
    )
    if live == stored:  # no cast in between: the bits of the file itself
        assert_same_bits(dial.model, read_tensors(place / "merged"))


def test_many_blocks_and_threads_give_the_same_bits(monkeypatch):
    monkeypatch.setattr("babylm_vlm.merging.interpolation.CPU_BLOCK", 37)
    for live in DTYPES:
        multimodal, language = models(tied=True)
        ends = [{name: t.clone() for name, t in model.state_dict().items()} for model in (multimodal, language)]
        dial = Interpolation(multimodal.to(DTYPES[live]), *ends)
        dial.set(0.3)
        expected = {name: tensor.to(DTYPES[live]) for name, tensor in interpolate(*ends, 0.3).items()}
        assert_same_bits(dial.model, expected)


def test_mixed_dtypes_within_a_model():
    multimodal, language = models(tied=False)
    ends = [{name: t.clone() for name, t in model.state_dict().items()} for model in (multimodal, language)]
    for tensors in ends:
        tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items() if "mlp" in name}
    dial = Interpolation(multimodal, *ends)
    dial.set(0.6)
    expected = {name: t.float() for name, t in interpolate(*ends, 0.6).items() if "multi_modal" not in name}
    assert_same_bits(dial.model, expected)


def test_zeros_have_the_sign_they_have_in_a_merged_file():
    multimodal, language = models(tied=True)
    ends = [{name: t.clone() for name, t in model.state_dict().items()} for model in (multimodal, language)]
    for tensors in ends:
        tensors["model.norm.weight"].fill_(-0.0)
    dial = Interpolation(multimodal, *ends)
    for alpha in (0.3, 1.0):
        dial.set(alpha)
        assert_same_bits(dial.model, {"model.norm.weight": interpolate(*ends, alpha)["model.norm.weight"]})
    assert dial.model.model.norm.weight.signbit().all()  # a copy at the end, 0.0 in between


def test_ends_are_exact_even_where_the_other_model_is_not_finite():
    multimodal, language = models(tied=True)
    ends = [{name: t.clone() for name, t in model.state_dict().items()} for model in (multimodal, language)]
    broken = {name: torch.full_like(tensor, float("inf")) for name, tensor in ends[1].items()}
    dial = Interpolation(multimodal, ends[0], broken)
    dial.set(0.5)
    dial.set(1.0)
    assert_same_bits(dial.model, ends[0])


def test_tied_embeddings_stay_tied_and_the_projector_stays():
    multimodal, language = models(tied=True)
    projector = multimodal.model.multi_modal_projector.linear_1.weight.clone()
    dial = Interpolation(multimodal, multimodal.state_dict(), language.state_dict())
    dial.set(0.0)
    assert dial.model.lm_head.weight.data_ptr() == dial.model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(dial.model.model.multi_modal_projector.linear_1.weight, projector)
    ids = torch.tensor([[1, 5, 9, 4]])
    with torch.no_grad():
        assert torch.equal(dial.model(ids).logits, language(ids).logits)  # with its eyes closed, the language model


def test_the_live_model_can_be_saved(tmp_path):
    multimodal, language = models(tied=True)
    dial = Interpolation(multimodal, multimodal.state_dict(), language.state_dict())
    dial.set(0.25)
    dial.model.save_pretrained(tmp_path)
    assert_same_bits(dial.model, read_tensors(tmp_path))


def test_setting_alpha_allocates_nothing():
    multimodal, language = models(tied=True, dtypes=("bfloat16", "bfloat16"))
    dial = Interpolation(multimodal, multimodal.state_dict(), language.state_dict())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        dial.set(0.4)
    weights = sum(parameter.numel() for parameter in multimodal.parameters())
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert allocated < 64 < weights  # the sum of the two weights alone


def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path):
    multimodal, language = models(tied=True)
    tensors, other = multimodal.state_dict(), language.state_dict()
    with pytest.raises(ValueError, match=r"alpha is 1\.5, but it must lie between 0"):
        Interpolation(multimodal, tensors, other).set(1.5)
    with pytest.raises(ValueError, match=r"alpha is nan"):
        Interpolation(multimodal, tensors, other).set(float("nan"))
    name = "model.norm.weight"
    with pytest.raises(ValueError, match=f"Only one of the two models has the tensor {name}"):
        Interpolation(multimodal, tensors, {key: other[key] for key in other if key != name})
    with pytest.raises(
        ValueError, match=r"model\.norm\.weight has the shape \(12,\) in the multimodal model and \(3,\)"
    ):
        Interpolation(multimodal, tensors, other | {name: torch.ones(3)})
    with pytest.raises(ValueError, match=r"model\.norm\.weight is float32 .* bfloat16 .*; save both in one dtype"):
        Interpolation(multimodal, tensors, other | {name: other[name].bfloat16()})
    with pytest.raises(ValueError, match=f"The live model has the parameter {name}"):
        ends = [{key: end[key] for key in end if key != name} for end in (tensors, other)]
        Interpolation(multimodal, *ends)
    with pytest.raises(FileNotFoundError, match="has no weights"):
        Interpolation.from_pretrained(tmp_path, tmp_path)
    dial = Interpolation(multimodal, tensors, other)
    dial.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="moved or cast since its Interpolation was made"):
        dial.set(0.5)
