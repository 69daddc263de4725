"""How fast a model trains, and how fast it could on this device."""

import os
import platform
import time

import torch
from transformers import PreTrainedModel


def hardware() -> str:
    """The device that trains, in words: the GPU's name, or the kind of processor and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''})"


def flops_per_token(model: PreTrainedModel, row_length: int) -> int:
    """FLOPs of forward and backward for a token (PaLM, appendix B): 6 a parameter, and 12 L d T for attention.

    Tied embeddings count once, as the head; untied ones not at all, as they are looked up. It is counted as if all
    weights were trained, and each token attended to T others, also where samples are packed; the tower, which runs
    before training, is left out.

    Args:
        model: a Llama, with eyes or without.
        row_length: T.
    """
    config = model.config
    looked_up = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    attention = 12 * config.num_hidden_layers * config.hidden_size * row_length
    return 6 * (model.num_parameters() - looked_up) + attention


def matmul_rate(dtype: torch.dtype, device: torch.device, rounds: int = 5) -> float:
    """Floating-point operations a second of a device's multiplication of square matrices, the best of some rounds."""
    size = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)  # training's own random numbers stay what they are
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
