"""From token sequences to the log-probabilities of chosen tokens, at the least cost that changes no score.

- What is computed: log p(token_t | tokens before it) in fp32, whatever the dtype of the weights.
- Shared prefixes are read once. Sequences in lexicographic order become a prefix tree; a row of a batch holds a part
  of it, each node with the depth of its token as position, and a 4-D attention mask lets a node see its ancestors
  alone.
- Not every model obeys such a mask (convolutions, recurrences, positions counted from the mask, logits scaled after
  the head). So the longest sequences are first scored both ways, and rows are packed only where that agrees to 1e-4;
  otherwise sequences are sorted by length and right-padded, a fixed number of tokens at a time.
- In packed rows the head runs only where a token is scored, a block of positions at a time, so that the largest tensor
  is (256, vocabulary).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

BLOCK = 256  # positions turned into log-probabilities at a time; a block of logits stays in the CPU's cache
ROW_TOKENS = 384  # nodes in a packed row; attention costs its square
CHECK_TOKENS = 1024  # of the longest sequences are scored both ways
AGREEMENT = 1e-4  # nats


@dataclass(frozen=True)
class Request:
    """A sequence and the tokens in it to be scored.

    Attributes:
        tokens: token ids. The k-th of the g*g image tokens of picture p is written −(1 + p·g·g + k).
        scored: indices into `tokens`, ascending, none of them 0: a first token has no probability.
    """

    tokens: tuple[int, ...]
    scored: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """What the model is fed: all before the last token that is scored."""
        return self.tokens[: self.scored[-1]]


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass, and where in them to read scores.

    Attributes:
        tokens: (B, N) as in `Request.tokens`, right-padded with `PADDING`.
        mask: what each token may attend to: (B, N) bool right-padded, or (B, N, N) bool packed.
        positions: (B, N) of each token in its own sequence.
        requests: indices of the requests that are scored here.
        places: for each scored token of these requests, in order, its predicting position as row·N + column.
        targets: the ids of these scored tokens.
    """

    tokens: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    requests: list[int]
    places: np.ndarray
    targets: np.ndarray


PADDING = np.iinfo(np.int64).min  # no token id and no image token


def score_requests(
    model: PreTrainedModel,
    requests: Sequence[Request],
    pictures: Sequence[torch.Tensor] = (),
    batch_tokens: int = 4096,
    progress: bool = True,
) -> list[np.ndarray]:
    """Log-probabilities of the scored tokens of every request; equal requests are computed once.

    Args:
        model: a causal language model, in any mode and dtype.
        requests: what to score.
        pictures: features (g*g, D) that the image tokens of the requests stand for.
        batch_tokens: at most this many tokens in a batch, padding included (a longer sequence is a batch alone).
        progress: show a bar when scoring takes longer than two seconds.

    Returns:
        for each request a float32 array (number of scored tokens,), nats; non-finite values are returned as they are.

    Raises:
        ValueError: a sequence is longer than the model's table of positions.
    """
    unique = list(dict.fromkeys(request for request in requests if request.scored))
    scores: dict[Request, np.ndarray] = {}
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(unique), desc="scoring", unit=" sequences", delay=2, leave=False, disable=not progress)
    try:
        with bar, torch.autocast(model.device.type, enabled=False):
            packed = packing_agrees(model, unique, pictures)
            batches = packed_batches(unique, batch_tokens) if packed else padded_batches(unique, batch_tokens)
            for batch in batches:
                for i, values in zip(batch.requests, _score_batch(model, unique, batch, pictures), strict=True):
                    scores[unique[i]] = values
                bar.update(len(batch.requests))
    except IndexError as error:
        longest = max(len(request.read) for request in unique)
        room = getattr(model.config.get_text_config(), "max_position_embeddings", longest)
        if longest <= room:
            raise
        raise ValueError(f"a text has {longest} tokens, but the model has positions for {room} only.") from error
    finally:
        model.train(was_training)
    nothing = np.zeros(0, dtype=np.float32)
    return [scores.get(request, nothing) for request in requests]


def packing_agrees(model: PreTrainedModel, requests: Sequence[Request], pictures: Sequence[torch.Tensor]) -> bool:
    """Whether packed and padded scores of the longest requests differ by at most 1e-4 nats."""
    masks_are_read = model.config._attn_implementation in ("sdpa", "eager")
    has_head = model.base_model is not model and model.get_output_embeddings() is not None
    if not (requests and masks_are_read and has_head):
        return False
    longest = sorted(requests, key=lambda request: -len(request.read))
    fitting = np.cumsum([len(request.read) for request in longest]) <= CHECK_TOKENS
    chosen = longest[: max(2, int(fitting.sum()))]

    def score(batches: Iterator[Batch]) -> np.ndarray:
        parts = {}
        for batch in batches:
            parts |= zip(batch.requests, _score_batch(model, chosen, batch, pictures), strict=True)
        return np.concatenate([parts[i] for i in range(len(chosen))])

    padded = score(padded_batches(chosen, CHECK_TOKENS))
    try:
        packed = score(packed_batches(chosen, CHECK_TOKENS))
    except (RuntimeError, TypeError, ValueError):  # how architectures refuse a 4-D mask or given positions
        return False
    return np.allclose(packed, padded, atol=AGREEMENT, rtol=0, equal_nan=True)


def padded_batches(requests: Sequence[Request], batch_tokens: int) -> Iterator[Batch]:
    """One sequence a row, longest first: what needs the most memory runs first."""
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].read))
    while order:
        width = len(requests[order[0]].read)
        size = max(1, batch_tokens // width)
        chosen, order = order[:size], order[size:]
        tokens = np.full((len(chosen), width), PADDING)
        for row, i in enumerate(chosen):
            tokens[row, : len(requests[i].read)] = requests[i].read
        paths = [row * width + np.arange(len(requests[i].read)) for row, i in enumerate(chosen)]
        positions = np.broadcast_to(np.arange(width), tokens.shape)
        yield Batch(tokens, tokens != PADDING, positions, chosen, *_read_outs(requests, chosen, paths))


def packed_batches(requests: Sequence[Request], batch_tokens: int) -> Iterator[Batch]:
    """Rows of prefix trees, in lexicographic order of the sequences."""
    pending: list[_Row] = []
    width = 0
    for row in _packed_rows(requests):
        if pending and max(width, len(row.tokens)) * (len(pending) + 1) > batch_tokens:
            yield _stack(requests, pending, width)
            pending, width = [], 0
        pending.append(row)
        width = max(width, len(row.tokens))
    if pending:
        yield _stack(requests, pending, width)


@dataclass
class _Row:
    """A prefix tree in depth-first order: tokens and depths of its nodes, and every sequence's path of nodes."""

    tokens: list[int]
    depths: list[int]
    requests: list[int]
    paths: list[np.ndarray]


def _packed_rows(requests: Sequence[Request]) -> Iterator[_Row]:
    """Sorted sequences, added to a row until it has `ROW_TOKENS` nodes (or holds one longer sequence)."""
    row = _Row([], [], [], [])
    before: tuple[int, ...] = ()
    for i in sorted(range(len(requests)), key=lambda i: requests[i].read):
        read = requests[i].read
        shared = _shared_length(before, read)
        if row.requests and len(row.tokens) + len(read) - shared > ROW_TOKENS:
            yield row
            row, shared = _Row([], [], [], []), 0
        new = np.arange(len(row.tokens), len(row.tokens) + len(read) - shared)
        row.paths.append(np.concatenate([row.paths[-1][:shared], new]) if shared else new)
        row.tokens += read[shared:]
        row.depths += range(shared, len(read))
        row.requests.append(i)
        before = read
    if row.requests:
        yield row


def _shared_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the longest common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _stack(requests: Sequence[Request], rows: list[_Row], width: int) -> Batch:
    tokens = np.full((len(rows), width), PADDING)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width, width), dtype=bool)
    for r, row in enumerate(rows):
        tokens[r, : len(row.tokens)] = row.tokens
        positions[r, : len(row.tokens)] = row.depths
        done = 0  # nodes whose ancestors are in the mask
        for path in row.paths:
            fresh = int(np.searchsorted(path, done))
            mask[r][np.ix_(path[fresh:], path)] = np.tri(len(path), dtype=bool)[fresh:]
            done = max(done, int(path[-1]) + 1)
    mask |= np.eye(width, dtype=bool)  # padding attends to itself: a row without any key would be NaN
    chosen = [i for row in rows for i in row.requests]
    paths = [r * width + path for r, row in enumerate(rows) for path in row.paths]
    return Batch(tokens, mask, positions, chosen, *_read_outs(requests, chosen, paths))


def _read_outs(
    requests: Sequence[Request], chosen: list[int], paths: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """`Batch.places` and `Batch.targets` of sequences whose tokens lie at the given places."""
    places = [path[np.array(requests[i].scored) - 1] for i, path in zip(chosen, paths, strict=True)]
    targets = [requests[i].tokens[t] for i in chosen for t in requests[i].scored]
    return np.concatenate(places), np.array(targets)


@torch.inference_mode()
def _score_batch(
    model: PreTrainedModel, requests: Sequence[Request], batch: Batch, pictures: Sequence[torch.Tensor]
) -> list[np.ndarray]:
    """Log-probabilities of the scored tokens of each of the batch's requests."""
    inputs = _model_inputs(model, batch, pictures)
    if batch.mask.ndim == 2:
        mask = torch.from_numpy(batch.mask).long().to(model.device)
        states = model(attention_mask=mask, use_cache=False, **inputs).logits
        head = nn.Identity()
    else:
        hidden = torch.from_numpy(batch.mask).logical_not().unsqueeze(1).to(model.device)
        mask = torch.zeros(hidden.shape, dtype=model.dtype, device=model.device)
        mask.masked_fill_(hidden, torch.finfo(model.dtype).min)
        positions = torch.from_numpy(batch.positions).to(model.device)
        outputs = model.base_model(attention_mask=mask, position_ids=positions, use_cache=False, **inputs)
        states, head = outputs.last_hidden_state, model.get_output_embeddings()
    scores = _log_probabilities(states.flatten(0, 1), head, batch.places, batch.targets)
    return np.split(scores, np.cumsum([len(requests[i].scored) for i in batch.requests])[:-1])


def _model_inputs(model: PreTrainedModel, batch: Batch, pictures: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """`input_ids` (B, N), and `image_features` of the pictures in reading order, if there are any."""
    tokens = batch.tokens.copy()
    tokens[tokens == PADDING] = model.config.get_text_config().pad_token_id or 0
    inputs = {}
    image_tokens = tokens < 0
    if image_tokens.any():
        visual_tokens = len(pictures[0])
        numbers = -1 - tokens[image_tokens]
        shown = [pictures[number // visual_tokens] for number in numbers[numbers % visual_tokens == 0].tolist()]
        inputs["image_features"] = torch.stack(shown).to(model.device, model.dtype)
        tokens[image_tokens] = model.config.image_token_id
    return {"input_ids": torch.from_numpy(tokens).to(model.device), **inputs}


def _log_probabilities(states: torch.Tensor, head: nn.Module, places: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """log softmax(head(states))[target] in fp32, as logit − log Σ exp(logits), for M scored tokens.

    Args:
        states: (B·N, D) hidden states, or logits with the identity as head.
        places, targets: (M,) row of `states` and token id of each scored token.
    """
    unique, node_of = np.unique(places, return_inverse=True)
    order = np.argsort(node_of, kind="stable")
    result = np.empty(len(places), dtype=np.float32)
    nodes, device = torch.from_numpy(unique).to(states.device), states.device
    for block in range(0, len(unique), BLOCK):
        logits = head(states[nodes[block : block + BLOCK]]).float()
        members = order[slice(*np.searchsorted(node_of, [block, block + BLOCK], sorter=order))]
        rows = torch.from_numpy(node_of[members] - block).to(device)
        chosen = logits[rows, torch.from_numpy(targets[members]).to(device)]
        result[members] = (chosen - logits.logsumexp(dim=1)[rows]).cpu().numpy()
    return result
