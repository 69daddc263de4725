"""Embeddings of models with different vocabularies: rows are matched by the token's string, not by its number.

The result has the vocabulary of the base model. A token that another model lacks takes the base's row there, so that
its merge is the base's row (up to rounding); rows of the base that belong to no token are dropped. All of this is what
mergekit 0.1.5 does with `tokenizer: {source: base}`, and the results agree bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from .plan import MergePlan
from .weights import Weights

INDEXED_BY_TOKEN = ("embed_tokens.weight", "lm_head.weight", "lm_head.bias", "wte.weight")
"""Ends of the names of tensors with a row for every token."""


@dataclass(frozen=True)
class Vocabulary:
    """How the tokens of several models match.

    Attributes:
        size: number of tokens of the base model, which the result takes.
        base: place of the base model in the plan.
        rows: for every model of the plan, its row of each of these tokens, int64 `[size]`; -1 where it has none.
    """

    size: int
    base: int
    rows: tuple[np.ndarray, ...]

    def align(self, tensor: np.ndarray, model: int, base_tensor: np.ndarray) -> np.ndarray:
        """The rows of a model's tensor in the order of the base's tokens; those that it lacks are the base's."""
        rows = self.rows[model]
        lacking = rows < 0
        aligned = tensor[rows.clip(min=0)]
        aligned[lacking] = base_tensor[self.rows[self.base][lacking]]
        return aligned


def is_indexed_by_token(name: str) -> bool:
    """Whether the first dimension of a tensor counts tokens."""
    return name.endswith(INDEXED_BY_TOKEN)


def match_tokens(plan: MergePlan, weights: Sequence[Weights]) -> Vocabulary:
    """Match the tokens of the plan's models by their strings.

    Raises:
        FileNotFoundError: a model has no tokenizer.json.
        ValueError: the base's tokens do not fit its embeddings.
    """
    tokens = [_tokens(source.folder, source.name) for source in plan.sources]
    counts = [_count_rows(one) for one in weights]
    base = plan.sources.index(plan.base)
    own = tokens[base]
    if sorted(own.values()) != list(range(len(own))) or len(own) > counts[base]:
        raise ValueError(
            f"The tokenizer of {plan.base.name} has {len(own)} tokens, which are not the first {len(own)} of its "
            f"{counts[base]} embeddings, so its rows cannot be matched with other models'."
        )
    order = sorted(own, key=own.__getitem__)
    rows = [
        np.array([numbers[token] if numbers.get(token, count) < count else -1 for token in order])
        for numbers, count in zip(tokens, counts, strict=True)
    ]
    return Vocabulary(size=len(own), base=base, rows=tuple(rows))


def describe_match(plan: MergePlan, vocabulary: Vocabulary) -> list[str]:
    """A sentence for every model but the base: how many tokens it shares with it."""
    return [
        f"{source.name} shares {int((rows >= 0).sum())} of the {vocabulary.size} tokens of {plan.base.name}; "
        f"the other {int((rows < 0).sum())} keep their embeddings there."
        for source, rows in zip(plan.sources, vocabulary.rows, strict=True)
        if source is not plan.base
    ]


def _tokens(folder: Path, name: str) -> dict[str, int]:
    """Token -> number, added tokens included."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"The plan matches tokens by their strings, but {name} has no tokenizer.json.")
    return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)


def _count_rows(weights: Weights) -> int:
    """Rows of a model's embeddings."""
    return min((weights.shape(name)[0] for name in weights.names if is_indexed_by_token(name)), default=0)
