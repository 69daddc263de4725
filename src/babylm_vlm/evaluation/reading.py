"""Reading times (de Varda et al. 2024): how much do a model's surprisals add to predicting them?

A row of the CSV is a word in its context with its reading measures. A score is the gain in explained variance when the
word's surprisal joins a baseline (metrics/reading_delta_r2): word frequency, length and context length, for self-paced
reading also the previous word's length and surprisal (spill-over). Eye tracking is the mean over four measures.

Surprisal is −log p(" " + word | context). The official rule differs: word and context are tokenized apart, and the
tokens after a word's first one are decoded, tokenized again by themselves, and their first token is taken. Where the
tokenizer puts a space in front of a text, that scores other tokens than the word's. Besides, its CSV reader takes the
context "None" of a word before for a missing value, and so that word goes unscored.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..metrics.reading_delta_r2.reading_delta_r2 import delta_r2, regression_columns
from .choices import Item
from .engine import Request, score_requests
from .rows import csv_rows, data_files, number_field
from .scoring import make_requests, sums

SUFFIXES = (".csv", ".csv.gz")
EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"
PREDICTORS = ("Subtlex_log10", "length", "context_length")


def read(path: Path) -> list[Item]:
    """One item a word; `options` are (context, word) of the word and, where there is one, of the word before it.

    Words of a sentence are one cluster. Missing numbers are NaN. Errors as `data_files` and `numbered_lines`, or a
    column is missing or malformed.
    """
    items = []
    for file in data_files(Path(path), SUFFIXES):
        for where, row in csv_rows(file):
            for name in ("item", "word", "prev_item", "prev_word", "sent_id"):
                if row.get(name) is None:
                    raise ValueError(f"{where}: the column {name} is missing; is this the reading data?")
            # An empty context is the word "None", which was lost when the published file was made.
            options = ((row["item"] or "None", row["word"]),)
            if row["prev_item"]:
                options += ((row["prev_item"], row["prev_word"]),)
            names = (*EYE_TRACKING, SELF_PACED, *PREDICTORS, "prev_length")
            filled = {name: value or "nan" for name, value in row.items() if name is not None}
            facts = {name: number_field(filled, name, where) for name in names}
            items.append(Item("reading", row["sent_id"], options, facts=facts))
    return items


def surprisals(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    items: Sequence[Item],
    batch_tokens: int = 4096,
    progress: bool = True,
    official: bool = False,
    prepared: dict | None = None,
) -> list[np.ndarray]:
    """−log p (nats) of each item's word, and of the word before it if there is one: n arrays (1,) or (2,).

    Other arguments as in `score_choices`.
    """
    options = [_official_options(item) if official else item.options for item in items]
    texts = [option for texts in options for option in texts]
    prepared = {} if prepared is None else prepared
    if official and not prepared:
        tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
        prepared["words"] = [official_requests(tokenizer, *text) for text in texts]
    elif not prepared:
        requests, _ = make_requests(model, processor, [(context, " " + word) for context, word in texts])
        prepared["words"] = [[request] for request in requests]
    words = prepared["words"]  # of each word one request or, by the official rule, one for each of its tokens
    scores = score_requests(model, [request for word in words for request in word], (), batch_tokens, progress)
    totals = np.add.reduceat(sums(scores), np.cumsum([0, *(len(word) for word in words[:-1])]))
    return np.split(-totals, np.cumsum([len(texts) for texts in options])[:-1])


def _official_options(item: Item) -> tuple[tuple[str, str], ...]:
    """The (context, word) of an item that the official pipeline scores: no word before after the context "None"."""
    return item.options[:1] if item.options[-1][0] == "None" else item.options


def official_requests(tokenizer: PreTrainedTokenizerBase, context: str, word: str) -> list[Request]:
    """What the official pipeline scores for a word: for each of its tokens, one token after the text so far."""
    requests = []
    first = tokenizer(word, add_special_tokens=False)["input_ids"]
    for place, token in enumerate(first):
        piece = tokenizer.decode(token)
        target = token if place == 0 else tokenizer(piece, add_special_tokens=False)["input_ids"][0]
        before = tokenizer(context)["input_ids"]
        requests.append(Request((*before, target), (len(before),)))
        context += piece
    return requests


def gains(scores: Sequence[Sequence[float]], items: Sequence[Item], counts: np.ndarray) -> dict[str, np.ndarray]:
    """`reading_eye_tracking` and `reading_self_paced` in every resample: {score: (R,)}, percent.

    Args:
        scores: n surprisals of the word, followed by that of the word before it where there is one.
        items: anything with the `facts` of the n items.
        counts: (R, n) how often each item is in each resample.
    """
    table = {name: np.array([item.facts[name] for item in items]) for name in items[0].facts}
    surprisal = np.array([row[0] for row in scores])
    before = np.array([row[1] if len(row) > 1 else np.nan for row in scores])
    eye_base = [table[name] for name in PREDICTORS]
    eye = [delta_r2(regression_columns(table[measure], eye_base, surprisal), counts) for measure in EYE_TRACKING]
    self_paced = regression_columns(table[SELF_PACED], [*eye_base, table["prev_length"], before], surprisal)
    return {"reading_eye_tracking": np.mean(eye, axis=0), "reading_self_paced": delta_r2(self_paced, counts)}
