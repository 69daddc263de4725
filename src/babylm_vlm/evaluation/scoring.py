"""Log-probabilities of sentences, and of completions given a prefix, with or without a picture in front.

- A score is the sum of the log-probabilities (nats) of tokens, as the BabyLM evaluation pipeline takes it: no length
  normalisation, temperature 1. BOS, image tokens and padding are given, never scored; EOS is not part of the sequence.
- A completion's tokens are those that end after the prefix does, in the tokens of prefix and completion together.
- Tokens are summed in fp64. Scores do not depend on batch size or order up to fp32 rounding, and sequences with the
  same tokens tie exactly. How they are computed is in engine.py.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .engine import Request, score_requests


def sequence_scores(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    sentences: Sequence[str],
    image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> np.ndarray:
    """Sum of token log-probabilities, log p(sentence | BOS[, picture]) = Σ_t log p(token_t | tokens before it).

    Args:
        model: any causal language model; with `image_features`, a model that takes them (BabylmVlm).
        processor: its tokenizer, or a processor that holds one.
        sentences: N strings, without special tokens.
        image_features: row i (g*g, D) holds the pooled vision features of the picture that sentence i describes, as
            `model.pooled_features` gives them: a tensor (N, g*g, D), or a list of N tensors, which may repeat.
        batch_tokens: at most this many tokens in a batch, padding included (a longer sentence is a batch alone).
        progress: show a bar when scoring takes longer than two seconds.

    Returns:
        (N,) float64, nats. Non-finite scores are returned as they are.

    Raises:
        ValueError: the numbers of sentences and pictures differ, or tokenizer and model do not fit together.
    """
    return sums(token_scores(model, processor, sentences, image_features, batch_tokens, progress))


def conditional_scores(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    prefixes: Sequence[str],
    completions: Sequence[str],
    image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> np.ndarray:
    """log p(completion | BOS[, picture], prefix), summed over the completion's tokens.

    Args:
        prefixes, completions: N strings each; prefix + completion is the text, so a space between is part of one.
        others: as in `sequence_scores`, as are the returned array and the errors.

    Raises:
        ValueError: also where the tokenizer cannot say which characters a token stands for.
    """
    requests, pictures = make_requests(model, processor, list(zip(prefixes, completions, strict=True)), image_features)
    return sums(score_requests(model, requests, pictures, batch_tokens, progress))


def token_scores(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    sentences: Sequence[str],
    image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> list[np.ndarray]:
    """Log-probability of every token of every sentence: N float32 arrays (tokens of sentence i,), nats.

    A token's surprisal is its negative. Arguments and errors as in `sequence_scores`.
    """
    requests, pictures = make_requests(model, processor, [("", sentence) for sentence in sentences], image_features)
    return score_requests(model, requests, pictures, batch_tokens, progress)


def sums(per_token: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) float64 sums of N arrays."""
    return np.array([scores.sum(dtype=np.float64) for scores in per_token], dtype=np.float64)


def make_requests(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, str]],
    image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
    official: bool = False,
) -> tuple[list[Request], list[torch.Tensor]]:
    """N (prefix, completion) texts as what the engine scores, and the pictures these refer to, each once.

    With `official`, the special tokens are those that the tokenizer adds by itself: without a BOS among them the first
    token goes unscored, as it does in the official pipeline. Otherwise BOS is always in front.

    Raises:
        ValueError: as `sequence_scores` and `conditional_scores`.
    """
    tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
    if image_features is not None and len(image_features) != len(texts):
        raise ValueError(f"{len(texts)} sentences but {len(image_features)} pictures: each sentence needs one.")
    if not texts:
        return [], []
    needs_offsets = official or any(prefix for prefix, _ in texts)
    _check_tokenizer(tokenizer, needs_offsets, needs_bos=not official)
    unique = list(dict.fromkeys(texts))
    encoded = tokenizer(
        [prefix + completion for prefix, completion in unique],
        add_special_tokens=official,
        return_offsets_mapping=needs_offsets,
        return_attention_mask=False,
    )
    known = model.get_input_embeddings().weight.shape[0]
    bos = [] if official else [tokenizer.bos_token_id]
    made = {}
    for i, text in enumerate(unique):
        ids = bos + encoded["input_ids"][i]
        if max(ids, default=0) >= known:
            raise ValueError(
                f"the tokenizer gives token id {max(ids)} but the model knows only {known} tokens; load both from the "
                "same checkpoint."
            )
        if needs_offsets:
            ends = [0] * len(bos) + [end for _, end in encoded["offset_mapping"][i]]
            scored = [t for t in range(1, len(ids)) if ends[t] > len(text[0])]
        else:
            scored = range(1, len(ids))
        made[text] = Request(tuple(ids), tuple(scored))
    requests = [made[text] for text in texts]
    if image_features is None:
        return requests, []
    return _with_pictures(requests, image_features, tokenizer.bos_token_id)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, needs_offsets: bool, needs_bos: bool) -> None:
    if needs_bos and tokenizer.bos_token_id is None:
        raise ValueError(
            "the tokenizer has no BOS token, so the first word cannot be scored; set tokenizer.bos_token."
        )
    if needs_offsets and not tokenizer.is_fast:
        raise ValueError(
            "the tokenizer cannot say which characters a token stands for, so a completion's tokens cannot be told "
            "from its prefix's; load a fast tokenizer (tokenizer.json)."
        )


def _with_pictures(
    requests: list[Request], image_features: torch.Tensor | Sequence[torch.Tensor], bos: int
) -> tuple[list[Request], list[torch.Tensor]]:
    """The requests with the image tokens of their pictures right after BOS, and the distinct pictures."""
    numbers: dict[bytes, int] = {}
    pictures: list[torch.Tensor] = []
    shown = []
    for request, feature in zip(requests, image_features, strict=True):
        number = numbers.setdefault(feature.float().cpu().numpy().tobytes(), len(pictures))
        if number == len(pictures):
            pictures.append(feature)
        size = len(feature)
        image_tokens = tuple(-(1 + number * size + k) for k in range(size))
        place = 1 if request.tokens[:1] == (bos,) else 0
        tokens = request.tokens[:place] + image_tokens + request.tokens[place:]
        shown.append(Request(tokens, tuple(t + size for t in request.scored)))
    return shown, pictures
