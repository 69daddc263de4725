"""Stored vision features: what they hold, when they are refused, and that training with them changes nothing.

Run: pytest tests/test_features.py
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from babylm_vlm.data import features
from babylm_vlm.data.captions import read_captions
from babylm_vlm.data.features import StoredFeatures, describe_features, load_eyes, store_features
from babylm_vlm.files import sha256
from babylm_vlm.training.recipe import make_recipe
from babylm_vlm.training.train import train

COLOURS = ["red", "green", "blue", "white", "black"]


@pytest.fixture(autouse=True)
def two_pictures_a_file(monkeypatch):
    monkeypatch.setattr(features, "PICTURES_A_FILE", 2)


@pytest.fixture
def captions(tmp_path):
    """Five pictures of one colour each, the first with two captions."""
    folder = tmp_path / "captions"
    folder.mkdir()
    rows = [{"file_name": f"{colour}.png", "text": f"a {colour} ball"} for colour in (*COLOURS, "red")]
    for colour in COLOURS:
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class OneByOne(Sequence):
    """Pictures, like those of a set on the Hub: each is decoded when it is asked for, and a slice decodes many."""

    def __init__(self, colours):
        self.colours, self.asked = colours, 0

    def __len__(self):
        return len(self.colours)

    def __getitem__(self, place):
        assert isinstance(place, int)
        self.asked += 1
        return Image.new("RGB", (28, 28), self.colours[place])


def test_pictures_are_read_a_little_ahead_of_the_tower(tiny_tower, monkeypatch):
    pictures, (model, processor) = OneByOne(COLOURS * 8), load_eyes(str(tiny_tower), None, -2, 1)
    pool, asked = model.pooled_features, []
    monkeypatch.setattr(model, "pooled_features", lambda pixels: asked.append(pictures.asked) or pool(pixels))
    pooled = features.picture_features(model, processor, pictures, batch_size=4)
    assert len(asked) == 10 and all(number <= 4 * (batch + 1) + 8 for batch, number in enumerate(asked))
    assert len(pooled) == 40
    alone = features.picture_features(model, processor, [pictures[1]])
    torch.testing.assert_close(pooled[1:2], alone)


def expected_features(captions: Path, tower: Path, layer: int = -2, grid: int = 1) -> tuple[dict, torch.Tensor]:
    """What `store_features` should have described and computed, two pictures at a time."""
    found, (model, processor) = read_captions(str(captions)), load_eyes(str(tower), None, layer, grid)
    parts = [found.pictures[start : start + 2] for start in range(0, 5, 2)]
    pooled = [features.picture_features(model, processor, part) for part in parts]
    return describe_features(model, found), torch.cat(pooled)


def test_features_of_every_picture_are_stored_once_and_say_what_they_are(run_command, captions, tiny_tower, tmp_path):
    line = ["features", captions, "--vision-tower", tiny_tower, "--output-dir", tmp_path / "out", "--grid", "2"]
    code, out, _ = run_command(*line)
    assert code == 0 and "pooled features of 5 pictures" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"features-0000{n}.arrow" for n in range(3)}
    description, pooled = expected_features(captions, tiny_tower, grid=2)
    stored = StoredFeatures(tmp_path / "out", description)
    assert stored.shape == pooled.shape == (5, 4, 16)
    assert all(torch.equal(stored[number], pooled[number]) for number in range(5))
    with pa.ipc.open_stream(tmp_path / "out" / "features-00000.arrow") as stream:
        metadata = json.loads(stream.schema.metadata[features.DESCRIPTION])
    assert metadata == description
    assert metadata["vision_tower"] == f"sha256:{sha256(tiny_tower / 'model.safetensors')}"
    assert (metadata["vision_feature_layer"], metadata["vision_grid"], metadata["pictures"]) == ("-2", "2", "5")


def test_another_kind_of_tower_will_do(captions, tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=28)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path / "vit")
    store_features(str(captions), tmp_path / "out", str(tmp_path / "vit"), layer=-1)
    rows = Dataset.from_file(str(tmp_path / "out" / "features-00002.arrow")).with_format("torch")
    assert rows["features"][:].shape == (1, 1, 8)


DIES = """
import os, signal, sys
from pathlib import Path
from babylm_vlm.data import features
captions, out, tower = sys.argv[1:]
open_picture = features.open_picture

def die_at_the_second(picture):
    if any(Path(out).glob("*.arrow")):
        os.kill(os.getpid(), signal.SIGKILL)
    return open_picture(picture)

features.open_picture, features.PICTURES_A_FILE = die_at_the_second, 2
features.store_features(captions, Path(out), tower)
"""


def test_a_killed_call_goes_on_where_it_was(captions, tiny_tower, tmp_path):
    done = subprocess.run([sys.executable, "-c", DIES, captions, tmp_path / "out", tiny_tower], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    first = tmp_path / "out" / "features-00000.arrow"
    before = first.stat().st_mtime_ns
    with pytest.raises(FileNotFoundError, match=r"features-00001\.arrow is missing: make it with"):
        StoredFeatures(tmp_path / "out", expected_features(captions, tiny_tower)[0])
    store_features(str(captions), tmp_path / "out", str(tiny_tower))
    assert first.stat().st_mtime_ns == before
    description, pooled = expected_features(captions, tiny_tower)
    stored = StoredFeatures(tmp_path / "out", description)
    assert torch.equal(torch.stack([stored[number] for number in range(5)]), pooled)


def test_features_that_do_not_fit_are_refused(captions, tiny_tower, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no features: make them with the command"):
        StoredFeatures(tmp_path, expected_features(captions, tiny_tower)[0])
    out = tmp_path / "out"
    store_features(str(captions), out, str(tiny_tower), layer=-1)
    with pytest.raises(ValueError, match="are of vision_feature_layer -1, but -2 is needed"):
        store_features(str(captions), out, str(tiny_tower))
    with pytest.raises(ValueError, match="are of vision_grid 1, but 2 is needed"):
        store_features(str(captions), out, str(tiny_tower), layer=-1, grid=2)
    store_features(str(captions), out, str(tiny_tower), layer=-1, grid=2, overwrite=True)
    (captions / "metadata.jsonl").write_text(json.dumps({"file_name": "red.png", "text": "red"}) + "\n")
    with pytest.raises(ValueError, match="are of pictures 5, but 1 is needed"):
        store_features(str(captions), out, str(tiny_tower), layer=-1, grid=2)
    (out / "features-00000.arrow").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"features-00000\.arrow is damaged"):
        store_features(str(captions), out, str(tiny_tower), layer=-1, grid=2)


def test_training_with_stored_features_gives_the_weights_it_gives_without(
    captions, tiny_tower, language_checkpoint, tmp_path
):
    keys = {"model": "multimodal", "init_from": str(language_checkpoint), "captions": str(captions), "max_steps": 3}
    keys |= {"vision_tower": str(tiny_tower), "learning_rate": 1e-2, "per_device_train_batch_size": 4}

    def run(name: str, **more) -> Path:
        train(make_recipe({**keys, **more, "output_dir": str(tmp_path / name)}, "the test"))
        return tmp_path / name / "model.safetensors"

    store_features(str(captions), tmp_path / "features", str(tiny_tower), batch_size=2)
    stored = load_file(run("stored", features=str(tmp_path / "features")))
    online = load_file(run("online"))
    assert all(torch.allclose(stored[name], online[name], atol=1e-6) for name in online)
    with pytest.raises(ValueError, match="are of vision_grid 1, but 2 is needed"):
        run("other", features=str(tmp_path / "features"), vision_grid=2)
    with pytest.raises(ValueError, match="A language model takes no 'features'"):
        make_recipe({"model": "language", "text": "t.txt", "features": "f", "output_dir": "o"}, "the test")
