"""The model that travels with a checkpoint: Auto classes, names, pictures, generation, processor, remote code.

Run: pytest tests/test_model.py
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitImageProcessor,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)

from babylm_vlm.model import BabylmVlmConfig, BabylmVlmForConditionalGeneration, BabylmVlmModel, BabylmVlmProcessor

PROJECTOR = {f"model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
CODE_FILES = {f"{kind}_babylm_vlm.py" for kind in ("configuration", "modeling", "processing")}
SENTENCES = ["the cat sat next to the tree", "a red ball", "who did the girl see under the blue table"]


def picture(seed: int) -> Image.Image:
    """28 x 28 random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8))


PICTURES = [picture(seed) for seed in range(3)]


@pytest.fixture(scope="session", params=[1, 2], ids=["g=1", "g=2"])
def eyes(request, tmp_path_factory, tiny_tokenizer, tiny_tower, decoder_fields):
    """A multimodal model with 1 or 4 visual tokens, its processor and its folder. Tests must not change it."""
    folder = tmp_path_factory.mktemp("eyes")
    torch.manual_seed(3)
    image_processor = BitImageProcessor.from_pretrained(tiny_tower)
    config = BabylmVlmConfig(
        vision_tower=str(tiny_tower),
        vision_hidden_size=16,
        vision_grid=request.param,
        image_token_id=tiny_tokenizer.convert_tokens_to_ids("<image>"),
        image_processor=image_processor.to_dict(),
        **decoder_fields,
    )
    BabylmVlmForConditionalGeneration(config).save_pretrained(folder)
    BabylmVlmProcessor(image_processor, tiny_tokenizer, visual_tokens=request.param**2).save_pretrained(folder)
    return SimpleNamespace(folder=folder, model=load(folder), processor=AutoProcessor.from_pretrained(folder))


def load(folder: Path) -> BabylmVlmForConditionalGeneration:
    return BabylmVlmForConditionalGeneration.from_pretrained(folder).eval()


def batch(processor, number: int | None = None, pictures: bool = True, side: str = "right"):
    """All sentences padded to one batch, or sentence `number` alone."""
    rows = slice(None) if number is None else slice(number, number + 1)
    images = PICTURES[rows] if pictures else None
    return processor(SENTENCES[rows], images=images, padding=True, padding_side=side, return_tensors="pt")


@torch.no_grad()
def logits_of(model, **inputs) -> torch.Tensor:
    return model(**inputs).logits


# --- configuration, Auto classes, names ------------------------------------------------------------------------------


def test_configuration_comes_back_as_it_was_saved(eyes):
    saved = json.loads((eyes.folder / "config.json").read_text())
    config = AutoConfig.from_pretrained(eyes.folder)
    assert type(config) is BabylmVlmConfig
    assert config.visual_tokens == config.vision_grid**2 == eyes.processor.visual_tokens
    assert (saved["hidden_size"], saved["tie_word_embeddings"]) == (config.hidden_size, True) == (32, True)
    assert saved["vision_tower"] == "./vision_tower" and saved["vision_hidden_size"] == 16
    again = BabylmVlmConfig.from_dict(config.to_dict())
    assert {**again.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}


def test_auto_map_names_classes_in_the_code_that_travels_along(eyes):
    auto_map = json.loads((eyes.folder / "config.json").read_text())["auto_map"]
    expected = {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoProcessor"}
    assert set(auto_map) == expected
    for reference in auto_map.values():
        file, name = reference.split(".")
        assert f"class {name}(" in (eyes.folder / f"{file}.py").read_text()
    assert {path.name for path in eyes.folder.glob("*.py")} == CODE_FILES


def test_auto_classes_give_model_processor_and_bare_body(eyes):
    inputs = batch(eyes.processor, 0)
    expected = logits_of(eyes.model, **inputs)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        model = auto.from_pretrained(eyes.folder).eval()
        assert type(model) is BabylmVlmForConditionalGeneration
        assert torch.equal(logits_of(model, **inputs), expected)
    body = AutoModel.from_pretrained(eyes.folder).eval()
    with torch.no_grad():
        output = body(**inputs)
    assert type(body) is BabylmVlmModel and "logits" not in output
    torch.testing.assert_close(eyes.model.lm_head(output.last_hidden_state), expected)
    assert type(eyes.processor) is BabylmVlmProcessor


def test_parameters_are_those_of_a_plain_llama_and_the_projector(eyes, decoder_fields):
    llama = LlamaForCausalLM(LlamaConfig(**decoder_fields))
    shapes = {name: tensor.shape for name, tensor in eyes.model.state_dict().items()}
    plain = {name: tensor.shape for name, tensor in llama.state_dict().items()}
    assert set(shapes) == set(plain) | PROJECTOR
    assert {name: shapes[name] for name in plain} == plain
    eyes.model.pooled_features(batch(eyes.processor)["pixel_values"])  # the tower is loaded now
    assert set(eyes.model.state_dict()) == set(shapes)
    assert set(load_file(eyes.folder / "model.safetensors")) == set(shapes) - {"lm_head.weight"}


def test_a_plain_llama_reads_the_checkpoint_with_closed_eyes(eyes):
    blind = LlamaForCausalLM.from_pretrained(eyes.folder).eval()
    inputs = batch(eyes.processor, pictures=False)
    assert torch.equal(logits_of(blind, **inputs), logits_of(eyes.model, **inputs))


def test_weights_are_tied(eyes):
    assert eyes.model.lm_head.weight is eyes.model.get_input_embeddings().weight


# --- logits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_the_logits_of_single_sentences(eyes, side, pictures):
    padded = batch(eyes.processor, pictures=pictures, side=side)
    together = logits_of(eyes.model, **padded)
    for number, mask in enumerate(padded["attention_mask"].bool()):
        alone = logits_of(eyes.model, **batch(eyes.processor, number, pictures))
        torch.testing.assert_close(together[number, mask], alone[0], atol=1e-5, rtol=1e-5)


def test_pictures_change_the_logits_of_their_own_row_only(eyes):
    inputs = batch(eyes.processor)
    before = logits_of(eyes.model, **inputs)
    inputs["pixel_values"][1] = -inputs["pixel_values"][1]
    changed = (logits_of(eyes.model, **inputs) - before).abs().amax(dim=(1, 2)) > 1e-4
    assert changed.tolist() == [False, True, False]


def test_pooled_features_stand_in_for_pixels(eyes):
    inputs = batch(eyes.processor)
    expected = logits_of(eyes.model, **inputs)
    features = eyes.model.pooled_features(inputs.pop("pixel_values"))
    assert features.shape == (3, eyes.model.config.visual_tokens, 16)
    assert torch.equal(logits_of(eyes.model, **inputs, image_features=features), expected)


def test_several_pictures_fill_the_image_tokens_in_reading_order(eyes):
    inputs = eyes.processor("<image> next to <image> tree", images=PICTURES[:2], return_tensors="pt")
    one, two = eyes.model.pooled_features(inputs["pixel_values"])
    is_image = inputs["input_ids"][0] == eyes.model.config.image_token_id
    with torch.no_grad():
        embeddings = eyes.model.get_input_embeddings()(inputs["input_ids"])
        embeddings[0, is_image] = eyes.model.model.multi_modal_projector(torch.cat([one, two]))
        expected = eyes.model(inputs_embeds=embeddings).logits
    torch.testing.assert_close(logits_of(eyes.model, **inputs), expected)


def test_features_are_the_mean_of_the_patches_of_the_chosen_layer(eyes, tiny_tower):
    pixels = torch.randn(2, 3, 56, 84, generator=torch.Generator().manual_seed(0))  # 4 rows of 6 patches
    with torch.no_grad():
        hidden = Dinov2Model.from_pretrained(tiny_tower).eval()(pixels, output_hidden_states=True).hidden_states
    patches = hidden[-2][:, 1:].reshape(2, 4, 6, 16)  # without CLS, row by row
    if eyes.model.config.vision_grid == 1:
        expected = [patches.mean(dim=(1, 2))]
    else:
        halves = [(rows, columns) for rows in (slice(0, 2), slice(2, 4)) for columns in (slice(0, 3), slice(3, 6))]
        expected = [patches[:, rows, columns].mean(dim=(1, 2)) for rows, columns in halves]
    pooled = eyes.model.pooled_features(pixels)
    torch.testing.assert_close(pooled, torch.stack(expected, dim=1), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(pooled, hidden[-1][:, 1:].mean(dim=1, keepdim=True), atol=1e-3)


@pytest.mark.parametrize(
    ("tower_class", "tower_config", "prefix"),
    [(Dinov2WithRegistersModel, Dinov2WithRegistersConfig, 1 + 4), (ViTModel, ViTConfig, 1)],
    ids=["registers", "vit"],
)
def test_other_towers_pool_patches_without_their_prefix(tmp_path, decoder_fields, tower_class, tower_config, prefix):
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    tower = tower_class(tower_config(**size, image_size=28, patch_size=14)).eval()
    tower.save_pretrained(tmp_path)
    config = BabylmVlmConfig(
        vision_tower=str(tmp_path), vision_hidden_size=8, vision_feature_layer=-1, image_token_id=3, **decoder_fields
    )
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = tower(pixels, output_hidden_states=True).hidden_states[-1][:, prefix:]
    assert patches.shape[1] == 4
    pooled = BabylmVlmForConditionalGeneration(config).pooled_features(pixels)
    torch.testing.assert_close(pooled, patches.mean(dim=1, keepdim=True))


def test_half_precision_runs_pictures(eyes):
    model = load(eyes.folder).to(torch.bfloat16)
    inputs = batch(eyes.processor)
    logits = logits_of(model, **inputs)
    assert logits.dtype == torch.bfloat16
    difference = (logits.float().softmax(-1) - logits_of(eyes.model, **inputs).softmax(-1)).abs()
    assert difference[inputs["attention_mask"].bool()].mean() < 0.01


# --- pictures whose text has no <image> token ------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_pictures_without_image_tokens_are_put_after_bos(eyes, side):
    plain = batch(eyes.processor, pictures=False, side=side)
    explicit = batch(eyes.processor, side=side)
    labels, explicit_labels = (x["input_ids"].masked_fill(x["attention_mask"] == 0, -100) for x in (plain, explicit))
    pixels = explicit["pixel_values"]
    with torch.no_grad():
        inserted = eyes.model(**plain, pixel_values=pixels, labels=labels)
        expected = eyes.model(**explicit, labels=explicit_labels)
    length = plain["input_ids"].shape[1]
    assert inserted.logits.shape[1] == length + eyes.model.config.visual_tokens
    for number in range(len(SENTENCES)):  # padding may lie elsewhere: compare what predicts real tokens
        tokens = int(plain["attention_mask"][number].sum())
        sliced = inserted.logits[:, -length:][number]
        sliced = sliced[-tokens:] if side == "left" else sliced[:tokens]
        theirs = expected.logits[number, explicit["attention_mask"][number].bool()][-tokens:]
        torch.testing.assert_close(sliced, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inserted.loss, expected.loss)


def test_image_tokens_go_first_where_there_is_no_bos(eyes):
    ids = eyes.processor("a red ball", add_special_tokens=False, return_tensors="pt")["input_ids"]
    image_tokens = torch.full((1, eyes.model.config.visual_tokens), eyes.model.config.image_token_id)
    pixels = batch(eyes.processor, 0)["pixel_values"]
    expected = logits_of(eyes.model, input_ids=torch.cat([image_tokens, ids], dim=1), pixel_values=pixels)
    assert torch.equal(logits_of(eyes.model, input_ids=ids, pixel_values=pixels), expected)


def test_the_bare_body_puts_pictures_in_too(eyes):
    plain, explicit = batch(eyes.processor, 0, pictures=False), batch(eyes.processor, 0)
    with torch.no_grad():
        inserted = eyes.model.model(**plain, pixel_values=explicit["pixel_values"]).last_hidden_state
        expected = eyes.model.model(**explicit).last_hidden_state
    assert torch.equal(inserted, expected)


# --- wrong inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a <image> ball", "<image> <image> <image> ball"], ids=["too few", "too many"])
def test_image_tokens_and_pictures_must_agree(eyes, text):
    pixels = batch(eyes.processor)["pixel_values"][:2]
    inputs = eyes.processor(text, return_tensors="pt")
    count, g2 = text.count("<image>") * eyes.model.config.visual_tokens, eyes.model.config.visual_tokens
    with pytest.raises(ValueError, match=rf"has {count} <image> tokens, but 2 pictures need {2 * g2} \({g2} each\)"):
        eyes.model(**inputs, pixel_values=pixels)


@pytest.mark.parametrize("shape", [(3, 16), (3, 9, 16), (3, 1, 15), (3, 4, 15)], ids=str)
def test_features_of_another_shape_are_refused(eyes, shape):
    inputs = batch(eyes.processor)
    inputs.pop("pixel_values")
    with pytest.raises(ValueError, match=r"image_features must have the shape \(pictures, \d, 16\), but they have"):
        eyes.model(**inputs, image_features=torch.zeros(shape))


def test_missing_tower_is_named_and_all_else_works(eyes, tmp_path):
    folder = tmp_path / "lost"
    shutil.copytree(eyes.folder, folder, ignore=shutil.ignore_patterns("vision_tower"))
    model, inputs = load(folder), batch(eyes.processor)
    with pytest.raises(FileNotFoundError, match=r"copy the folder vision_tower/ .* or pass image_features"):
        model(**inputs)
    expected = logits_of(eyes.model, **inputs)
    features = eyes.model.pooled_features(inputs.pop("pixel_values"))
    assert torch.equal(logits_of(model, **inputs, image_features=features), expected)
    text = batch(eyes.processor, pictures=False)
    assert torch.equal(logits_of(model, **text), logits_of(eyes.model, **text))
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits_of(load(tmp_path / "saved"), **inputs, image_features=features), expected)


# --- generation ------------------------------------------------------------------------------------------------------

GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def continuation(model, inputs, **options) -> list[list[int]]:
    return model.generate(**inputs, **GREEDY, **options)[:, -6:].tolist()


def greedy_by_hand(model, inputs) -> list[int]:
    """Six times the most probable token that is not EOS, with no cache."""
    ids, rest = inputs["input_ids"], {key: value for key, value in inputs.items() if "pi" in key}
    for _ in range(6):
        logits = logits_of(model, input_ids=ids, **rest)[:, -1]
        logits[:, model.config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids[0, -6:].tolist()


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text"])
def test_generation_is_greedy_and_independent_of_batch_padding_and_cache(eyes, pictures):
    singles = [batch(eyes.processor, number, pictures) for number in range(3)]
    expected = [greedy_by_hand(eyes.model, single) for single in singles]
    assert [continuation(eyes.model, single)[0] for single in singles] == expected
    for side in ("left", "right"):
        assert continuation(eyes.model, batch(eyes.processor, None, pictures, side)) == expected
    assert continuation(eyes.model, batch(eyes.processor, None, pictures), use_cache=False) == expected


def test_generation_puts_missing_image_tokens_in(eyes):
    plain, explicit = batch(eyes.processor, pictures=False), batch(eyes.processor)
    assert continuation(eyes.model, {**plain, "pixel_values": explicit["pixel_values"]}) == continuation(
        eyes.model, explicit
    )


def test_generation_depends_on_the_picture(eyes):
    inputs = batch(eyes.processor, 0)
    other = {**inputs, "pixel_values": -3 * inputs["pixel_values"]}
    assert continuation(eyes.model, inputs) != continuation(eyes.model, other)


def test_generation_takes_pooled_features(eyes):
    inputs = batch(eyes.processor)
    expected = continuation(eyes.model, inputs)
    features = eyes.model.pooled_features(inputs.pop("pixel_values"))
    assert continuation(eyes.model, {**inputs, "image_features": features}) == expected


def test_every_beam_sees_all_pictures_of_its_row(eyes):
    texts = ["<image> next to <image>", "<image> the"]
    torch.manual_seed(0)
    features = 3 * torch.randn(3, eyes.model.config.visual_tokens, 16)
    inputs = eyes.processor.tokenizer(
        [t.replace("<image>", "<image>" * features.shape[1]) for t in texts], padding=True
    )
    inputs = {key: torch.tensor(inputs[key]) for key in ("input_ids", "attention_mask")}
    keys = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 3, "length_penalty": 0.0}
    keys |= {"return_dict_in_generate": True, "output_scores": True}
    found = eyes.model.generate(**inputs, image_features=features, **keys)
    start = found.sequences.shape[1] - 4
    mask = torch.cat([inputs["attention_mask"].sort(dim=1).values, torch.ones(2, 4, dtype=torch.long)], dim=1)
    logits = logits_of(eyes.model, input_ids=found.sequences, attention_mask=mask, image_features=features)
    scores = logits[:, start - 1 : -1].log_softmax(-1).gather(2, found.sequences[:, start:, None]).sum(dim=(1, 2))
    torch.testing.assert_close(found.sequences_scores, scores, atol=1e-4, rtol=1e-4)


# --- saving, resizing ------------------------------------------------------------------------------------------------


def test_saving_takes_the_tower_along(eyes, tmp_path):
    eyes_copy = load(eyes.folder)
    eyes_copy.save_pretrained(tmp_path / "saved")
    eyes.processor.save_pretrained(tmp_path / "saved")
    assert eyes_copy.config.vision_tower == "./vision_tower"
    tower = {path.name for path in (eyes.folder / "vision_tower").iterdir()}
    assert {path.name for path in (tmp_path / "saved" / "vision_tower").iterdir()} == tower
    assert tower >= {"config.json", "model.safetensors", "preprocessor_config.json"}
    shutil.move(tmp_path / "saved", tmp_path / "moved")  # the reference is to the folder beside the weights
    inputs = batch(AutoProcessor.from_pretrained(tmp_path / "moved"))
    assert torch.equal(logits_of(load(tmp_path / "moved"), **inputs), logits_of(eyes.model, **inputs))


def test_saving_over_itself_keeps_the_tower(eyes, tmp_path):
    folder = tmp_path / "self"
    shutil.copytree(eyes.folder, folder)
    load(folder).save_pretrained(folder)
    inputs = batch(eyes.processor)
    assert torch.equal(logits_of(load(folder), **inputs), logits_of(eyes.model, **inputs))


def test_a_tower_on_the_hub_is_named_and_not_copied(tmp_path, decoder_fields):
    config = BabylmVlmConfig(vision_tower="someone/tower", vision_tower_revision="v1", **decoder_fields)
    BabylmVlmForConditionalGeneration(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["vision_tower"], saved["vision_tower_revision"]) == ("someone/tower", "v1")
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_the_vocabulary_can_grow(eyes, tmp_path):
    model, inputs = load(eyes.folder), batch(eyes.processor)
    old = model.config.vocab_size
    expected = logits_of(model, **inputs)
    model.resize_token_embeddings(old + 8)
    grown = logits_of(model, **inputs)
    assert grown.shape[-1] == model.config.vocab_size == old + 8
    torch.testing.assert_close(grown[..., :old], expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(load(tmp_path), **inputs), grown)


# --- training --------------------------------------------------------------------------------------------------------


def labelled(processor):
    inputs = batch(processor)
    return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}


def test_loss_is_the_cross_entropy_of_the_words(eyes):
    inputs = labelled(eyes.processor)
    with torch.no_grad():
        output = eyes.model(**inputs)
    targets = inputs["labels"].masked_fill(inputs["labels"] == eyes.model.config.image_token_id, -100)
    expected = cross_entropy(output.logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    assert (inputs["labels"] == eyes.model.config.image_token_id).any()  # the caller's labels are left as they were


def test_gradient_reaches_projector_and_decoder_but_not_the_tower(eyes):
    model = load(eyes.folder).train()
    model(**labelled(eyes.processor)).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    tower = list(model.model.vision_tower().parameters())
    assert tower and not any(p.requires_grad for p in tower) and all(p.grad is None for p in tower)
    assert not {id(p) for p in tower} & {id(p) for p in model.parameters()}


def test_trainer_finds_labels_and_pictures(eyes, tmp_path):
    inputs = labelled(eyes.processor)
    inputs["labels"].masked_fill_(
        inputs["input_ids"] == eyes.model.config.image_token_id, -100
    )  # Trainer counts targets
    rows = [{name: tensor[number] for name, tensor in inputs.items()} for number in range(3)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        per_device_eval_batch_size=3,
        prediction_loss_only=True,
    )
    metrics = Trainer(model=load(eyes.folder), args=arguments, eval_dataset=rows).evaluate()
    with torch.no_grad():
        assert metrics["eval_loss"] == pytest.approx(eyes.model(**inputs).loss.item(), abs=1e-4)


# --- processor -------------------------------------------------------------------------------------------------------


def test_a_sentence_comes_first_and_gives_flat_lists(eyes):
    encoding = eyes.processor("the cat", return_offsets_mapping=True)
    assert set(encoding) == {"input_ids", "attention_mask", "offset_mapping"}  # no token_type_ids
    tokens = eyes.processor.tokenizer.convert_ids_to_tokens(encoding["input_ids"])
    assert tokens[0] == "<s>" and "</s>" not in tokens
    assert encoding["offset_mapping"][0] == (0, 0) and encoding["offset_mapping"][-1][1] == len("the cat")
    assert eyes.processor(text="the cat")["input_ids"] == encoding.input_ids
    assert eyes.processor.decode(encoding.input_ids, skip_special_tokens=True).strip() == "the cat"


def test_words_are_the_same_tokens_with_and_without_a_leading_space(eyes):
    assert eyes.processor("cat")["input_ids"] == eyes.processor(" cat")["input_ids"]


def test_batches_of_sentences_and_of_sentence_pairs(eyes):
    sentences = eyes.processor(["the cat", "a"], padding=True, return_tensors="pt").to("cpu")
    assert sentences.input_ids.shape == sentences.attention_mask.shape == (2, 3)
    one, two = (eyes.processor(text)["input_ids"] for text in ("the cat", "a ball"))
    assert eyes.processor([("the cat", "a ball")])["input_ids"] == [[*one, *two]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_can_be_chosen_when_loading(eyes, side):
    processor = AutoProcessor.from_pretrained(eyes.folder, padding_side=side, revision=None, trust_remote_code=True)
    mask = processor(["the cat", "a"], padding=True)["attention_mask"][1]
    assert mask == ([0, 1, 1] if side == "left" else [1, 1, 0])


def test_pictures_alone_single_listed_and_nested(eyes):
    one = eyes.processor(images=PICTURES[0], return_tensors="pt")
    assert set(one) == {"pixel_values"} and one["pixel_values"].shape == (1, 3, 28, 28)
    assert eyes.processor(images=PICTURES, return_tensors="pt")["pixel_values"].shape == (3, 3, 28, 28)
    nested = eyes.processor(["a", "b and c"], images=[[PICTURES[0]], PICTURES[1:]], padding=True, return_tensors="pt")
    listed = eyes.processor(images=PICTURES, return_tensors="pt")
    assert torch.equal(nested["pixel_values"], listed["pixel_values"])
    counts = (nested["input_ids"] == eyes.model.config.image_token_id).sum(dim=1)
    assert counts.tolist() == [eyes.processor.visual_tokens, 2 * eyes.processor.visual_tokens]


def test_pixel_values_without_return_tensors_are_an_array_with_a_batch_dimension(eyes):
    encoding = eyes.processor(text="a cat", images=PICTURES[0])
    assert isinstance(encoding["input_ids"][0], int)
    assert isinstance(encoding["pixel_values"], np.ndarray) and encoding["pixel_values"].shape == (1, 3, 28, 28)
    expected = eyes.processor(text="a cat", images=PICTURES[0], return_tensors="pt")["pixel_values"]
    assert torch.equal(torch.FloatTensor(encoding["pixel_values"]), expected)


def test_a_prompt_is_the_same_with_and_without_its_image_token(eyes):
    ids = [eyes.processor(text, images=PICTURES[0])["input_ids"] for text in ("cat", " cat", "<image> cat")]
    assert ids[0] == ids[1] == ids[2]
    plain = eyes.processor("cat")["input_ids"]
    image_tokens = [eyes.model.config.image_token_id] * eyes.model.config.visual_tokens
    assert ids[0] == [plain[0], *image_tokens, *plain[1:]]
    assert eyes.processor("<image> cat")["input_ids"] == ids[0]  # for pooled features


def test_texts_and_pictures_must_agree_in_number(eyes):
    with pytest.raises(ValueError, match=r"Text 1 has 2 <image> tokens but 1 pictures: '<image> or <image>'"):
        eyes.processor(["a", "<image> or <image>"], images=PICTURES[:2])
    with pytest.raises(ValueError, match="There are 2 texts but pictures for 3"):
        eyes.processor(["a", "b"], images=PICTURES)


def test_processor_comes_back_as_it_was_saved(eyes, tmp_path):
    eyes.processor.save_pretrained(tmp_path)
    again = BabylmVlmProcessor.from_pretrained(tmp_path)
    assert again.visual_tokens == eyes.processor.visual_tokens
    before, after = (
        processor("a cat", images=PICTURES[0], return_tensors="pt") for processor in (eyes.processor, again)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_processor_files_the_configuration_says_how_pictures_are_read(eyes, tmp_path):
    folder = tmp_path / "merged"
    lost = shutil.ignore_patterns("processor_config.json", "preprocessor_config.json", "vision_tower")
    shutil.copytree(eyes.folder, folder, ignore=lost)
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    assert type(processor) is BabylmVlmProcessor and processor.tokenizer.padding_side == "left"
    before, after = (p("a cat", images=PICTURES[0], return_tensors="pt") for p in (eyes.processor, processor))
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- remote code -----------------------------------------------------------------------------------------------------

REMOTE_SCRIPT = """
import sys
sys.modules["babylm_vlm"] = None  # it cannot be imported
import numpy, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
source, target, answers = sys.argv[1:]
trust = {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(source, **trust)
pixels = [numpy.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=numpy.uint8) for seed in (0, 1)]
given = {"text": ["the cat sat next to the tree", "a red ball"], "images": [Image.fromarray(p) for p in pixels]}
inputs = processor(**given, padding=True, return_tensors="pt")
config = AutoConfig.from_pretrained(source, **trust)
models = {auto.__name__: auto.from_pretrained(source, use_safetensors=True, **trust).eval()
          for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText)}
for thing in (processor, config, *models.values()):
    assert type(thing).__module__.startswith("transformers_modules"), type(thing)
model = models["AutoModelForCausalLM"]
with torch.no_grad():
    saved = {"logits": model(**inputs).logits, "other": models["AutoModelForImageTextToText"](**inputs).logits,
             "body": models["AutoModel"](**inputs).last_hidden_state}
saved["text"] = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
save_file({name: tensor.contiguous() for name, tensor in saved.items()}, answers)
model.save_pretrained(target)
processor.save_pretrained(target)
again = AutoModelForCausalLM.from_pretrained(target, **trust).eval()
reread = AutoProcessor.from_pretrained(target, **trust)(**given, padding=True, return_tensors="pt")
with torch.no_grad():
    assert torch.equal(again(**reread).logits, saved["logits"])
"""


@pytest.mark.parametrize("eyes", [2], indirect=True, ids=["g=2"])
def test_code_from_the_checkpoint_does_the_same_without_the_package(eyes, tmp_path):
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_MODULES_CACHE": str(tmp_path / "hf" / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    target, answers = tmp_path / "again", tmp_path / "answers.safetensors"
    command = [sys.executable, "-c", REMOTE_SCRIPT, str(eyes.folder), str(target), str(answers)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    theirs = load_file(answers)
    inputs = eyes.processor(SENTENCES[:2], images=PICTURES[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = {"logits": eyes.model(**inputs).logits, "body": eyes.model.model(**inputs).last_hidden_state}
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], atol=1e-6, rtol=0)
    assert torch.equal(theirs["other"], theirs["logits"])
    assert torch.equal(theirs["text"], eyes.model.generate(**inputs, **GREEDY))

    assert {path.name for path in target.glob("*.py")} == CODE_FILES
    for name in CODE_FILES:
        assert (target / name).read_text() == (eyes.folder / name).read_text()
    assert torch.equal(logits_of(load(target), **inputs), ours["logits"])
