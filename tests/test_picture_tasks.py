"""VQA, Winoground and DevBench: small files of the official format and layout, and what comes out of them.

Run: pytest tests/test_picture_tasks.py
"""

import csv
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pair_files import write_lines
from PIL import Image
from scipy.io import savemat
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

from babylm_vlm.data import pictures
from babylm_vlm.evaluation import compare_results, devbench, evaluate_model, find_tasks, load_model, vqa, winoground
from babylm_vlm.evaluation.output import items_file, read_items
from babylm_vlm.evaluation.statistics import accuracy
from babylm_vlm.evaluation.tasks import Outcome

WORDS = ["cat", "dog", "ball", "tree", "table"]
CAPTIONS = [("a red cat", "a cat red"), ("the dog sees the girl", "the girl sees the dog")]
ANSWERS = ["cat", "red ball", "blue", "dog", "two", "tree", "yes", "no"]


def picture(number):
    """A picture of one colour, another for every number."""
    return Image.new("RGB", (40, 30), (37 * number % 256, 91 * number % 256, 17 * number % 256))


def write_set(file, columns):
    """A `datasets` set as parquet: columns of pictures, or of integers."""
    features = {
        name: Value("int64") if isinstance(values[0], int) else ImageFeature() for name, values in columns.items()
    }
    file.parent.mkdir(parents=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(file)


def write_csv(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8-sig") as lines:  # some of the official files begin with a BOM
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def winoground_rows():
    for example, captions in enumerate(CAPTIONS):
        for i in (0, 1):
            first, second = captions if i == 0 else captions[::-1]
            tags = {"tag": "t", "secondary_tag": "s", "collapsed_tag": "Object"}
            fields = {"image_idx": example, "image_key": f"image_{i}", "caption_0": first, "caption_1": second}
            yield fields | tags


def vqa_rows():
    for number, image_id in enumerate([500, 500, 700]):
        answers = ANSWERS[number:] + ANSWERS[:number]
        fields = {"question": "What does the dog see?", "target_ans": answers[0], "distractors": answers[1:]}
        yield fields | {"image_id": image_id, "idx_in_hf_dataset": number}


@pytest.fixture
def full_eval(tmp_path):
    """The picture tasks of `evaluation_data/full_eval`, with fifteen distinct pictures."""
    data = tmp_path / "full_eval"
    write_lines(data / "winoground_filtered" / "winoground.jsonl", winoground_rows())
    columns = {f"image_{i}": [picture(10 * i + k) for k in range(2)] for i in (0, 1)}
    write_set(data / "winoground_filtered" / "images" / "test.parquet", columns)
    write_lines(data / "vqa_filtered" / "vqa.jsonl", vqa_rows())
    columns = {"image_id": [700, 700, 600, 500], "image": [picture(20 + k) for k in (0, 0, 1, 2)]}
    write_set(data / "vqa_filtered" / "images" / "validation-00000-of-00001.parquet", columns)

    assets, evals = data / "devbench" / "assets", data / "devbench" / "evals"
    generator = np.random.default_rng(0)
    write_csv(assets / "sem-things" / "manifest.csv", [{"text1": w, "image1": f"objects/{w}.png"} for w in WORDS])
    (assets / "sem-things" / "objects").mkdir()
    for number, word in enumerate(WORDS):
        picture(30 + number).save(assets / "sem-things" / "objects" / f"{word}.png")
    (evals / "sem-things").mkdir(parents=True)
    savemat(evals / "sem-things" / "spose_similarity.mat", {"spose_sim": generator.random((5, 5))})

    choices = [
        {f"image{k + 1}": f"images/{WORDS[(i + k) % 5]}.png" for k in range(4)} | {"text1": WORDS[i]} for i in range(5)
    ]
    write_csv(assets / "lex-viz_vocab" / "manifest.csv", choices)
    (assets / "lex-viz_vocab" / "images").symlink_to(assets / "sem-things" / "objects")
    people = []
    for i, word in enumerate(WORDS[:4]):  # nobody was asked about the last word
        for age in (4, 25):
            shares = generator.dirichlet(np.ones(4))
            row = {"text1": word, "age_bin": age, "trial": i + 1}
            people.append(row | {f"image{k + 1}": shares[k] for k in range(4)})
    write_csv(evals / "lex-viz_vocab" / "human.csv", people)

    sentence = {f"image{k + 1}": f"images/{k}.png" for k in range(4)} | {"text1": "the dog sees the girl"}
    write_csv(assets / "gram-trog" / "manifest.csv", [sentence])
    (assets / "gram-trog" / "images").mkdir()
    for number in range(4):
        picture(40 + number).save(assets / "gram-trog" / "images" / f"{number}.png")
    shares = {f"image{k + 1}": share for k, share in enumerate((0.7, 0.1, 0.1, 0.1))}
    write_csv(evals / "gram-trog" / "human.csv", [{"trial": 1, "text1": sentence["text1"]} | shares])
    return data


def evaluate(checkpoint, data, output_dir, **options):
    model, processor = load_model(checkpoint)
    options = {"name": checkpoint, "resamples": 50, "progress": False, **options}
    return evaluate_model(model, processor, find_tasks(data), output_dir, **options)


def test_all_picture_tasks(multimodal_checkpoint, full_eval, tmp_path):
    """Each distinct picture goes through the tower once, whatever tasks, items and files it is in."""
    model, processor = load_model(multimodal_checkpoint)
    seen = []
    model.model.vision_tower().register_forward_hook(lambda tower, inputs, outputs: seen.append(len(inputs[0])))
    options = {"name": multimodal_checkpoint, "resamples": 50, "progress": False}
    results = evaluate_model(model, processor, find_tasks(full_eval), tmp_path / "out", **options)
    assert sum(seen) == 4 + 2 + 5 + 4
    assert results["failed"] == {}
    rows = results["tasks"]
    assert {name: (row["metric"], row["items"], row["pictures"]) for name, row in rows.items()} == {
        "gram-trog": ("accuracy", 1, 4),
        "gram-trog_kl": ("kl", 1, 4),
        "lex-viz_vocab": ("accuracy", 5, 5),
        "lex-viz_vocab_kl_age_4": ("kl", 4, 5),
        "lex-viz_vocab_kl_age_25": ("kl", 4, 5),
        "sem-things": ("rsa", 5, 5),
        "vqa_filtered": ("accuracy", 3, 2),
        "winoground_filtered": ("accuracy", 4, 4),
        "winoground_filtered_text_score": ("accuracy", 2, 4),
        "winoground_filtered_image_score": ("accuracy", 2, 4),
        "winoground_filtered_group_score": ("accuracy", 2, 4),
    }
    chances = {"vqa_filtered": 1 / 8, "winoground_filtered": 1 / 2, "winoground_filtered_group_score": 1 / 6}
    assert {name: rows[name]["chance"] for name in chances} == pytest.approx(chances)
    assert all(row["pictures_used"] and row["nonfinite"] == 0 for row in rows.values())
    # Taken up again, nothing is looked at, and the numbers are the same.
    again = evaluate_model(model, processor, find_tasks(full_eval), tmp_path / "out", overwrite=True, **options)
    assert sum(seen) == 15 and again == results


def naive(model, processor, prefix, completion, image, mean=False):
    """One text, one picture, through the processor: log p of the tokens that end after the prefix."""
    text = prefix + completion
    inputs = processor(text="<image> " + text, images=image, return_tensors="pt")
    plain = processor(text=text, return_offsets_mapping=True)
    scored = [i for i, (_, end) in enumerate(plain["offset_mapping"]) if i > 0 and end > len(prefix)]
    with torch.no_grad():
        table = model(**inputs).logits[0].double().log_softmax(-1)
    shift = inputs["input_ids"].shape[1] - len(plain["input_ids"])
    values = [table[i + shift - 1, plain["input_ids"][i]].item() for i in scored]
    return np.mean(values) if mean else np.sum(values)


@pytest.mark.parametrize("official", [False, True])
def test_scores_are_those_of_single_pictures(official, multimodal_checkpoint, full_eval, tmp_path):
    model, processor = load_model(multimodal_checkpoint)
    evaluate(multimodal_checkpoint, full_eval, tmp_path / "out", official=official)
    found = {task: read_items(items_file(tmp_path / "out", task))[1] for task in find_tasks(full_eval)}
    for row, outcome in list(zip(vqa_rows(), found["vqa_filtered"], strict=True))[1:]:
        image = picture({500: 22, 700: 20}[row["image_id"]])
        answers = [row["target_ans"], *row["distractors"]]
        expected = [naive(model, processor, row["question"], " " + answer, image) for answer in answers]
        np.testing.assert_allclose(outcome.scores, expected, atol=1e-4)
    for row, outcome in zip(winoground_rows(), found["winoground_filtered"], strict=True):
        image = picture(10 * int(row["image_key"][-1]) + row["image_idx"])
        expected = [naive(model, processor, "", row[f"caption_{i}"], image) for i in (0, 1)]
        np.testing.assert_allclose(outcome.scores, expected, atol=1e-4)
    for i, outcome in enumerate(found["lex-viz_vocab"][:2]):
        text = f"The caption for this image is: {WORDS[i]}." if official else WORDS[i]
        images = [picture(30 + (i + k) % 5) for k in range(4)]
        expected = [naive(model, processor, "", text, image, mean=official) for image in images]
        np.testing.assert_allclose(outcome.scores, expected, atol=1e-4)
    inputs = processor(text=["<image> "] * 5, images=[picture(30 + i) for i in range(5)], return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1].mean(dim=1)
    np.testing.assert_allclose([outcome.scores for outcome in found["sem-things"]], states, atol=1e-4)


def test_official_predictions(multimodal_checkpoint, full_eval, tmp_path):
    results = evaluate(multimodal_checkpoint, full_eval, tmp_path / "out", predictions=True)
    root = tmp_path / "out" / "predictions" / multimodal_checkpoint.stem
    zero_shot = root / "main" / "zero_shot"
    made = json.loads((zero_shot / "causal" / "vqa" / "vqa_filtered" / "predictions.json").read_text())
    assert [row["id"] for row in made["vqa"]["predictions"]] == ["vqa_0", "vqa_1", "vqa_2"]
    assert all(row["pred"] in [" " + answer for answer in ANSWERS] for row in made["vqa"]["predictions"])
    file = zero_shot / "causal" / "winoground" / "winoground_filtered" / "predictions.json"
    assert len(json.loads(file.read_text())["winoground"]["predictions"]) == 4
    shapes = {"lex-viz_vocab": (5, 4, 1), "gram-trog": (1, 4, 1), "sem-things_pairwise_sims": (5, 5)}
    arrays = {name: np.load(zero_shot / "devbench" / f"{name}.npy", allow_pickle=False) for name in shapes}
    assert {name: array.shape for name, array in arrays.items()} == shapes
    np.testing.assert_allclose(np.diag(arrays["sem-things_pairwise_sims"]), 1)
    collated = json.loads((root / "all_full_preds_and_fast_scores_causal.json").read_text())
    assert list(collated["devbench"]) == ["trog", "lex-viz_visual", "things"]
    assert collated["devbench"]["lex-viz_visual"]["predictions"] == arrays["lex-viz_vocab"].tolist()
    assert any(
        "of vqa have not the official number of items, such as vqa with 3 instead of 25230" in note
        for note in results["predictions"]
    )


def test_a_language_only_model_reads_the_texts_alone(language_checkpoint, full_eval, tmp_path, run_command):
    """It needs no pictures of a data set; between pictures it has no preference; concepts it cannot see."""
    for folder in ("vqa_filtered", "winoground_filtered"):
        (full_eval / folder / "images").rename(tmp_path / folder)
    arguments = ("evaluate", language_checkpoint, "--data", full_eval, "--output-dir", tmp_path / "out")
    code, printed, errors = run_command(*arguments)
    assert code == 1 and "sem-things failed: concepts are shown as pictures alone, and this model takes none" in errors
    assert "Pictures were not used, as this model takes none, for gram-trog, gram-trog_kl" in " ".join(printed.split())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["failed"]) == ["sem-things"]
    rows = results["tasks"]
    assert not any(row["pictures_used"] for row in rows.values())
    vocabulary = rows["lex-viz_vocab"]
    assert (vocabulary["value"], vocabulary["ties"], vocabulary["interval"]) == (0.25, 5, [0.25, 0.25])
    divergence = rows["lex-viz_vocab_kl_age_4"]
    assert divergence["value"] == pytest.approx(divergence["chance"])
    assert rows["winoground_filtered"]["value"] == 0.5
    assert [rows[f"winoground_filtered_{kind}_score"]["ties"] for kind in ("text", "image")] == [2, 2]
    assert rows["winoground_filtered_image_score"]["value"] == 0.25


def test_pictures_that_cannot_be_had(multimodal_checkpoint, full_eval, tmp_path, run_command):
    """One sentence says how to get them, and the other tasks keep their results."""
    for folder in ("vqa_filtered", "winoground_filtered"):
        (full_eval / folder / "images").rename(tmp_path / folder)
    (full_eval / "devbench" / "assets" / "gram-trog" / "images" / "2.png").unlink()
    arguments = ("evaluate", multimodal_checkpoint, "--data", full_eval, "--output-dir", tmp_path / "out")
    code, _, errors = run_command(*arguments)
    assert code == 1
    sentences = " ".join(errors.split())
    assert "winoground_filtered failed: The pictures facebook/winoground cannot be had" in sentences
    assert "https://huggingface.co/datasets/facebook/winoground and log in with `hf auth login`" in sentences
    assert "manifest.csv:2: the picture" in sentences and "2.png does not exist" in sentences
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["failed"]) == ["gram-trog", "vqa_filtered", "winoground_filtered"]
    assert "sem-things" in results["tasks"] and "lex-viz_vocab" in results["tasks"]


def test_gated_pictures_without_login(multimodal_checkpoint, full_eval, tmp_path, run_command, monkeypatch):
    """The Hub's answer comes with what to do about it, in one sentence; texts and other pictures are scored."""
    (full_eval / "winoground_filtered" / "images").rename(tmp_path / "elsewhere")
    answer = "Dataset 'facebook/winoground' is a gated dataset on the Hub. You must be authenticated to access it."

    def load(source, split):
        raise DatasetNotFoundError(answer)

    monkeypatch.setattr(pictures, "load_dataset", load)
    for cached in (pictures._encoded, pictures._load):
        cached.cache_clear()
    options = ("--tasks", "winoground, gram-trog", "--output-dir", tmp_path / "out")
    code, _, errors = run_command("evaluate", multimodal_checkpoint, "--data", full_eval, *options)
    (sentence,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert code == 1 and answer.rstrip(".") in sentence and "log in with `hf auth login`" in sentence
    assert "gram-trog" in json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]


def test_tasks_that_are_not_there_can_be_had(full_eval):
    assert list(find_tasks(full_eval, ["devbench"])) == ["gram-trog", "lex-viz_vocab", "sem-things"]
    assert list(find_tasks(full_eval / "devbench")) == ["gram-trog", "lex-viz_vocab", "sem-things"]
    with pytest.raises(FileNotFoundError, match=r"holds no task ewok; .*agree to the terms at https://huggingface.co"):
        find_tasks(full_eval, ["ewok"])


@pytest.mark.parametrize(
    ("task", "file", "row", "message"),
    [
        (vqa, "vqa.jsonl", {"distractors": "blue"}, "the field distractors must be a list of texts, not 'blue'"),
        (vqa, "vqa.jsonl", {"image_id": "first"}, "the field image_id must be a number"),
        (winoground, "w.jsonl", {"image_key": "left"}, "the field image_key must be image_0 or image_1, not 'left'"),
        (winoground, "w.jsonl", {"caption_1": ""}, "the field caption_1 must be text"),
        (winoground, "w.jsonl", {"caption_0": "a dog"}, "image_idx 0 has other captions elsewhere"),
    ],
)
def test_wrong_rows_are_named(task, file, row, message, tmp_path):
    rows = list(vqa_rows() if task is vqa else winoground_rows())[:2]
    rows[1] |= row
    with pytest.raises(ValueError, match=message) as raised:
        task.read(write_lines(tmp_path / file, rows))
    assert str(raised.value).startswith(f"{tmp_path / file}:2: ")


def test_wrong_folders_of_devbench_are_named(full_eval):
    assets, evals = (full_eval / "devbench" / name for name in ("assets", "evals"))
    similarities = evals / "sem-things" / "spose_similarity.mat"
    savemat(similarities, {"spose_sim": np.eye(4)})
    with pytest.raises(ValueError, match="must hold spose_sim with 5 rows and columns"):
        devbench.read(assets / "sem-things")
    similarities.unlink()
    with pytest.raises(FileNotFoundError, match=r"needs what people see: spose_similarity\.mat"):
        devbench.read(assets / "sem-things")
    write_csv(assets / "lex-viz_vocab" / "manifest.csv", [{"text1": "cat", "image1": "images/cat.png"}])
    with pytest.raises(ValueError, match=r"manifest\.csv:2: 1 columns image1 … are not what lex-viz_vocab has"):
        devbench.read(assets / "lex-viz_vocab")
    (assets / "lex-viz_vocab" / "manifest.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"manifest\.csv"):
        devbench.read(assets / "lex-viz_vocab")


def test_a_picture_that_its_set_lacks(multimodal_checkpoint, full_eval, tmp_path):
    rows = [*vqa_rows(), next(vqa_rows()) | {"image_id": 999}]
    write_lines(full_eval / "vqa_filtered" / "vqa.jsonl", rows)
    results = evaluate(multimodal_checkpoint, full_eval, tmp_path / "out")
    assert "has no picture with image_id 999 in its validation" in results["failed"]["vqa_filtered"]


def test_compare_two_models(multimodal_checkpoint, language_checkpoint, full_eval, tmp_path):
    for name, checkpoint in (("a", multimodal_checkpoint), ("b", language_checkpoint)):
        evaluate(checkpoint, full_eval, tmp_path / name)
    found = compare_results(tmp_path / "a", tmp_path / "b")
    assert found["not_compared"] == ["sem-things failed in one of the two."]
    assert {"lex-viz_vocab_kl_age_4", "vqa_filtered", "winoground_filtered_text_score"} <= found["tasks"].keys()
    for row in found["tasks"].values():
        assert row["difference"] == pytest.approx(row["a"] - row["b"], abs=1e-12)


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_winoground_rows_are_paired_in_either_order():
    """The second picture's row has its captions the other way round; an example with one row has no paper score."""
    rows = [
        Outcome("winoground", "7", (3.0, 4.0), {"picture": 1.0}),
        Outcome("winoground", "8", (5.0, 6.0), {"picture": 0.0}),
        Outcome("winoground", "7", (1.0, 2.0), {"picture": 0.0}),
    ]
    ((example, scores),) = winoground.paired(rows).items()
    assert example == "7"
    np.testing.assert_array_equal(scores, [[1, 2], [4, 3]])


def test_divergence_is_that_of_the_best_beta():
    generator = np.random.default_rng(0)
    people = generator.dirichlet(np.ones(4), size=30)
    scores = 3 * np.log(people) + generator.normal(size=(30, 4))

    def mean_kl(beta, rows):
        model = np.exp(beta * scores[rows])
        model /= model.sum(axis=1, keepdims=True)
        return (people[rows] * np.log(people[rows] / model)).sum(axis=1).mean()

    counts = np.stack([np.ones(30, dtype=int), generator.integers(0, 3, 30)])
    for found, times in zip(devbench.divergence(scores, people, counts), counts, strict=True):
        rows = np.repeat(np.arange(30), times)
        best = minimize_scalar(mean_kl, bounds=(0.025, 40), args=(rows,), method="bounded")
        assert found == pytest.approx(best.fun, abs=1e-4)
    failed = devbench.divergence(np.full((30, 4), np.nan), people, counts[:1])
    assert np.isfinite(failed) and failed > 10


def test_similarity_is_spearmans_over_pairs():
    generator = np.random.default_rng(1)
    states, people = generator.normal(size=(12, 6)), generator.random((12, 12))
    below = np.tril_indices(12, k=-1)
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    expected = spearmanr((unit @ unit.T)[below], people[below])[0]
    once = np.ones((1, 12), dtype=int)
    assert devbench.similarity(states, people, once)[0] == pytest.approx(expected)
    people[below] = devbench.cosine_similarities(states)[below]
    resampled = np.random.default_rng(2).integers(0, 3, (4, 12))
    np.testing.assert_allclose(devbench.similarity(states, people, resampled), 1)
    assert devbench.similarity(np.zeros((12, 6)), people, once)[0] == 0


@settings(max_examples=25)
@given(arrays(np.float64, (5, 4), elements=st.sampled_from([-1.0, 0.0, 1.0, np.nan])))
def test_the_strict_official_rule(scores):
    """As DevBench has it: right where the first is higher than each other one."""
    items = [Outcome("u", str(i), (), {}) for i in range(5)]
    found = accuracy(scores, items, resamples=1, official=True, strict=True)
    assert found.accuracy == pytest.approx(np.mean([all(s[0] > other for other in s[1:]) for s in scores]))
