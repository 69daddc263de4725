"""Runs that are interrupted: killed, told to stop, out of numbers; and what they leave at numbers of words seen.

Run: pytest tests/test_resume.py
"""

import json
import os
import shutil
import signal
from math import nan
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import TINY_RUN
from transformers import AutoTokenizer, LlamaForCausalLM

from babylm_vlm.files import sha256
from babylm_vlm.training import checkpoints
from babylm_vlm.training import train as trainer_module
from babylm_vlm.training.recipe import make_recipe
from babylm_vlm.training.train import TwinTrainer, train

KEYS = {
    **TINY_RUN,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1.0e-2,
    "num_train_epochs": 3,
    "save_steps": 3,
    "checkpoint_words": [100, 300, 2000],
}
LINES = [
    f"the {colour} {thing} is {place}" for colour in ("red", "blue") for thing in "abcdefgh" for place in ("in", "up")
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Thirty-two sentences of five words."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(LINES))
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    """Folder and state of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder, text)


def run(folder: Path, text: Path, resume: bool = False, **keys) -> dict:
    return train(
        make_recipe({**KEYS, "text": str(text), "output_dir": str(folder), **keys}, "the test"), resume=resume
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(number: int, act):
    """`TwinTrainer.training_step`, with something happening before the update after step `number`."""
    step = TwinTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == number:
            act(self)
        return step(self, *args, **kwargs)

    return training_step


# --- checkpoints by words seen ---------------------------------------------------------------------------------------


def test_checkpoints_have_seen_no_more_words_than_they_say(whole):
    folder, state = whole
    assert {path.name for path in folder.glob("ch*")} == {"chck_100", "chck_300"}  # 2000 is more than the run reads
    for number, name in ((100, "chck_100"), (300, "chck_300")):
        seen = json.loads((folder / name / "training_state.json").read_text())
        assert number - 4 * 16 < seen["words_seen"] <= number and not seen["finished"]
        assert seen["tokens_seen"] % 16 == 0 and seen["tokens_seen"] > seen["words_seen"]
        assert {key: seen[key] for key in ("data", "data_sha256", "seed", "ancestor", "recipe")} == {
            key: state[key] for key in ("data", "data_sha256", "seed", "ancestor", "recipe")
        }
    assert state["finished"] and state["epochs"] == 3


def test_checkpoints_are_complete(whole):
    folder, _ = whole
    for place in (folder, folder / "chck_100"):
        model, tokenizer = LlamaForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
        assert model(**tokenizer("the red", return_tensors="pt")).logits.isfinite().all()
        assert (place / "README.md").is_file() and not list(place.glob("*.pt")) and not list(place.glob("*.bin"))
    assert not same_weights(folder, folder / "chck_100")
    assert not list(folder.glob(".*"))


# --- killed ----------------------------------------------------------------------------------------------------------

MOMENTS = {
    "before the first resume point": (TwinTrainer, "training_step", at_step(2, die)),
    "after a resume point": (TwinTrainer, "training_step", at_step(7, die)),
    "while a resume point is written": (checkpoints, "resume_point", die),
    "while a checkpoint is written": (checkpoints, "write_trained_card", die),
    "after the last update": (trainer_module, "finish", die),
    "before a finished run is tidied": (checkpoints, "tidy", die),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_that_is_resumed_ends_with_the_same_weights(whole, text, tmp_path, monkeypatch, moment):
    place, name, replacement = MOMENTS[moment]
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(place, name, replacement)
        try:
            run(tmp_path / "run", text)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    state = run(tmp_path / "run", text, resume=True)
    assert same_weights(tmp_path / "run", whole[0])
    assert all(same_weights(tmp_path / "run" / n, whole[0] / n) for n in ("chck_100", "chck_300"))
    assert {key: state[key] for key in ("steps", "words_seen", "finished", "data_sha256")} == {
        key: whole[1][key] for key in ("steps", "words_seen", "finished", "data_sha256")
    }
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole[0].iterdir()}


def test_a_run_that_ends_inside_a_pass_and_is_killed_at_its_end_is_finished(text, tmp_path, monkeypatch):
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(trainer_module, "finish", die)
        try:
            run(tmp_path / "run", text, max_steps=5)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    state = run(tmp_path / "run", text, resume=True, max_steps=5)
    whole = run(tmp_path / "whole", text, max_steps=5)
    assert state["steps"] == 5 and state["epochs"] % 1 > 0 and state["words_seen"] == whole["words_seen"]
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_sigterm_stops_after_the_update_and_the_run_goes_on_later(whole, text, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(TwinTrainer, "training_step", at_step(4, lambda _: signal.raise_signal(signal.SIGTERM)))
        with pytest.raises(InterruptedError, match=r"Stopped by SIGTERM after step 5 of .* and --resume"):
            run(tmp_path / "run", text)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-5"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    run(tmp_path / "run", text, resume=True)
    assert same_weights(tmp_path / "run", whole[0])


# --- what may be resumed ---------------------------------------------------------------------------------------------


def test_resume_leaves_a_finished_run_and_begins_where_there_is_none(whole, text, tmp_path):
    folder, state = whole
    before = sha256(folder / "model.safetensors")
    assert run(folder, text, resume=True) == state and sha256(folder / "model.safetensors") == before
    run(tmp_path / "run", text, resume=True, max_steps=1)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_another_recipe_or_other_data_are_not_resumed(text, tmp_path, monkeypatch):
    own = tmp_path / "text.txt"
    own.write_text(text.read_text())
    with monkeypatch.context() as patch:
        patch.setattr(TwinTrainer, "training_step", at_step(4, lambda _: signal.raise_signal(signal.SIGTERM)))
        with pytest.raises(InterruptedError):
            run(tmp_path / "run", own)
    with pytest.raises(FileExistsError, match="run exists: choose another one, or pass --overwrite"):
        run(tmp_path / "run", own)
    with pytest.raises(ValueError, match=r"has 0\.01 for 'learning_rate', and the recipe 0\.1: a run is resumed with"):
        run(tmp_path / "run", own, resume=True, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"has 3 for 'num_train_epochs', and the recipe None: a run is resumed with"):
        shorter = {key: value for key, value in KEYS.items() if key != "num_train_epochs"}
        train(make_recipe({**shorter, "text": str(own), "output_dir": str(tmp_path / "run")}, "the test"), resume=True)
    state = tmp_path / "run" / "training_state.json"
    begun = state.read_text()
    state.write_text(begun.replace('"tokens_seen": ', '"tokens_seen": 9'))  # as with more processes
    with pytest.raises(ValueError, match=r"resume it with as many processes as it began with"):
        run(tmp_path / "run", own, resume=True)
    state.write_text(begun)
    own.write_text(text.read_text().replace("red", "bed"))
    with pytest.raises(ValueError, match="The data have changed since"):
        run(tmp_path / "run", own, resume=True)
    assert (tmp_path / "run" / "checkpoint-5").is_dir()


# --- too little room -------------------------------------------------------------------------------------------------


def test_a_run_that_does_not_fit_on_the_disk_is_not_begun(whole, text, tmp_path, monkeypatch):
    weights = 4 * whole[1]["parameters"]
    room = {name: shutil.disk_usage(tmp_path)._replace(free=free) for name, free in (("little", 9 * weights - 1),)}
    room["enough"] = room["little"]._replace(free=9 * weights)  # two checkpoints, the end, two resume points of three
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room["little"])
    with pytest.raises(OSError, match=r"run needs .* but only .* are free there"):
        run(tmp_path / "run", text)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room["enough"])
    run(tmp_path / "run", text)


# --- numbers that are none -------------------------------------------------------------------------------------------


def test_a_loss_of_nan_stops_and_the_last_good_checkpoint_stays(text, tmp_path, monkeypatch):
    monkeypatch.setattr(
        TwinTrainer, "training_step", at_step(6, lambda trainer: trainer.model.lm_head.weight.data.fill_(nan))
    )
    with pytest.raises(ValueError, match=r"The loss is nan at step 7\. The last good checkpoint is .*chck_100"):
        run(tmp_path / "run", text, save_strategy="no")
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run" / "chck_100").values())
    with pytest.raises(ValueError, match=r"The loss is nan at step 7\. No checkpoint was written"):
        run(tmp_path / "none", text, save_strategy="no", checkpoint_words=None)
    assert not (tmp_path / "none").exists()


def test_weights_that_are_not_finite_are_not_saved(text, tmp_path):
    with pytest.raises(ValueError, match=r"After step 1 the weights are not finite\. No checkpoint was written"):
        run(tmp_path / "run", text, learning_rate=1e39, lr_scheduler_type="constant", save_steps=1)
    assert not (tmp_path / "run").exists()
