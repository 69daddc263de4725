"""Checkpoints of a few tensors, without a model, and their merge plans."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from babylm_vlm.merging import linear_plan_yaml, read_plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROJECTOR = "model.multi_modal_projector.linear_1.weight"
NORM, EMBED = "model.norm.weight", "model.embed_tokens.weight"


def tensors(seed: int, dtype: torch.dtype = torch.float32, projector: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {NORM: (7,), EMBED: (13, 7)} | ({PROJECTOR: (7, 5)} if projector else {})
    return {name: (torch.randn(shape, generator=generator) * 0.05).to(dtype) for name, shape in shapes.items()}


def write_checkpoint(folder: Path, weights: dict[str, torch.Tensor], shards: int = 1) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}')
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = [f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
    weight_map = {tensor: names[place % shards] for place, tensor in enumerate(weights)}
    for name in names:
        save_file({tensor: weights[tensor] for tensor in weights if weight_map[tensor] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_plan(text: str, path: str = "plan.yaml") -> Path:
    Path(path).write_text(text)
    return Path(path)


def linear_plan(alpha: float = 0.3):
    return read_plan(write_plan(linear_plan_yaml("multimodal", "language", alpha)))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    assert [name for name in one if not same_bits(one[name], other[name])] == []
