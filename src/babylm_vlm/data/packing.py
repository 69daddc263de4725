"""Packing: the samples of a batch laid end to end in rows, so that short captions cost no padding.

- Every sample counts its positions from 0. From that transformers sees where a sample begins, and lets no token attend
  to another sample's: a packed caption has the loss it has alone.
- The first token of a sample is no target: what stands before it is another sample's.
"""

from bisect import insort

import torch
from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is no target


def pack(lengths: list[int], row_length: int) -> list[list[int]]:
    """Indices of samples for every row: longest first, each into the fullest row that still has room (best fit).

    A sample longer than `row_length` has a row of its own.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, index of row), sorted
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((i for i, (left, _) in enumerate(room) if left >= lengths[sample]), None)
        left, row = (row_length, len(rows)) if place is None else room.pop(place)
        if place is None:
            rows.append([])
        rows[row].append(sample)
        insort(room, (left - lengths[sample], row))
    return rows


class PackingCollator:
    """Pack samples to a batch of rows of about `row_length` tokens.

    The end of a row is padded; the padding counts as one more sample, without targets. Padding and `<image>` are no
    targets. Pooled features follow the order in which the rows are read.

    Args:
        tokenizer: with a padding token and `tokenizer.image_token`.
        row_length: tokens in a row, more only if a sample is longer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, row_length: int):
        self.pad = tokenizer.pad_token_id
        self.given = torch.tensor([tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids(tokenizer.image_token)])
        self.row_length = row_length

    def __call__(
        self, given: list[dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]]
    ) -> dict[str, torch.Tensor]:
        """Samples `{"input_ids": (T,)[, "image_features": (g*g, D)]}`, or lists of them, to a batch.

        Returns:
            input_ids, position_ids, labels (rows, width); use_cache; image_features (pictures, g*g, D) if any.
        """
        samples = [sample for one in given for sample in (one if isinstance(one, list) else [one])]
        rows = pack([len(sample["input_ids"]) for sample in samples], self.row_length)
        width = max(sum(len(samples[i]["input_ids"]) for i in row) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad)
        position_ids = torch.zeros_like(input_ids)
        for r, row in enumerate(rows):
            start = 0
            for i in row:
                ids = samples[i]["input_ids"]
                input_ids[r, start : start + len(ids)] = ids
                position_ids[r, start : start + len(ids)] = torch.arange(len(ids))
                start += len(ids)
            position_ids[r, start:] = torch.arange(width - start)
        no_target = torch.isin(input_ids, self.given) | (position_ids == 0)
        batch = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "labels": input_ids.masked_fill(no_target, IGNORED),
            "use_cache": False,  # transformers looks at the positions only where there is no cache
        }
        features = [samples[i]["image_features"] for row in rows for i in row if "image_features" in samples[i]]
        if features:
            batch["image_features"] = torch.stack(features)
        return batch
