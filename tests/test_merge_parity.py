"""Our merges of tiny checkpoints are mergekit's, bit for bit; what mergekit carries out for us comes out complete.

Run: pytest tests/test_merge_parity.py
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_merging import MERGE_CONFIGS, PLANS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from babylm_vlm.files import weight_files
from babylm_vlm.merging import linear_plan_yaml, merge, read_plan
from babylm_vlm.merging.in_memory import as_tensor
from babylm_vlm.merging.verify import verify
from babylm_vlm.merging.weights import Weights

OTHER_PLANS = ("slerp.yaml", "ties.yaml")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
WORDS = {"first": ["<s>", "a", "b", "c", "d", "e"], "second": ["<s>", "c", "x", "a", "e", "y", "z"]}


def save_llama(
    folder: Path,
    seed: int,
    dtype: str,
    tied: bool = True,
    words: str = "first",
    rows: int = 8,
    shape: dict[str, int] = SHAPE,
) -> str:
    """A random Llama, with negative zeros here and there, and a tokenizer of a few words; returns its path."""
    torch.manual_seed(seed)
    config = LlamaConfig(**shape, vocab_size=rows, tie_word_embeddings=tied, initializer_range=0.2)
    model = LlamaForCausalLM(config).to(DTYPES[dtype])
    for parameter in model.parameters():
        parameter.data.flatten()[::7] = -0.0
    model.save_pretrained(folder, max_shard_size="6KB" if seed == 1 else "5GB")
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS[words])}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<s>").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Three checkpoints for every dtype, tied and untied; the second ones are sharded."""
    root = tmp_path_factory.mktemp("llamas")
    return {
        (dtype, tied): [save_llama(root / f"{dtype}-{tied}-{n}", n, dtype, tied) for n in range(3)]
        for dtype in DTYPES
        for tied in (True, False)
    }


def mergekit(plan: dict, folder: Path, **options) -> dict[str, torch.Tensor]:
    """What mergekit makes of a plan, in this process."""
    from mergekit.architecture.auto import infer_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    LoaderCache.loaders.clear()
    infer_architecture_info.cache_clear()
    options = MergeOptions(quiet=True, write_model_card=False, **options)
    run_merge(MergeConfiguration.model_validate(plan), str(folder), options)
    return load(folder)


def ours(plan: dict, folder: Path, **options) -> dict[str, torch.Tensor]:
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(plan))
    merge(read_plan(file), folder, **options)
    assert verify(folder, read_plan(file))["different"] == []
    return load(folder)


def load(folder: Path) -> dict[str, torch.Tensor]:
    weights = Weights(Path(folder))
    return {name: as_tensor(weights.tensor(name)) for name in weights.names}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    for name in one:
        a, b = one[name], other[name]
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name


# A weight of 1 beside weights of 0 is a copy here, which keeps -0.0; mergekit makes it 0.0 (see the test of verify).
number = st.floats(0.05, 2).filter(lambda value: value != 1)
value = number | st.lists(number, min_size=1, max_size=4)
filtered = st.lists(
    st.builds(dict, filter=st.sampled_from(["mlp", "layers.1", "norm", "embed", "*"]), value=value), max_size=2
).flatmap(lambda rules: value.map(lambda last: [*rules, {"value": last}]))
dtype_or_none = st.sampled_from([None, *DTYPES, "float64"])


shapes = st.builds(
    lambda heads, width, middle, layers, rows: {
        "hidden_size": 2 * heads * width,
        "intermediate_size": middle,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "rows": rows,
    },
    *(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.integers(1, 4), st.integers(6, 20)),
)


@settings(max_examples=25, deadline=None)
@given(
    shape=shapes,
    dtype=st.sampled_from(sorted(DTYPES)),
    weights=st.tuples(value, value),
    large=st.booleans(),
)
def test_models_of_any_shape_merge_as_with_mergekit(tmp_path_factory, shape, dtype, weights, large):
    folder = tmp_path_factory.mktemp("shapes")
    rows = shape.pop("rows")
    paths = [save_llama(folder / f"{seed}", seed, dtype, rows=rows, shape=shape) for seed in range(2)]
    plan = {
        "merge_method": "linear",
        "base_model": paths[0],
        "models": [{"model": p, "parameters": {"weight": w}} for p, w in zip(paths, weights, strict=True)],
    }
    with in_small_blocks(large):
        merged = ours(plan, folder / "ours")
    assert_same(merged, mergekit(plan, folder / "theirs"))


@contextmanager
def in_small_blocks(large: bool) -> Iterator[None]:
    """Many blocks for each tensor; if `large`, with PyTorch, as large models are merged."""
    sizes = {"BLOCK": 100, "NUMPY_BLOCK": 70} | ({"PYTORCH_PAYS": 0} if large else {})
    with pytest.MonkeyPatch.context() as patch:
        for name, elements in sizes.items():
            patch.setattr(f"babylm_vlm.merging.engine.{name}", elements)
        yield


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(value | filtered, min_size=1, max_size=3),
    kind=st.tuples(st.sampled_from(sorted(DTYPES)), st.booleans()),
    normalize=st.booleans(),
    dtypes=st.tuples(dtype_or_none, dtype_or_none),
    shard=st.sampled_from(["5GB", "3KB"]),
    large=st.booleans(),
)
def test_linear_merges_are_mergekits(tmp_path_factory, llamas, weights, kind, normalize, dtypes, shard, large):
    folder = tmp_path_factory.mktemp("parity")
    paths = llamas[kind][: len(weights)]
    plan = {
        "merge_method": "linear",
        "base_model": paths[-1],
        "models": [{"model": p, "parameters": {"weight": w}} for p, w in zip(paths, weights, strict=True)],
        "parameters": {"normalize": normalize},
        **{key: name for key, name in zip(("dtype", "out_dtype"), dtypes, strict=True) if name},
    }
    with in_small_blocks(large):
        merged = ours(plan, folder / "ours", max_shard_size=shard)
    assert_same(merged, mergekit(plan, folder / "theirs"))
    assert (len(weight_files(folder / "ours")) > 1) == (shard == "3KB")
    AutoModelForCausalLM.from_pretrained(folder / "ours")


def test_a_base_outside_the_models_takes_the_weight_of_the_plan(tmp_path, llamas):
    paths = llamas["float32", True]
    plan = {
        "merge_method": "linear",
        "base_model": paths[2],
        "models": [{"model": paths[0], "parameters": {"weight": 0.2}}, {"model": paths[1]}],
        "parameters": {"weight": [0.3, 0.7]},
    }
    assert_same(ours(plan, tmp_path / "ours"), mergekit(plan, tmp_path / "theirs"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_of_different_vocabularies_are_matched_by_token(tmp_path, caplog, dtype, tied):
    first = save_llama(tmp_path / "first", 0, dtype, tied, "first", rows=8)  # two rows belong to no token
    second = save_llama(tmp_path / "second", 1, dtype, tied, "second", rows=7)
    models = [{"model": path, "parameters": {"weight": w}} for path, w in ((second, 0.3), (first, 0.7))]
    plan = {"merge_method": "linear", "base_model": first, "models": models, "tokenizer": {"source": "base"}}
    merged = ours(plan, tmp_path / "ours")
    assert_same(merged, mergekit(plan, tmp_path / "theirs"))
    assert f"{second} shares 4 of the 6 tokens of {first}; the other 2 keep their embeddings" in caplog.text
    rows = merged["model.embed_tokens.weight"]
    torch.testing.assert_close(rows[2], load(first)["model.embed_tokens.weight"][2])  # b, which the second lacks
    assert len(rows) == 6 and json.loads((tmp_path / "ours" / "config.json").read_text())["vocab_size"] == 6
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    model(**AutoTokenizer.from_pretrained(tmp_path / "ours")("a b e", return_tensors="pt"))


def test_different_vocabularies_are_refused_without_a_tokenizer_setting(tmp_path):
    first = save_llama(tmp_path / "first", 0, "float32")
    second = save_llama(tmp_path / "second", 1, "float32", words="second")
    (tmp_path / "plan.yaml").write_text(linear_plan_yaml(first, second, 0.5))
    with pytest.raises(ValueError, match=r"number their tokens differently.*tokenizer: \{source: base\}"):
        merge(read_plan(tmp_path / "plan.yaml"), tmp_path / "ours")


def test_an_adapter_is_folded_in_first(tmp_path, llamas):
    from peft import LoraConfig, get_peft_model

    first, second, _ = llamas["float32", True]
    torch.manual_seed(5)
    lora = get_peft_model(
        LlamaForCausalLM.from_pretrained(second),
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    lora.save_pretrained(tmp_path / "adapter")
    models = [first, f"{second}+{tmp_path / 'adapter'}"]
    plan = {
        "merge_method": "linear",
        "base_model": first,
        "models": [{"model": model, "parameters": {"weight": w}} for model, w in zip(models, (0.4, 0.6), strict=True)],
    }
    merged = ours(plan, tmp_path / "ours")
    assert_same(merged, mergekit(plan, tmp_path / "theirs", lora_merge_cache=str(tmp_path / "cache")))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[name], 0.4 * load(first)[name] + 0.6 * load(second)[name])

    # a base with an adapter gives its tokenizer all the same, and another numbering of tokens is noticed
    ours(plan | {"base_model": models[1]}, tmp_path / "base")
    assert (tmp_path / "base" / "tokenizer.json").read_bytes() == Path(second, "tokenizer.json").read_bytes()
    other = save_llama(tmp_path / "other", 0, "float32", words="second")
    plan["models"][0]["model"] = plan["base_model"] = other
    with pytest.raises(ValueError, match="number their tokens differently"):
        ours(plan, tmp_path / "strangers")

    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model\.safetensors"):
        read_plan(tmp_path / "ours.yaml")


# --- other methods: mergekit merges, we check and complete -----------------------------------------------------------


def slerp(base: Path, other: Path) -> dict:
    models = [{"model": str(base)}, {"model": str(other)}]
    return {"merge_method": "slerp", "base_model": str(base), "models": models, "parameters": {"t": 0.4}}


def test_other_methods_are_mergekits_and_lose_nothing(tmp_path, caplog, multimodal_checkpoint, language_checkpoint):
    caplog.set_level(logging.WARNING)
    plan = slerp(multimodal_checkpoint, language_checkpoint)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    merge(read_plan(tmp_path / "plan.yaml"), tmp_path / "ours")
    merged, multimodal = load(tmp_path / "ours"), load(multimodal_checkpoint)
    theirs = mergekit(plan, tmp_path / "theirs")
    assert set(merged) == set(multimodal)
    decoder = [name for name in multimodal if "projector" not in name]
    assert_same({name: merged[name] for name in decoder}, {name: theirs[name] for name in decoder})
    assert_same(*({n: w[n] for n in set(multimodal) - set(decoder)} for w in (merged, multimodal)))
    assert not torch.equal(merged["model.embed_tokens.weight"], multimodal["model.embed_tokens.weight"])
    assert not (tmp_path / "ours" / "mergekit").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").config.vision_tower
    report = verify(tmp_path / "ours", read_plan(tmp_path / "plan.yaml"))
    assert report == {"tensors": len(merged), "different": [], "missing": [], "extra": []}
    plan["parameters"]["t"] = 0.5
    (tmp_path / "another.yaml").write_text(yaml.safe_dump(plan))
    report = verify(tmp_path / "ours", read_plan(tmp_path / "another.yaml"))
    assert {row["name"] for row in report["different"]} == {name for name in decoder if "norm" not in name}
    report = verify(tmp_path / "theirs", read_plan(tmp_path / "plan.yaml"))
    assert (report["different"], report["missing"]) == ([], sorted(set(multimodal) - set(theirs)))


def test_every_shipped_plan_is_tested():
    assert {path.name for path in PLANS.glob("*.yaml")} == {path.name for path in MERGE_CONFIGS} | {*OTHER_PLANS}


@pytest.mark.parametrize("name", OTHER_PLANS)
def test_shipped_plans_of_other_methods(tmp_path, monkeypatch, multimodal_checkpoint, language_checkpoint, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(multimodal_checkpoint, "runs/demo/multimodal")
    shutil.copytree(language_checkpoint, "runs/demo/language")
    plan = read_plan(PLANS / name)
    merge(plan, Path("ours"))
    merged, multimodal = load(Path("ours")), load(Path("runs/demo/multimodal"))
    theirs = mergekit(yaml.safe_load((PLANS / name).read_text()), tmp_path / "theirs")
    assert_same({name: merged[name] for name in theirs}, theirs)
    assert_same(*({n: w[n] for n in set(multimodal) - set(theirs)} for w in (merged, multimodal)))
    assert any("layers" in name and not torch.equal(merged[name], multimodal[name]) for name in theirs)
    assert verify("ours", plan)["different"] == []
    AutoModelForCausalLM.from_pretrained("ours")


def add_tensor(folder: str, target: Path, name: str) -> Path:
    """A copy of a checkpoint with a tensor that mergekit's definition of the architecture does not know."""
    shutil.copytree(folder, target)
    save_file(load_file(target / "model.safetensors") | {name: torch.arange(3.0)}, target / "model.safetensors")
    return target


def test_what_mergekit_leaves_out_is_copied_from_the_base(tmp_path, caplog, llamas):
    first, _, third = llamas["float32", True]
    base = add_tensor(first, tmp_path / "base", "model.extra")
    plan = slerp(base, Path(third))
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert "model.extra" not in mergekit(plan, tmp_path / "theirs")
    merge(read_plan(tmp_path / "plan.yaml"), tmp_path / "ours")
    assert load(tmp_path / "ours")["model.extra"].tolist() == [0, 1, 2]
    assert "mergekit left out model.extra; copied as in the model that has it." in caplog.messages


def test_a_tensor_of_all_models_that_mergekit_leaves_out_is_an_error(tmp_path, llamas):
    first, _, third = llamas["float32", True]
    both = [add_tensor(path, tmp_path / name, "model.extra") for path, name in ((first, "one"), (third, "two"))]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(slerp(*both)))
    with pytest.raises(ValueError, match=r"mergekit left out the tensor model\.extra, which more than one model has"):
        merge(read_plan(tmp_path / "plan.yaml"), tmp_path / "out" / "ours")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_union_of_vocabularies_is_mergekits(tmp_path):
    first = save_llama(tmp_path / "first", 0, "float32")
    second = save_llama(tmp_path / "second", 1, "float32", words="second", rows=7)
    models = [{"model": path, "parameters": {"weight": 0.5}} for path in (first, second)]
    plan = {"merge_method": "linear", "base_model": first, "models": models, "tokenizer": {"source": "union"}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    merge(read_plan(tmp_path / "plan.yaml"), tmp_path / "ours")
    merged = load(tmp_path / "ours"), mergekit(plan, tmp_path / "theirs")
    words = [AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("ours", "theirs")]
    rows = [weights.pop("model.embed_tokens.weight") for weights in merged]
    assert set(words[0]) == set(words[1]) == {*WORDS["first"], *WORDS["second"]}
    assert all(
        torch.equal(rows[0][words[0][w]], rows[1][words[1][w]]) for w in words[0]
    )  # mergekit shuffles new tokens
    assert_same(*merged)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").config.vocab_size == len(words[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"merge_method": "slurp"}, "mergekit refuses the plan"), ({"parameters": {}}, "mergekit refuses the plan.* t ")],
)
def test_a_plan_that_mergekit_refuses_leaves_nothing(tmp_path, llamas, change, message):
    plan = slerp(*llamas["float32", True][:2]) | change
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(ValueError, match=message):
        merge(read_plan(tmp_path / "plan.yaml"), tmp_path / "out" / "ours")
    assert list((tmp_path / "out").iterdir()) == []


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_names_what_differs_is_missing_or_extra(tmp_path, llamas):
    plan_file, folder = tmp_path / "plan.yaml", tmp_path / "merged"
    plan_file.write_text(linear_plan_yaml(*llamas["bfloat16", True][:2], 0.3))
    merge(read_plan(plan_file), folder)
    assert verify(folder, read_plan(plan_file)) == {"tensors": 29, "different": [], "missing": [], "extra": []}

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].view(torch.int16)[3] += 1
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].float()
    weights["more"] = weights.pop("model.layers.1.input_layernorm.weight")
    save_file(weights, folder / "model.safetensors")
    assert verify(folder, read_plan(plan_file)) == {
        "tensors": 29,
        "different": [
            {
                "name": "model.layers.0.mlp.up_proj.weight",
                "reason": "it is float32 [24, 16], but the plan makes bfloat16 [24, 16]",
            },
            {"name": "model.norm.weight", "reason": "1 of 16 elements differ"},
        ],
        "missing": ["model.layers.1.input_layernorm.weight"],
        "extra": ["more"],
    }


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_verify_accepts_mergekits_merges_and_its_zeros_in_copies(tmp_path, llamas, alpha):
    (tmp_path / "plan.yaml").write_text(linear_plan_yaml(*llamas["float32", True][:2], alpha))
    plan = read_plan(tmp_path / "plan.yaml")
    merge(plan, tmp_path / "ours")
    theirs = mergekit(yaml.safe_load(plan.text), tmp_path / "theirs")
    assert verify(tmp_path / "theirs", plan)["different"] == []
    assert not any(negative_zeros(tensor) for tensor in theirs.values())
    assert any(negative_zeros(tensor) for tensor in load(tmp_path / "ours").values()) == (alpha == 1.0)


def negative_zeros(tensor: torch.Tensor) -> bool:
    return bool(((tensor == 0) & tensor.signbit()).any())
