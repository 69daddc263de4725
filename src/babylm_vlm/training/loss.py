"""The next-token loss, without the logits of all tokens in memory at once.

With a vocabulary of thousands, logits and their gradients are by far the largest tensors of a step: torch's
`linear_cross_entropy` makes them for some tokens at a time and keeps only the gradients of hidden states and head.
It is for fp32: it knows no autocast, and `torch.compile` fuses the plain loss itself.
"""

from types import MethodType

import torch
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from ..data.packing import IGNORED

CHUNK = LinearCrossEntropyOptions(batch_chunk_size=512)  # tokens; on a CPU their logits stay in its cache


def use_chunked_loss(model: LlamaForCausalLM) -> None:
    """Let a Llama, with eyes or without, return its loss alone, as `forward` below computes it."""
    model.forward = MethodType(forward, model)


def forward(
    self: LlamaForCausalLM, labels: torch.LongTensor, num_items_in_batch: torch.Tensor | None = None, **inputs
) -> CausalLMOutput:
    """The loss that `LlamaForCausalLM.forward` has, up to rounding; tokens without a target cost no logits.

    Args:
        labels: (B, T); -100 is ignored. Each is the target of the token before it.
        num_items_in_batch: what the sum over targets is divided by; None: the number of targets.
        inputs: of the model's body.
    """
    hidden, targets = self.model(**inputs).last_hidden_state[:, :-1], labels[:, 1:]
    counted = targets != IGNORED
    total = linear_cross_entropy(
        hidden[counted], self.lm_head.weight, targets[counted], reduction="sum", options=CHUNK
    )
    return CausalLMOutput(loss=total / (counted.sum() if num_items_in_batch is None else num_items_in_batch))
