"""Will it merge? Distances between two models layer by layer, and the loss on the straight line between their weights.

- Two models merge well where the loss along the line stays below the line between the losses at its ends: they are
  linearly connected (Frankle et al. 2020, arXiv 1912.05671). The barrier is the largest excess,
  max over alpha of L(alpha) - (alpha L(1) + (1 - alpha) L(0)); it is 0 at the ends, so never negative.
- The loss is nats per token on text alone, and the verdict comes from the barrier alone. Frankle et al. call networks
  connected if the error rises by less than 2 points; on a loss, which has no such scale, we take fractions of the mean
  loss at the ends.
- Distances explain the verdict. With the ancestor's weights at hand the cosine is that of task vectors, the steps that
  each model took away from it (Ilharco et al. 2023, arXiv 2212.04089); without, of the weights themselves.
- Only matrices count. The gains of the norms are near 1 in every model and would make any two look alike.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm.auto import tqdm

from ..data.text import read_sentences
from ..evaluation import load_model, read_pairs, token_scores
from ..files import check_new_folder, new_folder, read_json, sha256
from ..hub.facts import STATE_FILE, common_ancestor, has_eyes
from .interpolation import Interpolation, check_vocabularies, read_tensors
from .plan import PROJECTOR, Source
from .plots import plot_diagnosis
from .preflight import check_configurations

DIAGNOSIS_FILE = "diagnosis.json"
HELD_OUT = Path(__file__).resolve().parents[1] / "demo" / "data" / "selection" / "grammar"
SENTENCES = 400
ALPHAS = [round(0.1 * step, 1) for step in range(11)]
CONNECTED, SEPARATE = 0.02, 0.20
"""Barrier, as a fraction of the mean loss at the ends, up to which a merge is safe, and from which it is hopeless."""


def diagnose(
    a: Path,
    b: Path,
    ancestor: Path | None = None,
    text: Path | None = None,
    output_dir: Path | None = None,
    overwrite: bool = False,
) -> dict:
    """Compare two checkpoints and walk from one to the other.

    Alpha weighs the multimodal model; where both or neither are multimodal, it weighs `a`.

    Args:
        a, b: checkpoint folders of one architecture and one tokenizer.
        ancestor: folder of the model that both started from; by default the one that their `training_state.json`
            names, if its weights are still those on record.
        text: `.txt` or `.txt.gz` file with a sentence a line, of which the first 400 are read; by default held-out
            sentences of the package.
        output_dir: folder for `diagnosis.json` and `diagnosis.png`.
        overwrite: replace an earlier diagnosis.

    Returns:
        `{"a", "b", "ancestor": {"name", "source"} or None, "layers": [...], "path": [{"alpha", "loss"}], "barrier",
        "relative_barrier", "verdict", "reason", ...}`; losses and barrier in nats per token.

    Raises:
        FileExistsError: the output folder exists and `overwrite` is off, or it is no earlier diagnosis.
        FileNotFoundError: a checkpoint or the text is missing.
        ValueError: the models do not match, or a file is damaged.
    """
    if output_dir is not None:
        check_new_folder(output_dir, overwrite, DIAGNOSIS_FILE)
    a, b = Path(a), Path(b)
    for folder in (a, b, *([ancestor] if ancestor else [])):
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json; name the folder of a checkpoint.")
    if has_eyes(b) and not has_eyes(a):
        a, b = b, a
    check_configurations([Source(str(folder), folder, rules=()) for folder in (a, b)])
    check_vocabularies(a, b)
    sentences = read_sentences(str(text)) if text else held_out_sentences()
    found = {"name": str(ancestor), "source": "given"} if ancestor else recorded_ancestor(a, b)
    tensors = [  # in fp32, as the model: the two may be stored in different dtypes
        {name: tensor.float() for name, tensor in read_tensors(folder).items()} for folder in (a, b)
    ]
    start = read_tensors(Path(found["name"])) if found else None
    model, processor = load_model(a)
    dial = Interpolation(model, *tensors)  # checks that the models match
    layers = compare_layers(*tensors, start)
    path = loss_along_path(dial, processor, sentences[:SENTENCES])
    result = {
        "schema_version": 1,
        "a": str(a),
        "b": str(b),
        "alpha_weighs": "a",
        "ancestor": found,
        "text": str(text) if text else "held-out sentences of the package",
        "sentences": min(SENTENCES, len(sentences)),
        "layers": layers,
        "path": path,
        **barrier(path),
    }
    result |= verdict(result)
    if output_dir is not None:
        with new_folder(output_dir, overwrite, DIAGNOSIS_FILE) as folder:
            plot_diagnosis(result, folder / "diagnosis.png")
            (folder / DIAGNOSIS_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def held_out_sentences() -> list[str]:
    """Good sentences of the package's selection split, in every paradigm alike."""
    sentences = list(dict.fromkeys(pair.good for pair in read_pairs(HELD_OUT)))
    return [sentences[i * len(sentences) // SENTENCES] for i in range(SENTENCES)]


def recorded_ancestor(a: Path, b: Path) -> dict | None:
    """The common ancestor on record, where its weights are at hand and have the recorded hash; else None."""
    name = common_ancestor([Source(str(folder), folder, rules=()) for folder in (a, b)])
    weights = Path(name or "", "model.safetensors")
    if name is None or not weights.is_file():
        return None
    states = [read_json(folder / STATE_FILE) for folder in (a, b) if (folder / STATE_FILE).is_file()]
    recorded = [state["ancestor"]["sha256"] for state in states if state["ancestor"]]
    return {"name": name, "source": STATE_FILE} if sha256(weights) in recorded else None


def compare_layers(a: dict[str, Tensor], b: dict[str, Tensor], ancestor: dict[str, Tensor] | None) -> list[dict]:
    """How far apart the decoders are, layer by layer, over all matrices of a layer.

    Args:
        a, b: tensors by name.
        ancestor: those of the model that both started from, or None.

    Returns:
        for each layer `{"layer", "distance", "cosine"}`: distance |a - b| over the mean of |a| and |b|; cosine of the
        task vectors a - ancestor and b - ancestor, or of a and b where there is no ancestor; None where one is zero.

    Raises:
        ValueError: the ancestor lacks a tensor or has another shape.
    """
    sums: dict[str, np.ndarray] = {}
    for name in a:
        if PROJECTOR in name or a[name].dim() < 2:
            continue
        if ancestor is not None and (name not in ancestor or ancestor[name].shape != a[name].shape):
            raise ValueError(f"The ancestor does not have the tensor {name} in the shape of the models.")
        one, other = a[name].float().flatten(), b[name].float().flatten()
        origin = torch.zeros_like(one) if ancestor is None else ancestor[name].float().flatten()
        step, other_step = one - origin, other - origin
        products = ((one, one), (other, other), (one - other, one - other))
        products += ((step, step), (other_step, other_step), (step, other_step))
        found = np.array([torch.dot(x, y).item() for x, y in products])
        sums[layer_of(name)] = sums.get(layer_of(name), np.zeros(len(found))) + found
    return [{"layer": layer} | _distances(*values) for layer, values in sorted(sums.items(), key=_place)]


def _distances(aa: float, bb: float, difference: float, step_a: float, step_b: float, product: float) -> dict:
    """Distance and cosine from squared norms and a dot product."""
    distance = float(np.sqrt(difference) / (0.5 * (np.sqrt(aa) + np.sqrt(bb))))
    lengths = float(np.sqrt(step_a * step_b))
    return {"distance": distance, "cosine": float(product) / lengths if lengths > 0 else None}


def layer_of(name: str) -> str:
    """`layer 3`, `embeddings` or `head`: where in the decoder a tensor stands."""
    number = re.search(r"\.layers\.(\d+)\.", name)
    if number:
        return f"layer {number[1]}"
    return "embeddings" if "embed_tokens" in name else "head"


def _place(item: tuple[str, np.ndarray]) -> tuple[int, int]:
    """Sort key: embeddings, layers by number, head."""
    layer = item[0]
    return ("embeddings", "layer", "head").index(layer.split()[0]), int(layer.split()[1]) if " " in layer else 0


def loss_along_path(dial: Interpolation, processor, sentences: Sequence[str]) -> list[dict]:
    """Loss of the text, nats per token, at alpha = 0, 0.1 ... 1: `[{"alpha", "loss"}]`."""
    path = []
    for alpha in tqdm(ALPHAS, desc="loss along the path", unit="alpha"):
        dial.set(alpha)
        scores = np.concatenate(token_scores(dial.model, processor, sentences, progress=False)).astype(np.float64)
        if not np.isfinite(scores).all():
            raise ValueError(f"The loss at α = {alpha:g} is not finite, so nothing can be said of the path.")
        path.append({"alpha": alpha, "loss": float(-scores.mean())})
    return path


def barrier(path: Sequence[dict]) -> dict:
    """The barrier of a path in nats per token, where it stands, and its share of the mean loss at the ends."""
    start, end = path[0]["loss"], path[-1]["loss"]
    excess = [point["loss"] - (point["alpha"] * end + (1 - point["alpha"]) * start) for point in path]
    top = int(np.argmax(excess))
    height = max(0.0, excess[top])
    return {"barrier": height, "barrier_alpha": path[top]["alpha"], "relative_barrier": height / (0.5 * (start + end))}


def verdict(result: dict) -> dict:
    """`{"verdict": "merge" | "doubtful" | "do not merge", "reason": sentences with numbers}`, by the barrier."""
    share, layers = result["relative_barrier"], result["layers"]
    start, end = (result["path"][place]["loss"] for place in (0, -1))
    numbers = (
        f"the barrier is {result['barrier']:.2f} nats per token at α = {result['barrier_alpha']:g}, {share:.1%} of "
        f"the mean loss at the ends ({start:.2f} and {end:.2f}). On average their layers lie "
        f"{np.mean([layer['distance'] for layer in layers]):.2f} of their length apart"
    )
    cosines = [layer["cosine"] for layer in layers if layer["cosine"] is not None]
    if cosines:
        of = "steps away from their ancestor" if result["ancestor"] else "weights"
        numbers += f", and the cosine of their {of} is {np.mean(cosines):.2f}"
    if share <= CONNECTED:
        return {"verdict": "merge", "reason": f"They lie in one basin of the loss: {numbers}."}
    if share < SEPARATE:
        advice = "Sweep α before you choose one."
        return {"verdict": "doubtful", "reason": f"Merging costs something on the way: {numbers}. {advice}"}
    advice = "Train both from one ancestor (init_from) and merge those."
    return {"verdict": "do not merge", "reason": f"They lie in different basins of the loss: {numbers}. {advice}"}


def print_diagnosis(result: dict) -> None:
    """Print layers, path and verdict for people."""
    console = Console()
    known = result["ancestor"]
    of = f"steps away from the ancestor, {known['name']}" if known else "weights (no ancestor is known)"
    console.print(f"Distance of the models, and cosine of their {of}", soft_wrap=True, highlight=False)
    table = Table()
    for column in ("layer", "distance", "cosine"):
        table.add_column(column)
    for layer in result["layers"]:
        cosine = "–" if layer["cosine"] is None else f"{layer['cosine']:.2f}"
        table.add_row(layer["layer"], f"{layer['distance']:.3f}", cosine)
    console.print(table)
    losses = ", ".join(f"{point['alpha']:g}: {point['loss']:.2f}" for point in result["path"])
    console.print(f"Loss by α (weight of {result['a']}), nats per token: {losses}", soft_wrap=True, highlight=False)
    console.print(f"[bold]{result['verdict']}[/bold]. {result['reason']}", soft_wrap=True, highlight=False)
