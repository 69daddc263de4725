"""Pooled features as a data set of a Hub on loopback: `datasets` reads them, and training takes them by name.

Run: pytest tests/test_push_features.py
"""

import json

import pytest
import torch
from datasets import Dataset
from huggingface_hub import DatasetCard
from local_hub import Repository
from PIL import Image
from safetensors.torch import load_file

from babylm_vlm.data.features import read_file

NAME = "someone/tiny-features"
LOAD = f"""
from datasets import load_dataset
rows = load_dataset("{NAME}", split="train").with_format("torch")
print(rows["picture"][:], rows["features"][:].tolist())
"""


@pytest.fixture
def captions(tmp_path):
    """Pictures of one colour each."""
    folder = tmp_path / "captions"
    folder.mkdir()
    colours = ("red", "green", "blue")
    for colour in colours:
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
    rows = [{"file_name": f"{colour}.png", "text": f"a {colour} ball"} for colour in colours]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_published_features_are_read_by_datasets_and_by_training(
    local_hub, run_command, captions, tiny_tower, language_checkpoint, tmp_path
):
    stored = tmp_path / "features"
    line = ["features", captions, "--vision-tower", tiny_tower, "--output-dir", stored, "--grid", "2"]
    code, out, err = local_hub.command(*line, "--push-to", NAME, cache=tmp_path / "ours")
    assert code == 0, err
    assert f"{NAME}, branch main: commit" in out
    files = local_hub.files(NAME, kind="datasets")
    assert set(files) == {"README.md", "features-00000.arrow"}
    assert not [path for path, content in files.items() if str(tmp_path).encode() in content]
    card = DatasetCard(files["README.md"].decode())
    assert card.data.license is None
    assert "Features of 3 pictures" in card.text
    assert "mean-pooled to 4 vectors of 16 numbers" in card.text
    for row in ("| Pictures of | captions |", "| Hidden state | -2 |", "| Grid | 2 × 2 |"):
        assert row in card.text
    pooled = read_file(stored / "features-00000.arrow")
    names = ["red.png", "green.png", "blue.png"]
    assert local_hub.python(LOAD, cache=tmp_path / "theirs") == f"{names} {pooled.tolist()}"

    recipe = tmp_path / "recipe.yaml"
    keys = {"model": "multimodal", "init_from": str(language_checkpoint), "captions": str(captions), "max_steps": 2}
    keys |= {"vision_tower": str(tiny_tower), "vision_grid": 2, "per_device_train_batch_size": 2}
    recipe.write_text(json.dumps(keys | {"output_dir": str(tmp_path / "run")}))
    code, _, err = local_hub.command("train", recipe, f"features={NAME}", cache=tmp_path / "theirs")
    assert code == 0, err
    from_hub = load_file(tmp_path / "run" / "model.safetensors")
    code, _, err = run_command("train", recipe, f"features={stored}", "--overwrite")
    assert code == 0, err
    from_disk = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(from_hub[name], tensor) for name, tensor in from_disk.items())
    code, _, err = run_command("train", recipe, "features=someone/nothing", "--overwrite")
    assert code == 1
    assert "There is no folder or data set someone/nothing here or on the Hub; check 'features', or make them" in err


def test_captions_of_the_hub_give_their_licence_and_no_old_file_stays(local_hub, tiny_tower, tmp_path):
    pictures = [Image.new("RGB", (28, 28), colour) for colour in ("red", "blue")]
    Dataset.from_dict({"image": pictures, "text": ["red", "blue"]}).to_parquet(tmp_path / "rows.parquet")
    files = {"rows.parquet": (tmp_path / "rows.parquet").read_bytes(), "README.md": b"---\nlicense: cc-by-4.0\n---\n"}
    for name, content in (("someone/captions", files), (NAME, {"features-00001.arrow": b"of another set"})):
        repository = local_hub.repositories[f"datasets/{name}"] = Repository(private=False)
        repository.commit("main", None, "first", content)
    line = ["features", "someone/captions", "--vision-tower", tiny_tower, "--output-dir", tmp_path / "features"]
    code, _, err = local_hub.command(*line, "--push-to", NAME, cache=tmp_path / "ours")
    assert code == 0, err
    files = local_hub.files(NAME, kind="datasets")
    assert set(files) == {"README.md", "features-00000.arrow"}
    card = DatasetCard(files["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert "| Pictures of | someone/captions |" in card.text
