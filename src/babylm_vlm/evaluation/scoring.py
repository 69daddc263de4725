"""Log-probabilities of sentences under a causal language model, with or without a picture in front.

- A score is the sum of the log-probabilities (nats) of the sentence's tokens, as the BabyLM evaluation pipeline
  takes it: no length normalisation, temperature 1. BOS, image tokens and padding are given, never scored; EOS is
  not part of the sequence.
- Logits become log-probabilities in fp32 whatever the dtype of the weights, and tokens are summed in fp64, so that
  equal sentences tie exactly and a padded batch equals single scoring up to fp32 rounding.
- Equal requests are scored once. Requests are sorted by length and batched by a token budget, so that padding and
  memory stay small. The last token of a sentence is never fed in: nothing after it is predicted.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

LOG_SOFTMAX_ROWS = 256  # positions turned into log-probabilities at a time; a block of logits stays in the CPU's cache


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
    per_token = token_scores(model, processor, sentences, image_features, batch_tokens, progress)
    return np.array([scores.sum(dtype=np.float64) for scores in per_token], dtype=np.float64)


@torch.inference_mode()
def token_scores(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    sentences: Sequence[str],
    image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> list[np.ndarray]:
    """Log-probability of every token of every sentence: N float32 arrays (tokens of sentence i,), nats.

    Arguments and errors as in `sequence_scores`.
    """
    if image_features is not None and len(image_features) != len(sentences):
        raise ValueError(f"{len(sentences)} sentences but {len(image_features)} pictures: each sentence needs one.")
    tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
    request_of, firsts = _unique_requests(sentences, image_features)
    tokens = _tokenize(model, tokenizer, [sentences[i] for i in firsts])
    pictures = None if image_features is None else [image_features[i] for i in firsts]
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    given = 1 if pictures is None else 1 + pictures[0].shape[0]  # BOS and the image tokens

    unique_scores = [np.zeros(0, dtype=np.float32)] * len(tokens)
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(tokens), desc="scoring", unit=" sentences", delay=2, leave=False, disable=not progress)
    try:
        with bar, torch.autocast(model.device.type, enabled=False):
            for batch in _batches(lengths, given, batch_tokens):
                batch_pictures = None if pictures is None else torch.stack([pictures[i] for i in batch])
                scores = _score_batch(model, tokenizer, [tokens[i] for i in batch], batch_pictures)
                for i, row in zip(batch, scores, strict=True):
                    unique_scores[i] = row
                bar.update(len(batch))
    finally:
        model.train(was_training)
    return [unique_scores[request] for request in request_of]


def _unique_requests(
    sentences: Sequence[str], image_features: torch.Tensor | Sequence[torch.Tensor] | None
) -> tuple[list[int], list[int]]:
    """The index of the unique (sentence, picture) request of every sentence, and where each request comes first."""
    requests: dict[tuple[str, bytes], int] = {}
    request_of, firsts = [], []
    for i, sentence in enumerate(sentences):
        picture = b"" if image_features is None else image_features[i].float().cpu().numpy().tobytes()
        request = requests.setdefault((sentence, picture), len(firsts))
        if request == len(firsts):
            firsts.append(i)
        request_of.append(request)
    return request_of, firsts


def _tokenize(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> list[list[int]]:
    """Token ids of the sentences alone, without BOS, EOS or image tokens.

    After `<image> ` a sentence has the same tokens as alone, because the tokenizer adds a space to a sentence's start.
    """
    if tokenizer.bos_token_id is None:
        raise ValueError(
            "the tokenizer has no BOS token, so the first word cannot be scored; set tokenizer.bos_token."
        )
    if not sentences:
        return []
    tokens = tokenizer(sentences, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    largest = max((max(ids) for ids in tokens if ids), default=0)
    known = model.get_input_embeddings().weight.shape[0]
    if max(largest, tokenizer.bos_token_id) >= known:
        raise ValueError(
            f"the tokenizer gives token id {max(largest, tokenizer.bos_token_id)} but the model knows only {known} "
            "tokens; load both from the same checkpoint."
        )
    return tokens


def _batches(lengths: np.ndarray, given: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of sentences, longest first, in batches whose padded size is at most `batch_tokens`.

    Longest first: what needs the most memory runs first, and the bar speeds up rather than slows down. Sentences
    without tokens have nothing to score and are in no batch.
    """
    order = [i for i in np.argsort(-lengths, kind="stable").tolist() if lengths[i]]
    start = 0
    while start < len(order):
        padded_length = given + int(lengths[order[start]])
        size = max(1, batch_tokens // padded_length)
        yield order[start : start + size]
        start += size


def _score_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: list[list[int]],
    pictures: torch.Tensor | None,
) -> list[np.ndarray]:
    """Log-probabilities of the tokens of B sentences, right-padded to one batch.

    Args:
        tokens: B lists of token ids, longest first.
        pictures: (B, g*g, D) pooled features, or None.
    """
    prefix = [tokenizer.bos_token_id]
    inputs = {}
    if pictures is not None:
        prefix += [model.config.image_token_id] * pictures.shape[1]
        inputs["image_features"] = pictures.to(model.device, model.dtype)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.bos_token_id
    width = len(tokens[0])
    input_ids = torch.tensor([prefix + ids + [padding] * (width - len(ids)) for ids in tokens])
    lengths = torch.tensor([len(ids) for ids in tokens])
    # (B, given + width - 1): without the last column, which would predict what follows the sentence
    attention_mask = (torch.arange(len(prefix) + width - 1) < len(prefix) + lengths[:, None]).long()
    logits = model(
        input_ids=input_ids[:, : len(prefix) + width - 1].to(model.device),
        attention_mask=attention_mask.to(model.device),
        use_cache=False,
        **inputs,
    ).logits[:, len(prefix) - 1 :]  # (B, width, vocabulary): position t predicts token t of the sentence
    scores = _log_probabilities(logits, input_ids[:, len(prefix) :].to(model.device)).cpu().numpy()
    return [row[: len(ids)].copy() for row, ids in zip(scores, tokens, strict=True)]


def _log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)[target] in fp32: (B, T, V) logits and (B, T) targets give (B, T).

    Computed as logit − log Σ exp(logits), a block of rows at a time: no second (B, T, V) tensor is made.
    """
    rows, row_targets = logits.flatten(0, 1), targets.flatten()
    result = torch.empty(row_targets.shape, dtype=torch.float32, device=logits.device)
    for block in range(0, len(rows), LOG_SOFTMAX_ROWS):
        part = slice(block, block + LOG_SOFTMAX_ROWS)
        values = rows[part].float()
        result[part] = values.gather(1, row_targets[part, None]).squeeze(1) - values.logsumexp(dim=1)
    return result.view(targets.shape)
