"""Tiny real tokenizer, models and checkpoints, made once per session. Nothing is asked of the network."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"  # both are read when a Hugging Face library is first imported
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="babylm-vlm-tests-")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from local_hub import local_hub  # noqa: F401
from pair_files import row, write_lines
from PIL import Image
from tqdm import tqdm
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from babylm_vlm.data.tokenizer import train_tokenizer
from babylm_vlm.model import BabylmVlmConfig, BabylmVlmForConditionalGeneration, BabylmVlmProcessor

torch.set_num_threads(1)
tqdm.set_lock(threading.RLock())  # its own is shared with forked processes, and stays taken when one is killed
settings.register_profile("no deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no deadline")  # on a busy machine a slow example is no error
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

SENTENCES = [
    "the cat sat next to the tree",
    "the dog sees a red ball",
    "a red cat is under the blue table",
    "who did the girl see",
    "the girls were running home and the boys were not",
]
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # ten times the usual: sentences then differ clearly in probability
}


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Byte-level BPE of 320 tokens."""
    return train_tokenizer(SENTENCES, vocab_size=320)


@pytest.fixture(scope="session")
def decoder_fields(tiny_tokenizer):
    """Fields that the two models' configurations share."""
    ids = {name: getattr(tiny_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {"vocab_size": len(tiny_tokenizer), **ids, **DECODER}


@pytest.fixture(scope="session")
def tiny_tower(tmp_path_factory):
    """Folder of a random DINOv2 of width 16 with its image processor: 28 x 28 pixels, 2 x 2 patches."""
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(2)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def language_checkpoint(tmp_path_factory, tiny_tokenizer, decoder_fields):
    """Folder of a random plain Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("language")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**decoder_fields)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def multimodal_checkpoint(tmp_path_factory, tiny_tokenizer, tiny_tower, decoder_fields):
    """Folder of a random multimodal model (2 x 2 visual tokens), its processor and its tower."""
    folder = tmp_path_factory.mktemp("multimodal")
    torch.manual_seed(1)
    config = BabylmVlmConfig(
        vision_tower=str(tiny_tower),
        vision_hidden_size=16,
        vision_grid=2,
        image_token_id=tiny_tokenizer.convert_tokens_to_ids("<image>"),
        **decoder_fields,
    )
    BabylmVlmForConditionalGeneration(config).save_pretrained(folder)
    image_processor = BitImageProcessor.from_pretrained(tiny_tower)
    BabylmVlmProcessor(image_processor, tiny_tokenizer, visual_tokens=4).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_language(language_checkpoint):
    """A fresh language-only model."""
    return LlamaForCausalLM.from_pretrained(language_checkpoint).eval()


@pytest.fixture
def tiny_multimodal(multimodal_checkpoint):
    """A fresh multimodal model and its processor."""
    model = BabylmVlmForConditionalGeneration.from_pretrained(multimodal_checkpoint).eval()
    return model, BabylmVlmProcessor.from_pretrained(multimodal_checkpoint)


@pytest.fixture
def grounded_file(tmp_path):
    """Eight mirrored pairs under sixteen pictures of one colour each."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(8):
        captions = [f"a red ball {number}", f"the blue cat {number}"]
        for picture in range(2):
            name = f"pictures/{number}_{picture}.png"
            (tmp_path / "grounded" / "pictures").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), tuple(generator.integers(256, size=3).tolist())).save(
                tmp_path / "grounded" / name
            )
            good, bad = captions if picture == 0 else captions[::-1]
            rows.append(row(good, bad, image=name, pair=number, UID="colour"))
    return write_lines(tmp_path / "grounded" / "pairs.jsonl", rows)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A finished quick demo: its folder, what it printed and its results."""
    place = tmp_path_factory.mktemp("place")
    command = [sys.executable, "-m", "babylm_vlm.cli", "demo", "--quick", "--output-dir", "demo"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((place / "demo" / "results.json").read_text())
    return SimpleNamespace(place=place, folder=place / "demo", printed=done.stdout, results=results)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def run_command(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `babylm-vlm ARGUMENTS` in this process; returns exit code, stdout and stderr."""
    from babylm_vlm.cli import main

    def run(*arguments: str | os.PathLike) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["babylm-vlm", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return code or 0, *capsys.readouterr()

    return run
