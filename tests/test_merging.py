"""Merging: exactness, agreement with mergekit bit for bit, complete output, clear errors.

Run: pytest tests/test_merging.py
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_weights import (
    DTYPES,
    EMBED,
    NORM,
    PROJECTOR,
    assert_same,
    linear_plan,
    same_bits,
    tensors,
    write_checkpoint,
    write_plan,
)

from babylm_vlm.merging import interpolate, linear_plan_yaml, merge, read_plan
from babylm_vlm.merging.weights import StoredTensor

PLANS = Path(__file__).parent.parent / "merge_configs"
MERGE_CONFIGS = [PLANS / f"{name}.yaml" for name in ("attention", "embeddings", "layers", "linear")]


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two tiny checkpoints, in `multimodal/` and `language/` of the current folder."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "multimodal", tensors(1, projector=True))
    write_checkpoint(tmp_path / "language", tensors(2))
    return tmp_path


def hashes_of(plan, output: str) -> dict[Path, str]:
    """The hashes that a merge finishes with."""
    found = {}
    merge(plan, output, finish=lambda _folder, hashes: found.update(hashes))
    return found


# --- the plan --------------------------------------------------------------------------------------------------------


def test_filters_mean_what_they_mean_in_mergekit(pair):
    Path("plan.yaml").write_text("""
merge_method: linear
base_model: ./multimodal
models:
  - model: ./multimodal
    parameters:
      weight:
        - {filter: projector, value: 1.0}
        - {filter: norm, value: 0.25}
        - {filter: model.norm, value: 0.9}
        - {value: 0.5}
        - {filter: embed, value: 0.1}
  - model: ./language
    parameters: {weight: 1e-05}
""")
    multimodal, language = read_plan("plan.yaml").sources
    assert [multimodal.weight(name) for name in (PROJECTOR, NORM, EMBED)] == [1.0, 0.25, 0.5]
    assert language.weight(NORM) == 1e-05  # YAML reads this number as a string


@settings(max_examples=50, deadline=None)
@given(alpha=st.floats(0, 1))
def test_weights_of_a_written_plan_read_back_as_the_same_floats(alpha):
    first, second = yaml.safe_load(linear_plan_yaml("./a", "./b", alpha))["models"]
    read = [float(model["parameters"]["weight"][-1]["value"]) for model in (first, second)]
    assert read == [alpha, 1 - alpha]


def test_written_plan_is_the_shipped_plan():
    shipped = yaml.safe_load((PLANS / "linear.yaml").read_text())
    assert yaml.safe_load(linear_plan_yaml("./runs/demo/multimodal", "./runs/demo/language", 0.5)) == shipped


def test_normalize_and_dtypes(pair):
    text = linear_plan_yaml("multimodal", "language", 0.5).replace("value: 0.5", "value: 1.5")
    multimodal, language = tensors(1, projector=True), tensors(2)
    merge(read_plan(write_plan(text)), Path("normalized"))
    merge(read_plan(write_plan(text.replace("normalize: true", "normalize: false"))), Path("raw"))
    merge(read_plan(write_plan(text + "out_dtype: bfloat16\n")), Path("bf16"))

    raw, normalized = (load_file(f"{name}/model.safetensors") for name in ("raw", "normalized"))
    torch.testing.assert_close(raw[NORM], 1.5 * multimodal[NORM] + 1.5 * language[NORM])
    torch.testing.assert_close(normalized[NORM], (multimodal[NORM] + language[NORM]) / 2)
    assert_same(load_file("bf16/model.safetensors"), {name: t.bfloat16() for name, t in normalized.items()})
    assert json.loads(Path("bf16/config.json").read_text())["dtype"] == "bfloat16"


GOOD = linear_plan_yaml("./multimodal", "./language", 0.5)
BAD_PLANS = {
    "merge_method: [": "is not a YAML file",
    "- 1": "the plan must be a mapping",
    GOOD.replace("merge_method: linear", "merge_method: [linear]"): "must name a method",
    GOOD.replace("models:", "slices:"): "slices are not merged here",
    GOOD + "tokenizer: {sauce: base}\n": "unknown key 'sauce'",
    GOOD + "tokenizer: {source: base}\ntokenizer_source: base\n": "keep one of them",
    GOOD.replace("normalize: true", "normalise: true"): "unknown key 'normalise'",
    GOOD.replace("normalize: true", "normalize: 2"): "must be true or false",
    GOOD.replace("base_model", "#"): "base_model is None",
    GOOD.replace("base_model: ", "base_model: x"): "which models does not list",
    GOOD.replace("./language", "./multimodal"): "twice",
    GOOD.replace(
        "./language", "./langauge"
    ): r"models\[1\].model names the checkpoint folder ./langauge, which is not",
    GOOD.replace("./language", "runs/langauge"): r"neither a checkpoint folder .*relative to the current folder",
    GOOD.replace("{value: 0.5}", "{value: half}"): "'half' is not a finite number",
    GOOD.replace("{value: 0.5}", "{valu: 0.5}"): "unknown key 'valu'",
    GOOD.replace("{value: 0.5}", "0.5"): "must be a mapping with the keys filter, value",
    GOOD.replace("{value: 0.5}", "{value: []}"): "is an empty list",
    GOOD + "dtype: int8\n": "dtype is 'int8'",
    GOOD[: GOOD.index("  - model")]: "models must be a list",
    GOOD.replace(
        "./language", "./language+./multimodal"
    ): "the adapter ./multimodal, which has no adapter_config.json",
}


@pytest.mark.parametrize("text", BAD_PLANS, ids=list(BAD_PLANS.values()))
def test_bad_plans_are_named(pair, text):
    with pytest.raises((ValueError, FileNotFoundError), match=BAD_PLANS[text]) as caught:
        read_plan(write_plan(text))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("plan.yaml")


def test_a_name_that_is_no_folder_is_fetched_from_the_hub(pair, monkeypatch):
    asked = []

    def snapshot_download(repo_id, revision=None, **_):
        asked.append((repo_id, revision))
        return str(pair / "multimodal")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    plan = read_plan(write_plan(linear_plan_yaml("someone/eyes@v1", "./language", 0.5)))
    assert asked == [("someone/eyes", "v1")]
    assert plan.base.folder == pair / "multimodal"


def test_missing_plan_is_named():
    with pytest.raises(FileNotFoundError, match=r"There is no merge plan nowhere\.yaml"):
        read_plan("nowhere.yaml")


# --- the checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [2, 3])
def test_sharded_input(pair, shards):
    write_checkpoint(pair / "sharded", tensors(1, projector=True), shards)
    merge(read_plan(write_plan(linear_plan_yaml("sharded", "language", 0.3))), Path("merged"))
    assert_same(load_file("merged/model.safetensors"), interpolate(tensors(1, projector=True), tensors(2), 0.3))
    assert not list(Path("merged").glob("*index*"))


@pytest.mark.parametrize("elements", [0, 10**9], ids=["with PyTorch", "without"])
def test_files_that_are_read_from_end_to_end_are_hashed_on_the_way(pair, monkeypatch, elements):
    for name, size in {"PYTORCH_PAYS": elements, "BLOCK": 10, "NUMPY_BLOCK": 10}.items():
        monkeypatch.setattr(f"babylm_vlm.merging.engine.{name}", size)
    write_checkpoint(pair / "sharded", tensors(1, projector=True), shards=3)
    plan = read_plan(write_plan(linear_plan_yaml("sharded", "language", 0.3)))
    files = [*sorted((pair / "sharded").glob("*.safetensors")), pair / "language" / "model.safetensors"]
    hashes = {file.resolve(): digest for file, digest in hashes_of(plan, "merged").items()}
    assert hashes == {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_files_that_are_not_read_whole_or_not_in_their_order_are_not_hashed_on_the_way(pair):
    file = Path("language/model.safetensors")
    named = load_file(file)
    end, header, data = 0, {}, b""
    for name in (NORM, EMBED):  # the library would write the second first
        bits = named[name].numpy().tobytes()
        place = [end, end := end + len(bits)]
        header[name] = {"dtype": "F32", "shape": list(named[name].shape), "data_offsets": place}
        data += bits
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    hashes = hashes_of(linear_plan(), "merged")
    assert [file.parent.name for file in hashes] == ["multimodal"]
    assert_same(load_file("merged/model.safetensors"), interpolate(tensors(1, projector=True), tensors(2), 0.3))
    everything_from_language = linear_plan_yaml("multimodal", "language", 0.3).replace("value: 0.3", "value: 0.0")
    plan = read_plan(write_plan(everything_from_language.replace("0.7", "1.0")))
    assert hashes_of(plan, "copied") == {}


def test_a_model_that_is_two_sources_is_read_twice_and_not_hashed_on_the_way(pair):
    write_checkpoint(pair / "one", {NORM: torch.ones(3)})
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("one", "./one")]
    plan = read_plan(write_plan(yaml.safe_dump({"merge_method": "linear", "models": models, "base_model": "one"})))
    assert hashes_of(plan, "merged") == {}
    assert_same(load_file("merged/model.safetensors"), {NORM: torch.ones(3)})


def test_matrices_of_zeros_say_nothing_of_a_common_ancestor(pair, caplog):
    for folder in ("multimodal", "language"):
        path = Path(folder, "model.safetensors")
        save_file(load_file(path) | {"model.layers.0.zeros": torch.zeros(3, 3)}, path)
    merge(linear_plan(), Path("merged"))
    assert "nan" not in caplog.text and "No common ancestor" in caplog.text


def test_nothing_is_dropped(pair):
    for folder, extra in (("multimodal", "model.extra.weight"), ("language", "model.other.weight")):
        path = Path(folder, "model.safetensors")
        weights = load_file(path)
        save_file(weights | {extra: torch.ones(2)}, path)
        with pytest.raises(ValueError, match=f"{extra} is in .*{folder} but not in"):
            merge(linear_plan(), Path("merged"))
        save_file(weights, path)
    assert not Path("merged").exists()


def test_tensor_of_the_other_model_is_copied_where_its_weight_is_one(pair):
    path = Path("language/model.safetensors")
    save_file(load_file(path) | {"lm_head.weight": torch.ones(2, 2)}, path)
    text = linear_plan_yaml("multimodal", "language", 0.3)
    text = text.replace("- {filter: multi_modal_projector, value: 0.0}", "- {filter: lm_head, value: 1.0}")
    merge(read_plan(write_plan(text)), Path("merged"))
    merged = load_file("merged/model.safetensors")
    assert torch.equal(merged["lm_head.weight"], torch.ones(2, 2)) and PROJECTOR in merged


def break_shape(folder: Path):
    save_file(tensors(2) | {EMBED: torch.ones(12, 7)}, folder / "model.safetensors")


def break_truncate(folder: Path):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-9])


def break_pickle(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_remove(folder: Path):
    (folder / "model.safetensors").unlink()


def break_shard(folder: Path):
    break_remove(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')


def break_index(folder: Path):
    break_remove(folder)
    (folder / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            break_shape,
            r"embed_tokens.* has the shape \(13, 7\) in .*multimodal and \(12, 7\) in .*language \(do the models",
        ),
        (break_truncate, "is no complete safetensors file"),
        (break_pickle, "pickled weights"),
        (break_remove, "has no weights"),
        (break_shard, "names the weights file model-00001-of-00001.safetensors, which is not there"),
        (break_index, "is not an index"),
    ],
)
def test_bad_weights_are_named_and_nothing_is_left(pair, damage, message):
    damage(pair / "language")
    before = sorted(pair.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        merge(linear_plan(), Path("merged"))
    assert sorted(path for path in pair.rglob("*") if path.name != "plan.yaml") == before


@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64], ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_everything_finite_is_merged_and_nothing_else(tmp_path, monkeypatch, dtype, sign):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "language", tensors(2, dtype))
    write_checkpoint(tmp_path / "multimodal", tensors(1, dtype))
    for value in (torch.finfo(dtype).max, torch.inf, torch.nan):
        one = torch.tensor(value, dtype=dtype).copysign(torch.tensor(sign, dtype=dtype))
        save_file(tensors(1, dtype) | {NORM: one.repeat(7)}, "multimodal/model.safetensors")
        if value == torch.finfo(dtype).max:
            merge(linear_plan(1.0), Path("merged"))
            assert same_bits(load_file("merged/model.safetensors")[NORM], one.repeat(7))
            continue
        with pytest.raises(ValueError, match=r"multimodal holds NaN or infinity in the tensor model\.norm\.weight"):
            merge(linear_plan(1.0), Path("bad"))


def test_a_block_that_cannot_be_read_ends_the_other_thread_too(pair, monkeypatch):
    monkeypatch.setattr("babylm_vlm.merging.engine.NUMPY_BLOCK", 10)
    read = StoredTensor.read

    def fail_at_thirty(self, first, count, block=None):
        if first == 30:
            time.sleep(0.1)  # the other thread now waits for its turn
            raise ValueError("no such block")
        return read(self, first, count, block)

    monkeypatch.setattr(StoredTensor, "read", fail_at_thirty)
    with pytest.raises(ValueError, match="no such block"):
        merge(linear_plan(), Path("merged"))
    assert not Path("merged").exists()


def test_an_error_halfway_leaves_nothing(pair):
    for place, folder in enumerate(("multimodal", "language")):
        path = pair / folder / "model.safetensors"
        save_file(load_file(path) | {"z.ids": torch.tensor([place])}, path)
    with pytest.raises(ValueError, match=r"z\.ids: The models hold different integers"):
        merge(linear_plan(), Path("out/merged"))
    assert list(Path("out").iterdir()) == []


def test_folder_without_config_is_named(pair):
    (pair / "language" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        linear_plan()


# --- the output folder -----------------------------------------------------------------------------------------------


def test_output_takes_over_everything_but_weights_and_training_state(pair):
    base = pair / "multimodal"
    kept = ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    kept += ["processor_config.json", "preprocessor_config.json", "modeling_babylm_vlm.py", "LICENSE"]
    left = ["README.md", "training_args.bin", "training_state.json", "trainer_state.json", "optimizer.pt"]
    for name in kept + left:
        (base / name).write_text("{}")
    for folder in ("vision_tower", "checkpoint-10", "optimizer", "chck_1M"):
        (base / folder).mkdir()
        (base / folder / "config.json").write_text("{}")
        save_file({"a": torch.ones(1)}, base / folder / "model.safetensors")
    plan = linear_plan()
    merge(plan, Path("out/merged"))

    expected = {*kept, "config.json", "model.safetensors", "mergekit_config.yml", "vision_tower"}
    assert {path.name for path in Path("out/merged").iterdir()} == expected
    assert {path.name for path in Path("out/merged/vision_tower").iterdir()} == {"config.json", "model.safetensors"}
    assert Path("out/merged/mergekit_config.yml").read_text() == Path("plan.yaml").read_text()
    with safe_open("out/merged/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert [path.name for path in Path("out").iterdir()] == ["merged"]
    assert Path("out/merged/model.safetensors").stat().st_mode == Path("plan.yaml").stat().st_mode


def test_an_existing_output_is_replaced_only_on_request(pair):
    merge(linear_plan(0.3), Path("merged"))
    Path("merged/stale.txt").touch()
    with pytest.raises(FileExistsError, match="merged exists"):
        merge(linear_plan(0.6), Path("merged"))
    merge(linear_plan(0.6), Path("merged"), overwrite=True)
    assert not Path("merged/stale.txt").exists()
    assert_same(load_file("merged/model.safetensors"), interpolate(tensors(1, projector=True), tensors(2), 0.6))

    break_shape(pair / "language")
    with pytest.raises(ValueError, match="has the shape"):
        merge(linear_plan(0.1), Path("merged"), overwrite=True)
    assert Path("merged/model.safetensors").is_file()


@pytest.mark.parametrize("output", ["language", "multimodal/merged", "."])
def test_output_never_touches_the_inputs(pair, output):
    with pytest.raises(ValueError, match="overlaps with the input"):
        merge(linear_plan(), Path(output), overwrite=True)


def test_overwrite_spares_what_is_no_merge(pair):
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").touch()
    with pytest.raises(FileExistsError, match="no earlier output"):
        merge(linear_plan(), Path("thesis"), overwrite=True)


def test_nothing_is_imported_before_it_is_needed():
    script = """
import sys
def assert_absent(*names): assert not set(names) & set(sys.modules), set(names) & set(sys.modules)
import babylm_vlm.cli
assert_absent("torch", "transformers", "huggingface_hub")
import babylm_vlm.merging
assert_absent("torch", "transformers", "mergekit", "peft")
from babylm_vlm import BabylmVlmConfig
from transformers import AutoConfig
assert type(AutoConfig.for_model("babylm_vlm")) is BabylmVlmConfig
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# --- real models, against mergekit -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplaces(tmp_path_factory):
    """One folder per dtype with `runs/demo/{multimodal,language}`, merged by us and by mergekit for every plan."""
    root = tmp_path_factory.mktemp("workplaces")
    for name, dtype in DTYPES.items():
        save_demo(root / name / "runs" / "demo", dtype)
    here = os.getcwd()
    try:
        for name in DTYPES:
            os.chdir(root / name)
            for config in MERGE_CONFIGS:
                merge(read_plan(config), Path("runs") / config.stem)
    finally:
        os.chdir(here)
    run_without_package(root, MERGEKIT_SCRIPT, *map(str, MERGE_CONFIGS))
    return root


def save_demo(folder: Path, dtype: torch.dtype) -> None:
    """A tiny multimodal checkpoint with a vision tower, and its language-only twin."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import (
        AutoImageProcessor,
        BitImageProcessor,
        Dinov2Config,
        Dinov2Model,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    from babylm_vlm.model import BabylmVlmConfig, BabylmVlmForConditionalGeneration, BabylmVlmProcessor

    vocabulary = ["<s>", "</s>", "<pad>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens={"image_token": "<image>"}, **special
    )
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    size |= {"tie_word_embeddings": True, "max_position_embeddings": 64}

    torch.manual_seed(0)
    tower = Dinov2Model(
        Dinov2Config(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    )
    tower.save_pretrained(folder.parent / "tower")
    pixels = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**pixels).save_pretrained(folder.parent / "tower")
    image_processor = AutoImageProcessor.from_pretrained(folder.parent / "tower")
    config = BabylmVlmConfig(
        vision_tower=str(folder.parent / "tower"),
        vision_hidden_size=12,
        image_token_id=3,
        image_processor=json.loads((folder.parent / "tower" / "preprocessor_config.json").read_text()),
        **size,
    )
    BabylmVlmForConditionalGeneration(config).to(dtype).save_pretrained(folder / "multimodal")
    BabylmVlmProcessor(image_processor, fast).save_pretrained(folder / "multimodal")
    LlamaForCausalLM(LlamaConfig(**size)).to(dtype).save_pretrained(folder / "language")
    fast.save_pretrained(folder / "language")


MERGEKIT_SCRIPT = """
import os
from pathlib import Path
from mergekit.architecture.auto import infer_architecture_info
from mergekit.io.tasks import LoaderCache
from mergekit.scripts.run_yaml import main
root = Path.cwd()
for place in sorted(path for path in root.iterdir() if path.name != "hf"):
    os.chdir(place)
    LoaderCache.loaders.clear()  # by path, and the paths are the same in every folder
    infer_architecture_info.cache_clear()
    for config in map(Path, sys.argv[1:]):
        main([str(config), f"runs/{config.stem}-mergekit", "--trust-remote-code", "--quiet"], standalone_mode=False)
"""

LOAD_SCRIPT = """
import numpy, torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor
for path in sys.argv[1:]:
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, use_safetensors=True)
    assert type(model).__name__ == "BabylmVlmForConditionalGeneration", type(model)
    assert type(model).__module__.startswith("transformers_modules")
    inputs = processor("a cat", return_tensors="pt")
    text = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert text.shape[1] > inputs["input_ids"].shape[1]
    pooled = torch.ones(1, 1, model.config.vision_hidden_size)
    seen = processor("<image> a cat", return_tensors="pt")
    logits = [model(**seen, image_features=features).logits for features in (pooled, -pooled)]
    assert not torch.equal(*logits)
    if not path.endswith("-mergekit"):
        picture = Image.fromarray(numpy.zeros((28, 28, 3), dtype=numpy.uint8))
        model.generate(**processor("a cat", images=picture, return_tensors="pt"), max_new_tokens=3)
    print("loaded", path)
"""


def run_without_package(folder: Path, script: str, *arguments: str) -> str:
    """Run a script in a fresh process where `babylm_vlm` cannot be imported; return what it prints."""
    environment = os.environ | {
        "HF_HOME": str(folder / "hf"),
        "HF_MODULES_CACHE": str(folder / "hf" / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", "import sys; sys.modules['babylm_vlm'] = None\n" + script, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("config", MERGE_CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_models_merge_as_mergekit_merges_them(workplaces, config, dtype):
    runs = workplaces / dtype / "runs"
    ours = load_file(runs / config.stem / "model.safetensors")
    assert_same(ours, load_file(runs / f"{config.stem}-mergekit" / "model.safetensors"))

    multimodal, language = (
        load_file(runs / "demo" / name / "model.safetensors") for name in ("multimodal", "language")
    )
    assert set(ours) == set(multimodal) > set(language)
    assert {tensor.dtype for tensor in ours.values()} == {DTYPES[dtype]}
    assert all(same_bits(ours[name], multimodal[name]) for name in multimodal if "projector" in name)
    matrices = [name for name in language if "norm" not in name]  # norms are all ones at the start
    kept = [name for name in matrices if same_bits(ours[name], multimodal[name])]
    assert kept == [name for name in matrices if config.stem == "attention" and "self_attn" not in name]
    taken = [name for name in matrices if same_bits(ours[name], language[name])]
    assert taken == [name for name in matrices if config.stem == "embeddings" and "embed_tokens" in name]


def test_both_merges_load_and_run_without_the_package(workplaces):
    outputs = [
        str(workplaces / dtype / "runs" / f"{config.stem}{suffix}")
        for dtype in ("float32", "bfloat16")
        for config in MERGE_CONFIGS
        for suffix in ("", "-mergekit")
    ]
    printed = run_without_package(workplaces, LOAD_SCRIPT, *outputs)
    assert "Do you wish to run the custom code" not in printed  # trust_remote_code=True must reach every part
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("loaded")] == outputs


def test_models_with_other_tokenizers_are_refused(pair):
    for name, vocabulary in (("multimodal", {"a": 0, "b": 1}), ("language", {"b": 0, "a": 1})):
        content = {"model": {"vocab": vocabulary}, "added_tokens": []}
        Path(name, "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="number their tokens differently"):
        merge(linear_plan(), Path("out"))
    assert not Path("out").exists()
