"""Training beyond the plain run: captions packed to rows, one kind of data first, adapters, several processes.

Run: pytest tests/test_twins.py
"""

import json
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from babylm_vlm.data.captions import CaptionBlocks, CaptionRows
from babylm_vlm.data.packing import PackingCollator
from babylm_vlm.model import BabylmVlmForConditionalGeneration
from babylm_vlm.training.recipe import make_recipe
from babylm_vlm.training.train import TwinTrainer, train

COLOURS = ["red", "green", "blue", "white"]
LINES = [f"the {colour} {thing} is big" for colour in COLOURS for thing in "abcdefgh"]


@pytest.fixture
def keys(tmp_path, language_checkpoint, tiny_tower):
    """A multimodal recipe on sixteen captions of four pictures, from a random language model."""
    folder = tmp_path / "captions"
    folder.mkdir()
    rows = [{"file_name": f"{colour}.png", "text": f"a {colour} {thing}"} for colour in COLOURS for thing in "abcd"]
    for colour in COLOURS:
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    return {
        "model": "multimodal",
        "init_from": str(language_checkpoint),
        "captions": str(folder),
        "vision_tower": str(tiny_tower),
        "block_size": 48,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 2,
        "disable_tqdm": True,
    }


def run(folder: Path, resume: bool = False, **keys) -> dict:
    return train(make_recipe({**keys, "output_dir": str(folder)}, "the test"), resume=resume)


def die_at(number: int, monkeypatch) -> None:
    """Kill this process before the update after step `number`."""
    step = TwinTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(TwinTrainer, "training_step", training_step)


def same_weights(a: Path, b: Path) -> bool:
    one, other = (load_file(folder / "model.safetensors") for folder in (a, b))
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


# --- captions packed to rows -----------------------------------------------------------------------------------------


def test_a_row_of_captions_has_about_as_many_tokens_as_a_row_of_text(tiny_tokenizer):
    captions = [(number % 4, f"a {colour} {thing}") for number, colour in enumerate(COLOURS) for thing in "abcdefgh"]
    rows = CaptionRows(captions, torch.randn(4, 1, 8), tiny_tokenizer)
    blocks = CaptionBlocks(rows, 48, seed=0)
    assert sorted(index for row in blocks.rows for index in row) == list(range(len(rows)))
    assert max(blocks.tokens) <= 48 and min(blocks.tokens[:-1]) > 48 - max(rows.tokens)
    assert blocks.words.sum() == rows.words.sum() == 3 * len(captions)
    assert blocks.rows != CaptionBlocks(rows, 48, seed=1).rows
    packed = PackingCollator(tiny_tokenizer, 48)([blocks[0], blocks[1]])
    alone = PackingCollator(tiny_tokenizer, 48)([*blocks[0], *blocks[1]])
    assert all(torch.equal(packed[name], alone[name]) for name in ("input_ids", "position_ids", "image_features"))


@pytest.mark.parametrize("order", ["text_first", "captions_first"])
def test_one_kind_of_data_comes_first(keys, tmp_path, order):
    text = {"text": str(tmp_path / "text.txt"), "pack_captions": True, "num_train_epochs": 2, "max_steps": -1}
    state = run(tmp_path / "run", **keys | text, data_order=order, checkpoint_words=[100])
    assert state["epochs"] == 2 and 2 * (32 * 5 + 16 * 3) - 2 * 48 < state["words_seen"] <= 2 * (32 * 5 + 16 * 3)
    moved = [
        load_file(tmp_path / "run" / name / "model.safetensors")["model.multi_modal_projector.linear_2.bias"].any()
        for name in ("chck_100", "")
    ]
    assert moved == [order == "captions_first", True]  # two passes over the captions have 96 words, over text 320


# --- adapters --------------------------------------------------------------------------------------------------------


def test_an_adapter_scaled_by_alpha_is_the_merge_of_the_folded_checkpoint(keys, tmp_path, language_checkpoint):
    state = run(tmp_path / "run", **keys, lora={"r": 4, "lora_alpha": 8}, checkpoint_words=[24])
    folded = load_file(tmp_path / "run" / "model.safetensors")
    language = LlamaForCausalLM.from_pretrained(language_checkpoint)
    own = {name: tensor for name, tensor in language.state_dict().items() if name in folded}
    changed = {name for name in own if not torch.equal(own[name], folded[name])}
    assert len(changed) == 2 * 7 and all("_proj" in name for name in changed)
    assert state["parameters"] == BabylmVlmForConditionalGeneration.from_pretrained(tmp_path / "run").num_parameters()
    for alpha in (0.0, 0.3, 1.0):
        base = BabylmVlmForConditionalGeneration.from_pretrained(tmp_path / "run")
        base.load_state_dict(own, strict=False)
        model = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
        for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
            layer.scale_layer(alpha)
        dialled = model.merge_and_unload().state_dict()
        for name, tensor in folded.items():
            expected = alpha * tensor + (1 - alpha) * own[name] if name in own else tensor
            torch.testing.assert_close(dialled[name], expected, atol=1e-6, rtol=1e-5)
    early = load_file(tmp_path / "run" / "chck_24" / "model.safetensors")
    assert set(early) == set(folded) and (tmp_path / "run" / "chck_24" / "adapter").is_dir()


def test_adapters_need_an_ancestor_and_right_fields(keys, tmp_path):
    with pytest.raises(ValueError, match="'lora' needs 'init_from'"):
        make_recipe({**keys, "output_dir": "o", "lora": {"r": 4}, "init_from": None}, "the test")
    with pytest.raises(ValueError, match="'lora' and 'fsdp' do not go together"):
        make_recipe({**keys, "output_dir": "o", "lora": {"r": 4}, "fsdp": True}, "the test")
    with pytest.raises(ValueError, match=r"'lora' has a wrong field: .*rank"):
        run(tmp_path / "run", **keys, lora={"rank": 4})
    assert not (tmp_path / "run").exists()


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"lora": {"r": 4, "lora_alpha": 8}}], ids=["all weights", "adapters"])
def test_a_killed_run_of_text_and_captions_that_is_resumed_ends_with_the_same_weights(
    keys, tmp_path, monkeypatch, more
):
    keys |= {"text": str(tmp_path / "text.txt"), "pack_captions": True, "max_steps": -1, "num_train_epochs": 4}
    keys |= {"save_strategy": "steps", "save_steps": 2, "checkpoint_words": [400], "projector_learning_rate": 2e-2}
    whole = run(tmp_path / "whole", **keys, **more)
    pid = os.fork()
    if pid == 0:
        try:
            die_at(whole["steps"] - 3, monkeypatch)
            run(tmp_path / "run", **keys, **more)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run" / "config.json").exists()
    state = run(tmp_path / "run", resume=True, **keys, **more)
    assert (state["steps"], state["words_seen"]) == (whole["steps"], whole["words_seen"])
    for name in ("", "chck_400"):
        assert same_weights(tmp_path / "run" / name, tmp_path / "whole" / name)


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"fsdp": True}], ids=["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one_and_are_resumed(keys, tmp_path, language_checkpoint, monkeypatch, more):
    if more:
        allow_fsdp_on_a_cpu(monkeypatch)
    keys = {"model": "language", "text": str(tmp_path / "text.txt"), "init_from": str(language_checkpoint)}
    keys |= {"block_size": 16, "max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "disable_tqdm": True}
    keys |= {"save_strategy": "steps", "save_steps": 2, "checkpoint_words": [60]}
    one = run(tmp_path / "one", **keys, per_device_train_batch_size=4)
    keys |= more
    assert two_processes(tmp_path / "two", keys) == [0, 0]
    two = json.loads((tmp_path / "two" / "training_state.json").read_text())
    assert two["final_loss"] == pytest.approx(one["final_loss"], rel=1e-5)
    assert (two["words_seen"], two["tokens_seen"]) == (one["words_seen"], one["tokens_seen"])
    for name in ("", "chck_60"):
        pair = [load_file(tmp_path / folder / name / "model.safetensors") for folder in ("one", "two")]
        assert all(torch.allclose(pair[0][tensor], pair[1][tensor], atol=1e-5) for tensor in pair[0])
    assert not list((tmp_path / "two").glob("checkpoint-*"))
    with monkeypatch.context() as patch:
        die_at(2, patch)
        assert two_processes(tmp_path / "killed", keys) == [-signal.SIGKILL] * 2
    assert two_processes(tmp_path / "killed", keys, resume=True) == [0, 0]
    assert all(same_weights(tmp_path / "killed" / name, tmp_path / "two" / name) for name in ("", "chck_60"))


def allow_fsdp_on_a_cpu(monkeypatch) -> None:
    """Accelerate takes FSDP's plugin only where there are several GPUs; torch's FSDP itself runs under gloo too."""
    init = AcceleratorState.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    monkeypatch.setattr(AcceleratorState, "__init__", patched)


def two_processes(folder: Path, keys: dict, resume: bool = False) -> list[int]:
    """Train with two processes; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [fork_rank(rank, port, folder, keys, resume) for rank in range(2)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def fork_rank(rank: int, port: int, folder: Path, keys: dict, resume: bool) -> int:
    """A child that trains as process `rank` of two, as `torchrun` would start it; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        run(folder, resume, **keys, per_device_train_batch_size=2, ddp_backend="gloo")
        code = 0
    finally:
        os._exit(code)
