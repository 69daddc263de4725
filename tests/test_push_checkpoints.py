"""Training that publishes its checkpoints when they appear, on a Hub on loopback.

Run: pytest tests/test_push_checkpoints.py
"""

from pathlib import Path

import pytest
import yaml
from tiny_run import TINY_RUN

NAME = "someone/tiny"
KEYS = {**TINY_RUN, "max_steps": 8, "checkpoint_words": [40, 80]}


@pytest.fixture
def train(local_hub, tmp_path):
    """Run `babylm-vlm train --push-checkpoints`; returns exit code, stdout and stderr."""
    (tmp_path / "text.txt").write_text("".join(f"the red {thing} is big\n" for thing in "abcdefghijklmnop"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**KEYS, "text": "text.txt", "output_dir": "run"}))

    def train(*more: str):
        files = (tmp_path / "recipe.yaml", f"text={tmp_path / 'text.txt'}", "--output-dir", tmp_path / "run")
        return local_hub.command("train", *files, "--push-checkpoints", NAME, *more, cache=tmp_path / "cache")

    return train


def arrived(local_hub, folder: Path, branch: str = "main") -> bool:
    return local_hub.files(NAME, branch)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_each_checkpoint_has_its_branch_and_the_end_is_main(local_hub, train, tmp_path):
    code, _, err = train()
    assert code == 0, err
    assert arrived(local_hub, tmp_path / "run")
    assert all(arrived(local_hub, tmp_path / "run" / name, name) for name in ("chck_40", "chck_80"))
    repository = local_hub.repositories[f"models/{NAME}"]
    assert [len(repository.history(branch)) for branch in ("main", "chck_40", "chck_80")] == [2, 2, 2]  # sent once
    commits = [request.rpartition("/")[2] for request in local_hub.requests if "/commit/" in request]
    assert commits == ["chck_40", "chck_80", "main"] and "not published" not in err


def test_a_failed_upload_does_not_stop_training_and_is_made_up_for(local_hub, train, tmp_path):
    local_hub.fail("POST", "/branch/chck_40", status=400)
    local_hub.fail("POST", "/commit/chck_80", status=403)
    code, _, err = train()
    assert code == 0 and "Warning: chck_40 was not published: The Hub refuses someone/tiny (400)" in err
    assert err.count("was not published") == 1
    assert arrived(local_hub, tmp_path / "run")
    assert all(arrived(local_hub, tmp_path / "run" / name, name) for name in ("chck_40", "chck_80"))


def test_a_finished_run_whose_end_was_not_published_is_sent_when_resumed(local_hub, train, tmp_path):
    local_hub.fail("POST", "/commit/main", status=403)
    code, _, err = train()
    assert code == 1 and "403" in err and (tmp_path / "run" / "model.safetensors").is_file()
    code, _, err = train("--resume")
    assert code == 0, err
    assert arrived(local_hub, tmp_path / "run")


def test_a_wrong_name_is_found_before_training(run_command, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**KEYS, "text": "a.txt", "output_dir": str(tmp_path)}))
    line = ("train", tmp_path / "recipe.yaml", "--output-dir", tmp_path / "run", "--push-checkpoints", "tiny")
    code, _, err = run_command(*line)
    assert code == 1 and "needs its owner too" in err and not (tmp_path / "run").exists()
