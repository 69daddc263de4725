"""DevBench (Tan et al. 2024): do models know words, sentences and concepts as children and adults do?

A folder holds `manifest.csv`, a row an item, with `text1` and picture files relative to the folder:

- `lex-viz_vocab` (words) and `gram-trog` (sentences): which of four pictures, `image1` being the right one, makes the
  text most probable? `human.csv` has the share of people who chose each picture, by `text1`, for some words also by
  `age_bin` in years. The distance to people is the mean over items of KL(people ‖ softmax(β · scores)) in nats, at the
  β in [0.025, 40] that makes it least, as DevBench fits it.
- `sem-things`: one picture `image1` of each of n concepts. `spose_similarity.mat` has the similarities `spose_sim`
  (n, n) that people see (Hebart et al. 2020). The score is Spearman's ρ, over all pairs of concepts, between these
  and the cosine similarities of the model's last hidden states, averaged over all positions of a prompt that is the
  picture alone.

What people did is in the folder itself or, as in the official layout, in `../../evals/FOLDER`.

By default a text is scored as the caption it is. The official rule is the mean log-probability of the tokens of
"The caption for this image is: TEXT.", and an item is right only if no other picture ties with the right one.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from scipy.special import softmax
from scipy.stats import rankdata
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .choices import Item, Picture, picture_features, score_choices, takes_pictures
from .minimal_pairs import check_picture
from .rows import csv_rows, number_field, text_field

SUFFIXES = (".csv",)
SUBSETS = {"lex-viz_vocab": "lex-viz_visual", "gram-trog": "trog", "sem-things": "things"}  # of folders, as predicted
CONCEPTS = "things"
OFFICIAL_PROMPT = "The caption for this image is: {}."
BETAS = np.geomspace(0.025, 40, 400)
FLOOR = 1e-10  # of probabilities, as in the official pipeline


def files(path: Path) -> list[Path]:
    """All files that the items of a folder come from, pictures aside."""
    folder = _folder(path)
    places = (folder, folder.parent.parent / "evals" / folder.name)
    people = [place / name for name in ("human.csv", "spose_similarity.mat") for place in places]
    return [folder / "manifest.csv", *(file for file in people if file.is_file())]


def read(path: Path) -> list[Item]:
    """Items of a folder; each is alone in its cluster.

    Raises:
        FileNotFoundError: there is no manifest, a picture is missing, or the similarities are.
        ValueError: a column is missing or malformed, or similarities and manifest do not fit together.
    """
    manifest, *people = files(path)
    folder, subset = manifest.parent, SUBSETS[manifest.parent.resolve().name]
    items = []
    for where, row in csv_rows(manifest):
        text = text_field(row, "text1", where)
        names = [name for name in row if name and re.fullmatch(r"image\d", name)]
        pictures = tuple((folder / text_field(row, name, where)).resolve() for name in names)
        if not pictures or (subset == CONCEPTS) != (len(pictures) == 1):
            raise ValueError(f"{where}: {len(pictures)} columns image1 … are not what {folder.name} has.")
        for picture in pictures:
            check_picture(picture, where)
        items.append(Item(subset, where, (("", text),) * len(pictures), pictures))
    by_name = {file.name: file for file in people}
    if subset == CONCEPTS:
        return _with_similarities(items, folder, by_name.get("spose_similarity.mat"))
    return _with_choices(items, by_name["human.csv"]) if "human.csv" in by_name else items


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _with_choices(items: list[Item], file: Path) -> list[Item]:
    """The items with the share of people who chose each picture, as facts `kl_age_4/1` … (or `kl/1` …)."""
    shares: dict[str, dict[str, float]] = {}
    for where, row in csv_rows(file):
        group = f"kl_age_{row['age_bin']}" if row.get("age_bin") else "kl"
        found = {f"{group}/{k}": number_field(row, f"image{k}", where) for k in range(1, len(items[0].options) + 1)}
        shares.setdefault(text_field(row, "text1", where), {}).update(found)
    return [replace(item, facts=shares.get(item.options[0][1], {})) for item in items]


def _with_similarities(items: list[Item], folder: Path, file: Path | None) -> list[Item]:
    """The items with the similarity that people see between each and those before it, as facts `0`, `1` …"""
    if file is None:
        raise FileNotFoundError(
            f"{folder} needs what people see: spose_similarity.mat, beside its manifest or in evals/{folder.name}."
        )
    matrix = loadmat(file).get("spose_sim")
    if matrix is None or matrix.shape != (len(items), len(items)):
        raise ValueError(f"{file} must hold spose_sim with {len(items)} rows and columns, one for each concept.")
    rows = np.asarray(matrix, dtype=np.float64).tolist()
    return [replace(item, facts={str(j): rows[i][j] for j in range(i)}) for i, item in enumerate(items)]


def score(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    items: Sequence[Item],
    features: dict[Picture, torch.Tensor] | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
    official: bool = False,
    prepared: dict | None = None,
) -> list[np.ndarray]:
    """Of choices the score (4,) of each picture with the text, of concepts the model's representation (hidden_size,).

    Raises:
        ValueError: concepts, and the model takes no pictures.
    """
    if items[0].uid == CONCEPTS:
        return _representations(model, processor, items, features, batch_tokens)
    if official:
        items = [
            replace(item, options=tuple(("", OFFICIAL_PROMPT.format(text)) for _, text in item.options))
            for item in items
        ]
    options = {"official": official, "mean": official, "prepared": prepared}
    return score_choices(model, processor, items, features, batch_tokens, progress, **options)


@torch.no_grad()
def _representations(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    items: Sequence[Item],
    features: dict[Picture, torch.Tensor] | None,
    batch_tokens: int,
) -> list[np.ndarray]:
    """Last hidden states of "<image> ", averaged over its positions: n arrays (hidden_size,)."""
    if not takes_pictures(model):
        raise ValueError("concepts are shown as pictures alone, and this model takes none.")
    features = features or picture_features(model, processor, items)
    shown = torch.stack([features[item.images[0]] for item in items])
    prompt = processor(text=["<image> "], return_tensors="pt")["input_ids"].to(model.device)
    states = []
    for batch in shown.split(max(1, batch_tokens // prompt.shape[1])):
        batch = batch.to(model.device, model.dtype)
        outputs = model.model(input_ids=prompt.expand(len(batch), -1), image_features=batch, use_cache=False)
        states.append(outputs.last_hidden_state.float().mean(dim=1).cpu())
    return list(torch.cat(states).double().numpy())


def divergence(scores: np.ndarray, people: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean KL(people ‖ softmax(β · scores)) at the best β, in every resample: (R,), nats.

    A β is fitted in each resample, on a grid fine enough that it changes the mean by less than 1e-4 nats.

    Args:
        scores: (n, k) of the pictures; where they are not finite, all pictures of the item have the least probability.
        people: (n, k) shares.
        counts: (R, n) how often each item is in each resample.
    """
    with np.errstate(invalid="ignore"):
        model = softmax(BETAS[:, None, None] * scores, axis=2)  # (β, n, k)
    model = np.clip(np.nan_to_num(model), FLOOR, 1)
    people = np.clip(people, FLOOR, 1)
    each = (people * np.log(people / model)).sum(axis=2)  # (β, n)
    return (counts @ each.T / counts.sum(axis=1, keepdims=True)).min(axis=1)


def cosine_similarities(representations: np.ndarray) -> np.ndarray:
    """(n, n) of n representations (n, d); 0 with one that is all zeros."""
    lengths = np.linalg.norm(representations, axis=1, keepdims=True)
    unit = representations / np.where(lengths > 0, lengths, 1)
    return unit @ unit.T


def similarity(representations: np.ndarray, people: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's ρ over pairs of concepts in every resample, (R,); 0 where either side does not vary.

    Pairs are ranked once, among all of them; a pair counts in a resample as often as its two concepts together.

    Args:
        representations: (n, d) of the model.
        people: (n, n) similarities, of which those below the diagonal are used.
        counts: (R, n) how often each concept is in each resample.
    """
    below = np.tril_indices(len(people), k=-1)
    tables = []
    for values in (cosine_similarities(representations), people):
        table = np.zeros(people.shape)
        ranks = rankdata(np.nan_to_num(values[below]))
        table[below] = (ranks - ranks.mean()) / max(ranks.std(), 1e-12)
        tables.append(table)
    model, human = tables
    pairs = np.zeros(people.shape)
    pairs[below] = 1

    def total(table: np.ndarray) -> np.ndarray:
        return ((counts @ table) * counts).sum(axis=1)

    weight = np.maximum(total(pairs), 1)
    means = total(model) / weight, total(human) / weight
    covariance = total(model * human) / weight - means[0] * means[1]
    variances = [total(table**2) / weight - mean**2 for table, mean in zip(tables, means, strict=True)]
    scale = np.sqrt(np.maximum(variances[0] * variances[1], 0))
    return np.where(scale > 1e-12, covariance / np.where(scale > 1e-12, scale, 1), 0.0)
