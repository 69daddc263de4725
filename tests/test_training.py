"""Training: recipes, data, finished checkpoints, seeds, and wrong inputs that leave nothing behind.

Run: pytest tests/test_training.py
"""

import gzip
import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LlamaForCausalLM, TrainingArguments

import babylm_vlm
from babylm_vlm.data import captions as captions_module
from babylm_vlm.data.captions import CaptionRows, read_captions
from babylm_vlm.data.packing import PackingCollator, pack
from babylm_vlm.data.text import TextBlocks, count_words, first_words, read_sentences
from babylm_vlm.data.tokenizer import train_tokenizer
from babylm_vlm.files import sha256
from babylm_vlm.model import BabylmVlmForConditionalGeneration
from babylm_vlm.training.recipe import make_recipe, parse_overrides, read_recipe, training_arguments
from babylm_vlm.training.record import plot_loss
from babylm_vlm.training.train import train

RECIPES = sorted((Path(babylm_vlm.__file__).parent / "recipes").glob("*.yaml"))
COLOURS = ["red", "green", "blue", "white"]
TEXT = [
    f"the {colour} {thing} is {place}" for colour in COLOURS for thing in ("cat", "ball") for place in ("big", "in")
]
TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "block_size": 16,
    "per_device_train_batch_size": 4,
    "learning_rate": 3.0e-3,
    "max_steps": 2,
    "disable_tqdm": True,
}


def write_text(path: Path, lines=TEXT) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_captions(folder: Path) -> Path:
    """Four pictures of one colour each, with a caption that names it."""
    folder.mkdir()
    rows = []
    for colour in COLOURS:
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
        rows.append({"file_name": f"{colour}.png", "text": f"the {colour} ball is big"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(output_dir: Path, overwrite: bool = False, **keys) -> dict:
    return train(make_recipe({**TINY, "output_dir": str(output_dir), **keys}, "the test"), overwrite)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A language run of one pass over the text: its folder."""
    root = tmp_path_factory.mktemp("language")
    run(root / "run", model="language", text=[str(write_text(root / "text.txt"))], max_steps=-1, num_train_epochs=1)
    return root / "run"


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    return write_captions(tmp_path_factory.mktemp("data") / "captions")


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory, language, captions, tiny_tower):
    """Keys of a multimodal recipe that continues the language run, and a run of it that learns nothing."""
    keys = {"model": "multimodal", "init_from": str(language), "captions": str(captions)}
    keys |= {"vision_tower": str(tiny_tower), "vision_feature_layer": -1}
    folder = tmp_path_factory.mktemp("multimodal") / "frozen"
    run(folder, **keys, learning_rate=0.0)
    return keys, folder


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_read(path):
    overrides = {"captions": "data/captions"} if "multimodal" in path.stem else {"text": ["a.txt"]}
    recipe = read_recipe(path, {} if path.stem.startswith("demo") else overrides)
    arguments = training_arguments(recipe, Path(recipe.output_dir))
    assert recipe.model == ("multimodal" if "multimodal" in path.stem else "language")
    assert arguments.learning_rate > 0 and arguments.seed == 0
    assert all(file.endswith((".txt", ".txt.gz")) for file in recipe.text)


def test_there_are_recipes():
    names = {path.stem for path in RECIPES}
    assert names >= {f"{place}_{kind}" for place in ("demo", "laptop", "paper") for kind in ("language", "multimodal")}
    assert names >= {"strict_small", "strict"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_keys_of_a_recipe_are_explained(path):
    lines = [line for line in path.read_text().splitlines() if line[:1].isalpha()]
    assert path.read_text().startswith("# ") and all(len(line) <= 119 for line in lines)
    assert any("#" in line for line in lines)


def test_keys_go_to_the_recipe_or_to_the_trainer_and_overrides_win(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("model: language\noutput_dir: out\ntext: a.txt\nlearning_rate: 1e-3\nblock_size: 64\n")
    recipe = read_recipe(file, parse_overrides(["block_size=32", "text=[b.txt, c.txt.gz]", "weight_decay=5e-2"]))
    assert (recipe.block_size, recipe.text, recipe.output_dir) == (32, ["b.txt", "c.txt.gz"], "out")
    assert recipe.training == {"learning_rate": 1e-3, "weight_decay": 0.05}  # YAML 1.1 reads 1e-3 as text
    assert training_arguments(recipe, tmp_path).learning_rate == 1e-3
    assert read_recipe(file).text == ["a.txt"]


COMPLETE = {"model": "language", "output_dir": "out", "text": ["a.txt"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rat": 1}, r"Unknown key 'learning_rat' in the test\. Did you mean 'learning_rate'\?"),
        ({"vision_towr": "x"}, r"Unknown key 'vision_towr' in the test\. Did you mean 'vision_tower'\?"),
        ({"training": {}}, r"Unknown key 'training' in the test\."),
        ({"model": None}, r"'model' must be 'language' or 'multimodal', not None"),
        ({"model": "vision"}, r"'model' must be 'language' or 'multimodal', not 'vision'"),
        ({"text": []}, "A language model needs 'text'"),
        ({"captions": "data"}, "A language model takes no 'captions'"),
        ({"model": "multimodal"}, "A multimodal model needs 'captions'"),
    ],
)
def test_contradictions_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_recipe({**COMPLETE, **change}, "the test")


@pytest.mark.parametrize("key", ["dataloader_drop_last", "auto_find_batch_size", "label_smoothing_factor"])
def test_keys_that_would_change_what_is_read_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match=f"'{key}' is not for these runs"):
        training_arguments(make_recipe({**COMPLETE, key: 1}, "the test"), tmp_path)


def test_several_gpus_need_a_launcher(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(
        ValueError, match=r"2 GPUs are visible, but only one process trains: use scripts/launch_one_node"
    ):
        training_arguments(make_recipe(COMPLETE, "the test"), tmp_path)


@pytest.mark.parametrize("key", ["model", "output_dir"])
def test_missing_keys_are_named(key):
    with pytest.raises(ValueError, match=f"The key '{key}' is missing in the test"):
        make_recipe({name: value for name, value in COMPLETE.items() if name != key}, "the test")


@pytest.mark.parametrize(
    ("text", "message"), [("model: [", "is not valid YAML"), ("- a", "must be a YAML mapping"), ("", "must be a YAML")]
)
def test_files_that_are_no_recipes_are_named(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"recipe\.yaml {message}"):
        read_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(FileNotFoundError, match=r"There is no recipe .*nowhere\.yaml"):
        read_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("pair", "message"), [("seed", "'seed' is not of the form key=value"), ("text=[", "The value of 'text' is not")]
)
def test_overrides_that_are_none_are_named(pair, message):
    with pytest.raises(ValueError, match=message):
        parse_overrides([pair])


def test_wrong_training_values_are_named(tmp_path):
    recipe = make_recipe({**COMPLETE, "lr_scheduler_type": "zigzag"}, "the test")
    with pytest.raises(ValueError, match=r"A training key of the recipe has a wrong value: .*zigzag"):
        training_arguments(recipe, tmp_path)


# --- data ------------------------------------------------------------------------------------------------------------


def test_sentences_and_words_of_plain_and_compressed_text(tmp_path):
    lines = ["the cat sat", "", "  Zażółć   gęślą jaźń ", "a"]
    plain = write_text(tmp_path / "a.txt", lines)
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    for source in (plain, tmp_path / "a.txt.gz"):
        sentences = read_sentences(str(source))
        assert sentences == ["the cat sat", "Zażółć   gęślą jaźń", "a"]
        assert count_words(sentences) == 7


def test_text_of_parquet_and_of_files_with_other_endings(tmp_path):
    rows = {"id": [1, 2, 3], "utterance": ["the cat sat\non the mat", None, " a dog "]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    sentences = ["the cat sat", "on the mat", "a dog"]
    assert read_sentences(str(tmp_path / "a.parquet"), "utterance") == sentences
    assert read_sentences(str(write_text(tmp_path / "bnc.train", sentences))) == sentences
    with gzip.open(tmp_path / "a.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(sentences))
    assert read_sentences(str(tmp_path / "a.gz")) == sentences
    for column in ("text", "id"):
        with pytest.raises(ValueError, match=rf"no column '{column}' of text: set 'text_column' to one of id, utter"):
            read_sentences(str(tmp_path / "a.parquet"), column)
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"The corpus .*b\.parquet cannot be read"):
        read_sentences(str(tmp_path / "b.parquet"))
    with pytest.raises(FileNotFoundError, match=r"There is no text file .*c\.parquet"):
        read_sentences(str(tmp_path / "c.parquet"))


def test_a_column_that_a_caption_set_lacks_is_named(tmp_path, monkeypatch):
    rows = Dataset.from_dict({"picture": [None], "caption": ["a red ball"]})
    monkeypatch.setattr(captions_module, "load_dataset", lambda *_, **__: rows)  # as of a set on the Hub
    with pytest.raises(
        ValueError, match=r"someone/set has no column 'text', but picture, caption: set caption_column"
    ):
        read_captions("someone/set")
    with pytest.raises(ValueError, match=r"has no column 'image', but picture, caption: set image_column"):
        read_captions("someone/set", caption_column="caption")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.integers(1, 60))
def test_first_words_are_as_many_whole_sentences_as_fit(lengths, words):
    sentences = [" ".join(["word"] * length) for length in lengths]
    kept = first_words(sentences, words)
    assert kept == sentences[: len(kept)] and kept
    assert count_words(kept) <= words or len(kept) == 1
    assert kept == sentences or count_words(sentences[: len(kept) + 1]) > words
    assert first_words(sentences, None) == sentences


def test_text_words_limits_what_is_read_and_counted(tmp_path):
    text = write_text(tmp_path / "t.txt")
    keys = TINY | {"model": "language", "text": str(text), "output_dir": str(tmp_path / "out"), "text_words": 40}
    assert train(make_recipe(keys, "test"))["data"] == [{"name": str(text), "words": 40, "sentences": 8}]


def test_text_blocks_are_one_stream_with_bos_and_eos(tiny_tokenizer):
    stream = []
    for sentence in TEXT:
        ids = tiny_tokenizer(sentence, add_special_tokens=False)["input_ids"]
        stream += [tiny_tokenizer.bos_token_id, *ids, tiny_tokenizer.eos_token_id]
    blocks = TextBlocks(TEXT, tiny_tokenizer, 11)
    found = [blocks[number]["input_ids"].tolist() for number in range(len(blocks))]
    assert len(stream) % 11 != 0  # something is left over
    assert found == [stream[start : start + 11] for start in range(0, len(stream) - 10, 11)]


def test_text_that_fills_no_block_is_named(tiny_tokenizer):
    with pytest.raises(ValueError, match="fewer than one block of 1000: add text"):
        TextBlocks(TEXT[:2], tiny_tokenizer, 1000)


def test_a_picture_with_two_captions_is_kept_once(tmp_path):
    folder = write_captions(tmp_path / "captions")
    with open(folder / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": "red.png", "text": "red", "facts": ["red"]}) + "\n")
    found = read_captions(str(folder))
    assert [path.name for path in found.pictures] == [f"{colour}.png" for colour in COLOURS]
    assert [index for index, _ in found.captions] == [0, 1, 2, 3, 0]
    assert found.captions[-1] == (0, "red")


def test_words_are_targets_and_pictures_and_padding_are_not(tiny_tokenizer):
    features = torch.randn(2, 4, 16)
    rows = CaptionRows([(1, "a red ball"), (0, "a")], features, tiny_tokenizer)
    image, bos, eos = (tiny_tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<s>", "</s>"))
    words = [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a red ball", "a")]
    assert rows[0]["input_ids"].tolist() == [bos, *[image] * 4, *words[0], eos]

    text = TextBlocks(TEXT, tiny_tokenizer, 6)[0]
    lengths = [len(row["input_ids"]) for row in (rows[1], text, rows[0])]
    batch = PackingCollator(tiny_tokenizer, sum(lengths) - 1)([rows[1], text, rows[0]])  # one row is too short
    assert batch["input_ids"].shape[0] == 2
    assert torch.equal(batch["image_features"], features[[1, 0]])  # the longer caption is laid first
    seen = []
    for ids, positions, labels in zip(batch["input_ids"], batch["position_ids"], batch["labels"], strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for start, end in pairwise(starts):
            sample = ids[start:end].tolist()
            assert positions[start:end].tolist() == list(range(end - start))
            targets = [i if i not in (image, tiny_tokenizer.pad_token_id) else -100 for i in sample[1:]]
            assert labels[start:end].tolist() == [-100, *targets]
            seen.append(sample)
    samples = [sample for sample in seen if set(sample) != {tiny_tokenizer.pad_token_id}]
    assert sorted(samples) == sorted(row["input_ids"].tolist() for row in (*rows, text))
    assert "image_features" not in PackingCollator(tiny_tokenizer, 8)([text])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 40))
def test_every_sample_is_packed_once_and_rows_are_filled(lengths, row_length):
    rows = pack(lengths, row_length)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[sample] for sample in row) for row in rows)
    assert all(len(row) == 1 for row in rows if sum(lengths[sample] for sample in row) > row_length)
    assert len(rows) == 1 or filled[0] + filled[1] > row_length  # no two rows could have been one


@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # eager: compiled on a CPU
def test_a_packed_sample_has_the_loss_it_has_alone_and_sends_no_gradient_to_another(tiny_multimodal, attention):
    model, processor = deepcopy(tiny_multimodal[0]), tiny_multimodal[1]
    model.set_attn_implementation(attention)
    tokenizer = processor.tokenizer
    captions = CaptionRows(
        list(enumerate(["a red ball", "the cat", "the dog is big"])), torch.randn(3, 4, 16), tokenizer
    )
    samples = [*captions, TextBlocks(TEXT, tokenizer, 12)[0]]
    collator = PackingCollator(tokenizer, 24)

    def summed_loss(batch: dict) -> torch.Tensor:
        return model(**batch).loss * (batch["labels"][:, 1:] != -100).sum()

    packed = collator(samples)
    assert packed["input_ids"].shape[0] < len(samples)
    alone = sum(summed_loss(collator([sample])).item() for sample in samples)
    assert summed_loss(packed).item() == pytest.approx(alone, rel=1e-5)

    embeddings = model.get_input_embeddings()(packed["input_ids"]).detach().requires_grad_()
    row = packed["position_ids"][0]
    second = (row == 0).nonzero().flatten()[1]  # where the second sample of the first row begins
    logits = model(inputs_embeds=embeddings, position_ids=packed["position_ids"], use_cache=False).logits
    logits[0, second:].logsumexp(-1).sum().backward()
    assert embeddings.grad[0, :second].abs().max() == 0 and embeddings.grad[0, second:].abs().max() > 0


# --- language runs ---------------------------------------------------------------------------------------------------


def test_a_language_run_leaves_a_complete_checkpoint(language):
    assert [path.name for path in language.parent.iterdir() if path.name != "text.txt"] == ["run"]
    tokenizer, model = AutoTokenizer.from_pretrained(language), AutoModelForCausalLM.from_pretrained(language)
    assert type(model) is LlamaForCausalLM and model.config.hidden_size == 32
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert tokenizer("the red cat")["input_ids"][0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.image_token == "<image>"
    assert "language" in (language / "README.md").read_text().lower()


def test_the_training_state_says_what_was_seen(language):
    state = json.loads((language / "training_state.json").read_text())
    words = sum(len(line.split()) for line in TEXT)
    tokenizer = AutoTokenizer.from_pretrained(language)
    seen = TextBlocks(TEXT, tokenizer, 16).words.sum()  # what fills no block is not read
    assert state["words_seen"] == seen and words - 16 < seen <= words and state["epochs"] == 1
    assert state["data"] == [{"name": str(language.parent / "text.txt"), "words": words, "sentences": len(TEXT)}]
    assert (state["model"], state["ancestor"], state["seed"]) == ("language", None, 42)
    assert state["parameters"] == sum(p.numel() for p in LlamaForCausalLM.from_pretrained(language).parameters())
    assert state["recipe"]["learning_rate"] == 3.0e-3 and state["recipe"]["block_size"] == 16


def test_the_log_says_what_was_seen_and_how_fast_and_is_drawn(tmp_path):
    keys = {"model": "language", "text": [str(write_text(tmp_path / "text.txt"))]}
    state = run(tmp_path / "run", **keys, max_steps=4, logging_steps=1)
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry for entry in history if "loss" in entry]
    assert state["final_loss"] == losses[-1]["loss"]  # not the run's mean
    seen = [entry["words_seen"] for entry in losses]
    assert [entry["step"] for entry in losses] == [1, 2, 3, 4] and seen == sorted(set(seen))
    assert (seen[-1], losses[-1]["tokens_seen"]) == (state["words_seen"], state["tokens_seen"])
    assert all(entry["words_per_second"] > 0 and entry["mfu"] > 0 for entry in losses)
    ratio = losses[0]["tokens_seen"] / losses[0]["words_seen"]
    assert losses[0]["tokens_per_second"] == pytest.approx(ratio * losses[0]["words_per_second"])
    assert state["model_flops"] == state["tokens_seen"] * (6 * state["parameters"] + 12 * 2 * 32 * 16)
    plot_loss(history, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "run" / "training_curve.png").read_bytes()
    run(tmp_path / "short", **keys, max_steps=1)  # logs no loss
    assert not (tmp_path / "short" / "training_curve.png").exists()


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(ValueError, match="'report_to' names wandb, which is not installed here: install it"):
        run(tmp_path / "run", model="language", text=[str(write_text(tmp_path / "text.txt"))], report_to="wandb")
    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_weights(tmp_path):
    keys = {"model": "language", "text": [str(write_text(tmp_path / "text.txt"))]}
    weights = []
    for name in ("a", "b"):
        run(tmp_path / name, **keys, seed=1)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_seed_starts_from_other_weights(tmp_path):
    keys = {"model": "language", "text": [str(write_text(tmp_path / "text.txt"))], "learning_rate": 0.0}
    embeddings = []
    for seed in (1, 2):
        run(tmp_path / str(seed), **keys, seed=seed)
        embeddings.append(load_file(tmp_path / str(seed) / "model.safetensors")["model.embed_tokens.weight"])
    assert not torch.equal(*embeddings)


def test_words_are_counted_for_every_pass_and_source(tmp_path):
    texts = [str(write_text(tmp_path / f"{name}.txt", lines)) for name, lines in (("a", TEXT), ("b", TEXT[:3]))]
    state = run(tmp_path / "run", model="language", text=texts, max_steps=-1, num_train_epochs=2)
    words = TextBlocks(TEXT + TEXT[:3], AutoTokenizer.from_pretrained(tmp_path / "run"), 16).words.sum()
    assert state["words_seen"] == 2 * words and 0 <= sum(len(line.split()) for line in TEXT + TEXT[:3]) - words < 16
    assert [source["sentences"] for source in state["data"]] == [len(TEXT), 3]


# --- multimodal runs -------------------------------------------------------------------------------------------------


def test_a_multimodal_run_leaves_a_complete_checkpoint(multimodal):
    _, folder = multimodal
    model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model) is BabylmVlmForConditionalGeneration and model.config.vision_tower == "./vision_tower"
    inputs = processor("the", images=Image.new("RGB", (28, 28), "red"), return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
    assert {path.name for path in folder.glob("*.py")} == {
        f"{kind}_babylm_vlm.py" for kind in ("configuration", "modeling", "processing")
    }
    assert (folder / "vision_tower" / "model.safetensors").is_file() and (folder / "README.md").is_file()
    assert not list(folder.parent.glob(".*"))


def test_the_ancestor_is_recorded_and_training_starts_from_it(multimodal, language):
    _, folder = multimodal
    state = json.loads((folder / "training_state.json").read_text())
    assert state["ancestor"] == {"name": str(language), "sha256": sha256(language / "model.safetensors")}
    assert state["data"][0]["pictures"] == state["data"][0]["captions"] == len(COLOURS)
    before, after = (load_file(path / "model.safetensors") for path in (language, folder))
    assert all(torch.equal(before[name], after[name]) for name in before)  # the learning rate was zero
    assert {name for name in set(after) - set(before) if "multi_modal_projector" not in name} == set()
    tokenizers = [(path / "tokenizer.json").read_text() for path in (language, folder)]
    assert tokenizers[0] == tokenizers[1]


@torch.no_grad()
def caption_loss(folder: Path, captions: Path, shift: int = 0) -> float:
    """Loss of the captions with their own pictures, or with those `shift` rows away."""
    model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    found = read_captions(str(captions))
    pictures = [Image.open(found.pictures[(index + shift) % 4]) for index, _ in found.captions]
    inputs = processor([text for _, text in found.captions], images=pictures, padding=True, return_tensors="pt")
    return model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)).loss.item()


def test_eighty_steps_learn_four_pictures(multimodal, captions, tmp_path):
    keys, frozen = multimodal
    rates = {"learning_rate": 1e-2, "projector_learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    state = run(tmp_path / "run", **keys, max_steps=80, **rates)
    own, other = (caption_loss(tmp_path / "run", captions, shift) for shift in (0, 1))
    assert own < 0.5 * caption_loss(frozen, captions)
    assert own < 0.8 * other  # it looks at the pictures
    assert state["final_loss"] < 0.5 * caption_loss(frozen, captions)
    assert state["words_seen"] == 80 * 4 * 5  # a step sees all four captions of five words


def test_projector_and_embeddings_have_learning_rates_of_their_own(multimodal, tmp_path):
    keys, frozen = multimodal
    before = load_file(frozen / "model.safetensors")
    projector = {tensor for tensor in before if "multi_modal_projector" in tensor}
    embeddings = {"model.embed_tokens.weight"}
    expected = {"decoder": set(before) - projector - embeddings, "projector": projector, "embeddings": embeddings}
    for name, tensors in expected.items():
        rates = {part: 1e-2 if part == name else 0.0 for part in expected}
        run(
            tmp_path / name,
            **keys,
            learning_rate=rates["decoder"],
            projector_learning_rate=rates["projector"],
            embedding_learning_rate=rates["embeddings"],
        )
        after = load_file(tmp_path / name / "model.safetensors")
        assert {tensor for tensor in before if not torch.equal(before[tensor], after[tensor])} == tensors


def test_captions_and_text_can_be_mixed(multimodal, tmp_path):
    keys, _ = multimodal
    text = write_text(tmp_path / "text.txt")
    state = run(tmp_path / "run", **keys, text=[str(text)], max_steps=-1, num_train_epochs=1, vision_grid=2)
    words = TextBlocks(TEXT, AutoTokenizer.from_pretrained(tmp_path / "run"), 16).words.sum()
    assert state["words_seen"] == words + 4 * 5
    assert AutoProcessor.from_pretrained(tmp_path / "run").visual_tokens == 4


def test_a_language_run_can_continue_a_multimodal_one(multimodal, tmp_path):
    _, folder = multimodal
    text = str(write_text(tmp_path / "text.txt"))
    run(tmp_path / "run", model="language", text=[text], init_from=str(folder), learning_rate=0.0)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model_type"] == "llama" and "vision_tower" not in config and "auto_map" not in config
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "run"))
    assert set(before) - set(after) == {name for name in before if "multi_modal_projector" in name}
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_a_multimodal_run_can_continue_a_multimodal_one(multimodal, tmp_path):
    keys, folder = multimodal
    run(tmp_path / "run", **{**keys, "init_from": str(folder)}, learning_rate=0.0)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "run"))
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)


# --- wrong inputs ----------------------------------------------------------------------------------------------------


def no_metadata(folder: Path):
    (folder / "metadata.jsonl").unlink()


def no_picture(folder: Path):
    (folder / "blue.png").unlink()


def no_caption(folder: Path):
    (folder / "metadata.jsonl").write_text('{"file_name": "red.png"}\n')


def no_rows(folder: Path):
    (folder / "metadata.jsonl").write_text("")


def damaged_picture(folder: Path):
    (folder / "blue.png").write_bytes((folder / "blue.png").read_bytes()[:40])


def text_for_a_picture(folder: Path):
    (folder / "blue.png").write_text("blue")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (no_metadata, FileNotFoundError, r"There is no .*metadata\.jsonl: captions are a folder"),
        (no_picture, FileNotFoundError, r"metadata\.jsonl:3 has a caption without its picture: .*blue\.png"),
        (no_caption, ValueError, r"metadata\.jsonl:1 is not a JSON object with 'file_name' and 'text'"),
        (no_rows, ValueError, "The captions in .* are empty"),
        (damaged_picture, ValueError, r"The picture .*blue\.png cannot be read"),
        (text_for_a_picture, ValueError, r"The picture .*blue\.png cannot be read"),
    ],
)
def test_wrong_captions_are_named_and_nothing_is_left(multimodal, tmp_path, damage, error, message):
    folder = write_captions(tmp_path / "captions")
    damage(folder)
    (tmp_path / "runs").mkdir()
    with pytest.raises(error, match=message):
        run(tmp_path / "runs" / "run", **{**multimodal[0], "captions": str(folder)})
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, r"There is no text file .*text\.txt: check the recipe's key 'text'"),
        ("\n  \n", ValueError, r"The corpus .*text\.txt is empty"),
        ("a b\n", ValueError, "fewer than one block of 16: add text"),
    ],
    ids=["missing", "empty", "short"],
)
def test_wrong_text_is_named_and_nothing_is_left(tmp_path, content, error, message):
    if content is not None:
        (tmp_path / "text.txt").write_text(content)
    (tmp_path / "runs").mkdir()
    with pytest.raises(error, match=message):
        run(tmp_path / "runs" / "run", model="language", text=[str(tmp_path / "text.txt")])
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("key", ["init_from", "tokenizer", "vision_tower"])
@pytest.mark.parametrize("place", ["{root}/nowhere", "./nowhere", "runs/nowhere", "runs/nowhere/model"])
def test_missing_checkpoints_are_named(multimodal, tmp_path, monkeypatch, key, place):
    monkeypatch.chdir(tmp_path)
    name = place.format(root=tmp_path)
    with pytest.raises((OSError, ValueError), match=name.replace(".", r"\.")):
        run(tmp_path / "runs" / "run", **{**multimodal[0], key: name})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_replaced_only_on_request(language, tmp_path):
    keys = {"model": "language", "text": [str(write_text(tmp_path / "text.txt"))], "init_from": str(language)}
    run(tmp_path / "run", **keys)
    first = sha256(tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "stale.txt").touch()
    with pytest.raises(FileExistsError, match="run exists: choose another one, or pass --overwrite"):
        run(tmp_path / "run", **keys, seed=3)
    assert sha256(tmp_path / "run" / "model.safetensors") == first and (tmp_path / "run" / "stale.txt").exists()
    run(tmp_path / "run", True, **keys, seed=3)
    assert sha256(tmp_path / "run" / "model.safetensors") != first
    assert not (tmp_path / "run" / "stale.txt").exists()


def test_a_failed_run_leaves_the_earlier_one(language, tmp_path):
    keys = {"model": "language", "init_from": str(language)}
    run(tmp_path / "run", **keys, text=[str(write_text(tmp_path / "text.txt"))])
    with pytest.raises(FileNotFoundError, match="There is no text file"):
        run(tmp_path / "run", True, **keys, text=[str(tmp_path / "nowhere.txt")])
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "text.txt"}


def test_overwrite_spares_a_folder_that_is_no_checkpoint(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    text = str(write_text(tmp_path / "text.txt"))
    with pytest.raises(FileExistsError, match=r"has no training_state\.json, so it is no earlier output"):
        run(tmp_path / "thesis", True, model="language", text=[text])
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_tokenizer_puts_bos_in_front_and_keeps_image_as_one_token():
    tokenizer = train_tokenizer(TEXT, 300)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("<image> the cat")["input_ids"])
    assert tokens[:2] == ["<s>", "<image>"] and tokens[-1] != "</s>"
    assert tokenizer("the cat")["input_ids"] == tokenizer(" the cat")["input_ids"]
    assert tokenizer.decode(tokenizer("żółw")["input_ids"], skip_special_tokens=True).strip() == "żółw"
