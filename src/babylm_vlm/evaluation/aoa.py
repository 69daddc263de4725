"""Age of acquisition (Chang and Bergen 2022): does a model learn words in the order in which children do?

`cdi_childes.json` maps a word to contexts that end before it, {"dog": [{"context": "I raised a"}, …]}; `cdi_human.csv`
holds `word` and, in columns 16 to 30, the proportion of children of that age in months who know it (MacArthur-Bates
CDI, through Wordbank). One checkpoint gives a surprisal, −log p(word | context), of every word in every context;
several, one after the other in training, give each word a learning curve.

As in the BabyLM pipeline of 2025, both ages are where a sigmoid f(x) = a / (1 + exp(−b (x − c))) + d crosses a
threshold:

    child: proportions over months, threshold 0.5
    model: negative surprisals, each context a point, over log10(words seen + 1); the threshold is halfway between the
           lowest surprisal and log2(300,000), the pipeline's chance level. (That is in bits, surprisals are in nats;
           we keep it, so that numbers can be compared.)

A word without a crossing inside the observed range has no age. The score is Pearson's r of the two ages over the words
that have both; the model's age is on the log10 scale. The interval is a bootstrap over words.
"""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import pearsonr
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .choices import Item
from .engine import score_requests
from .rows import csv_rows, data_files, number_field, numbered_lines
from .scoring import make_requests, sums
from .statistics import interval

SUFFIXES = (".json", ".json.gz")
HUMAN_FILE = "cdi_human.csv"
MONTHS = tuple(str(month) for month in range(16, 31))
CHANCE_SURPRISAL = math.log2(300_000)
FEWEST_WORDS = 3


def read(path: Path) -> list[Item]:
    """One item for every context of every word; a paradigm and a cluster is a word.

    Words of one character are left out, as in the official pipeline.

    Raises:
        FileNotFoundError, ValueError: as `data_files` and `numbered_lines`, or the file has another form.
    """
    items = []
    for file in data_files(Path(path), SUFFIXES):
        text = "".join(line for _, line in numbered_lines(file))
        try:
            words = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: not valid JSON ({error.msg} in line {error.lineno}).") from error
        if not isinstance(words, dict):
            raise ValueError(f"{file} must map each word to its contexts; is this cdi_childes.json?")
        for word, contexts in words.items():
            if len(word) > 1:
                items += [Item(word, word, ((_context(entry, word, file), word),)) for entry in contexts]
    if not items:
        raise ValueError(f"{path} holds no context of a word.")
    return items


def _context(entry: dict, word: str, file: Path) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("context"), str):
        raise ValueError(f"{file}: a context of the word {word} must be an object with the text `context`.")
    return entry["context"]


def surprisals(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    items: Sequence[Item],
    batch_tokens: int = 4096,
    progress: bool = True,
    official: bool = False,
    prepared: dict | None = None,
) -> list[np.ndarray]:
    """−log p (nats) of each item's word in its context: n arrays (1,).

    Other arguments as in `score_choices`.
    """
    prepared = {} if prepared is None else prepared
    if not prepared:
        texts = [(context.strip() + " ", word.strip()) for item in items for context, word in item.options]
        prepared["text"] = make_requests(model, processor, texts, official=official)
    requests, _ = prepared["text"]
    totals = sums(score_requests(model, requests, (), batch_tokens, progress))
    return np.split(-totals, len(totals))


def find_human_file(path: Path) -> Path:
    """`cdi_human.csv` beside the contexts, or in the folder `aoa` next to theirs, as official data has it.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = path if path.is_dir() else path.parent
    places = [folder / HUMAN_FILE, folder.parent / "aoa" / HUMAN_FILE]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{places[0]} is missing: children's ages of acquisition, from https://osf.io/ryjfm/.")


def read_children(file: Path) -> dict[str, float | None]:
    """Each word's age of acquisition in months; None where no curve can be fitted.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or a column is missing or malformed; with `file:line`.
    """
    ages = {}
    for where, row in csv_rows(file):
        if row.get("word") is None or not set(MONTHS) & set(row):
            raise ValueError(f"{where}: the column word, or every month from 16 to 30, is missing.")
        known = {name: "nan" if row[name] in ("", "NA", None) else row[name] for name in MONTHS if name in row}
        proportions = np.array([number_field(known, name, where) for name in known])
        if row["word"] not in ages:  # the first of several meanings counts
            ages[row["word"]] = child_age(np.array([float(name) for name in known]), proportions)
    return ages


def child_age(months: np.ndarray, proportions: np.ndarray) -> float | None:
    """Month at which half of the children know a word; None where the curve does not say.

    Args:
        months, proportions: (M,); proportions that are NaN are not known.
    """
    known = ~np.isnan(proportions)
    months, proportions = months[known], proportions[known]
    if len(months) < 3:
        return None
    bounds = ([0, 0, months[0], -0.5], [2, 1, months[-1], 0.5])
    age = _crossing(months, proportions, 0.5, [1, 0.1, months.mean(), 0], bounds=bounds)
    return age if age is not None and months[0] <= age <= months[-1] else None


def model_age(words_seen: np.ndarray, surprisals: np.ndarray) -> float | None:
    """log10 of the number of words seen at which a model knows a word; None where the curve does not say.

    Args:
        words_seen, surprisals: (P,), a point for every checkpoint and context, by ascending words seen.
    """
    known = ~np.isnan(surprisals)
    words_seen, values = words_seen[known], -surprisals[known]
    if len(values) < 3:
        return None
    threshold = -CHANCE_SURPRISAL + 0.5 * (CHANCE_SURPRISAL + values.max())
    x = np.log10(words_seen + 1)
    age = _crossing(x, values, threshold, [np.ptp(values), 1, x.mean(), values.min()])
    return age if age is not None and x[0] <= age <= x[-1] else None


def _crossing(
    x: np.ndarray, y: np.ndarray, threshold: float, start: Sequence[float], **options: tuple
) -> float | None:
    """Where the sigmoid fitted to (x, y) reaches the threshold, if it rises through it."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            (a, b, c, d), _ = curve_fit(_sigmoid, x, y, p0=start, maxfev=1000, **options)
        except (RuntimeError, TypeError, ValueError):  # no convergence; fewer points than parameters; infinite values
            return None
        if a <= 0 or b <= 0 or not d < threshold < a + d:
            return None
        return float(c - np.log(a / (threshold - d) - 1) / b)


def _sigmoid(x: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
    return a / (1 + np.exp(-b * (x - c))) + d


def acquisition(
    words: Sequence[str],
    surprisals: np.ndarray,
    words_seen: Sequence[int],
    children: dict[str, float | None],
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """Pearson's r of a model's and children's ages of acquisition.

    Args:
        words: (n,) the word of each item.
        surprisals: (R, n) nats, of each item at each checkpoint, by ascending words seen.
        words_seen: (R,) of each checkpoint.
        children: of `read_children`.
        resamples, seed: of the bootstrap over words.

    Returns:
        `{"metric": "pearson", "value", "interval", "p_value", "chance", "items", "ages": {word: [log10 words seen of
        the model, months of children]}}`; value 0 where fewer than 3 words have both ages.
    """
    seen, names = np.asarray(words_seen, dtype=np.float64), np.asarray(words)
    ages = {}
    for word in dict.fromkeys(words):
        if children.get(word) is None:
            continue
        curves = surprisals[:, names == word]  # (R, contexts)
        age = model_age(np.repeat(seen, curves.shape[1]), curves.ravel())
        if age is not None:
            ages[word] = [age, children[word]]
    row = {"metric": "pearson", "value": 0.0, "interval": [0.0, 0.0], "p_value": 1.0, "chance": 0.0}
    pairs = np.array(list(ages.values())).reshape(-1, 2)
    if len(pairs) >= FEWEST_WORDS and pairs.std(axis=0).all():
        found = pearsonr(*pairs.T)
        draws = np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))
        row |= {"value": float(found.statistic), "p_value": float(found.pvalue)}
        row["interval"] = list(interval(_correlations(pairs[draws])))
    return {**row, "items": len(ages), "ages": ages}


def _correlations(pairs: np.ndarray) -> np.ndarray:
    """Pearson's r of (R, n, 2) pairs, (R,); 0 where either side does not vary."""
    centred = pairs - pairs.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).sum(axis=1).prod(axis=1))
    return np.where(spread > 0, centred.prod(axis=2).sum(axis=1) / np.where(spread > 0, spread, 1), 0.0)
