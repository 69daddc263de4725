"""Captions in the challenge's own layout: a list of captions beside an array of features.

Run: pytest tests/test_organisers.py
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from babylm_vlm.data.captions import read_captions
from babylm_vlm.training.recipe import make_recipe
from babylm_vlm.training.train import train

STATES = np.random.default_rng(0).standard_normal((6, 16))


@pytest.fixture
def folder(tmp_path):
    """Four captions with features in two files, and two more with features in half precision."""
    folder = tmp_path / "multimodal"
    folder.mkdir()
    (folder / "cc_3M_captions.json").write_text(json.dumps([f"a red ball {number}" for number in range(4)]))
    np.save(folder / "cc_3M_dino_v2_states_1of2.npy", STATES[:3].astype(np.float32))
    np.save(folder / "cc_3M_dino_v2_states_2of2.npy", STATES[3:4].astype(np.float32))
    (folder / "local_narr_captions.json").write_text(json.dumps(["the cat", "the dog"]))
    np.save(folder / "local_narr_dino_v2_states.npy", STATES[4:].astype(np.float16))
    return folder


def run(folder: Path, output: Path, language: Path, tower: Path, **keys) -> dict:
    keys = {"init_from": str(language), "vision_tower": str(tower), "max_steps": 1, "disable_tqdm": True} | keys
    keys |= {"model": "multimodal", "captions": str(folder), "output_dir": str(output)}
    return train(make_recipe(keys, "the test"))


def test_every_caption_has_its_feature(folder):
    found = read_captions(str(folder))
    assert found.captions == list(enumerate([*(f"a red ball {n}" for n in range(4)), "the cat", "the dog"]))
    assert found.features.shape == (6, 1, 16) and found.names[4] == "local_narr_captions.json:0"
    stored = torch.stack([found.features[number] for number in range(6)])
    assert stored.dtype == torch.float32 and isinstance(found.features.arrays[0], np.memmap)
    assert torch.equal(stored[:4, 0], torch.tensor(STATES[:4], dtype=torch.float32))
    assert torch.allclose(stored[4:, 0], torch.tensor(STATES[4:], dtype=torch.float32), atol=1e-2)


def test_parts_come_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "cc_captions.json").write_text(json.dumps([f"caption {number}" for number in range(12)]))
    for number in range(12):
        np.save(tmp_path / f"cc_dino_v2_states_{number + 1}of12.npy", np.full((1, 4), number, np.float32))
    features = read_captions(str(tmp_path)).features
    assert [features[number][0, 0].item() for number in range(12)] == list(range(12))


def test_a_model_is_trained_on_them(folder, tmp_path, language_checkpoint, tiny_tower):
    state = run(folder, tmp_path / "run", language_checkpoint, tiny_tower, per_device_train_batch_size=6)
    assert state["words_seen"] == 4 * 4 + 2 * 2
    assert state["data"] == [{"name": str(folder), "words": 20, "captions": 6, "pictures": 6}]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vision_grid": 2}, "one feature of width 16 a picture, but .* with vision_grid 2 has 4 of width 16"),
        ({"features": "stored"}, "holds features itself: remove 'features' from the recipe"),
    ],
)
def test_features_that_do_not_fit_the_recipe_are_refused(
    folder, tmp_path, language_checkpoint, tiny_tower, keys, message
):
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "run", language_checkpoint, tiny_tower, **keys)
    assert not (tmp_path / "run").exists()


def no_features(folder: Path):
    (folder / "local_narr_dino_v2_states.npy").unlink()


def a_part_is_missing(folder: Path):
    (folder / "cc_3M_dino_v2_states_2of2.npy").unlink()


def pickled(folder: Path):
    np.save(folder / "local_narr_dino_v2_states.npy", np.array([{}, {}]), allow_pickle=True)


def cut_off(folder: Path):
    file = folder / "local_narr_dino_v2_states.npy"
    file.write_bytes(file.read_bytes()[:-8])


def one_number_a_picture(folder: Path):
    np.save(folder / "local_narr_dino_v2_states.npy", np.zeros(2))


def narrower(folder: Path):
    np.save(folder / "local_narr_dino_v2_states.npy", np.zeros((2, 8)))


def no_list(folder: Path):
    (folder / "local_narr_captions.json").write_text('{"a": 1}')


def no_json(folder: Path):
    (folder / "local_narr_captions.json").write_text("[")


def no_caption(folder: Path):
    (folder / "local_narr_captions.json").write_text('["the cat", 3]')


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (no_features, FileNotFoundError, r"captions without features: local_narr_dino_v2_states\.npy is missing"),
        (a_part_is_missing, ValueError, r"has 4 captions, but its features are 3: a part is missing"),
        (pickled, ValueError, r"states\.npy is damaged or no array of numbers"),
        (cut_off, ValueError, r"states\.npy is damaged or no array of numbers"),
        (one_number_a_picture, ValueError, r"must hold floats \(pictures, width\), not float64 of shape \(2,\)"),
        (narrower, ValueError, r"have different widths: \[8, 16\]"),
        (no_list, ValueError, r"local_narr_captions\.json must be a JSON list"),
        (no_json, ValueError, r"local_narr_captions\.json is no JSON"),
        (no_caption, ValueError, r"local_narr_captions\.json:1 needs a caption of words, without <image>, not 3"),
    ],
)
def test_wrong_files_are_named(folder, damage, error, message):
    damage(folder)
    with pytest.raises(error, match=message):
        read_captions(str(folder))


def test_there_is_no_picture_to_compute_features_of(run_command, folder, tiny_tower, tmp_path):
    code, _, err = run_command("features", folder, "--vision-tower", tiny_tower, "--output-dir", tmp_path / "out")
    assert code == 1 and "holds features, and no pictures" in err and not (tmp_path / "out").exists()
