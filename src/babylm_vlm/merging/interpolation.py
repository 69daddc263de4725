"""Alpha as a dial on a live model: every decoder weight is set in one pass, without reading or writing a file.

- The live decoder's parameters become views of one flat tensor, and both ends are laid out alike, so a pass has few,
  large operations however many parameters there are. Tied embeddings are one parameter and are set once.
- A pass goes block by block: a block's intermediate results stay in the CPU's cache, or the GPU's. PyTorch shares each
  operation among its threads. Nothing is allocated.
- The ends are kept in fp32 (fp64 where a checkpoint is fp64), which holds 16-bit weights exactly.
- The arithmetic is that of `in_memory.blend`, rounded to the dtype of the merged file and then to that of the live
  model: the live weights are, bit for bit, those of `from_pretrained(merged folder, dtype=dtype of the live model)`,
  at every alpha. Without a cast between file and model this is equality with the file itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import babylm_vlm.model  # noqa: F401  (registers the multimodal model with the Auto classes)

from .in_memory import as_tensor
from .plan import PROJECTOR, check_alpha
from .weights import Weights

CPU_BLOCK = 1 << 19  # elements of a block, for each thread: 2 MB in fp32
GPU_BLOCK = 1 << 23


class Interpolation:
    """A multimodal model whose decoder can be set to any alpha between its own weights and a language model's.

    Attributes:
        model: the live model; its projector is never changed.
        alpha: where it stands; 1 (multimodal) at first.

    Args:
        model: a multimodal model in any floating dtype, on any device. Its decoder's parameters get new storage:
            move or cast it before, not after.
        multimodal: its tensors by name, in the dtype of its file (those of `model.state_dict()` will do).
        language: the language model's, which must have every tensor of the decoder and none besides.

    Raises:
        ValueError: the tensors do not fit each other or the model.
    """

    def __init__(self, model: PreTrainedModel, multimodal: Mapping[str, Tensor], language: Mapping[str, Tensor]):
        self.model = model
        parameters = {name: p for name, p in model.named_parameters() if PROJECTOR not in name}
        check_match(parameters, multimodal, language)

        def kind(name: str) -> tuple[torch.dtype, torch.dtype, torch.device]:
            return multimodal[name].dtype, parameters[name].dtype, parameters[name].device

        names = sorted(parameters, key=lambda name: str(kind(name)))
        self._parts = [
            _Part({name: parameters[name] for name in group}, multimodal, language, merged_dtype)
            for (merged_dtype, *_), group in groupby(names, key=kind)
        ]
        self.set(1.0)

    @classmethod
    def from_pretrained(cls, multimodal: str | Path, language: str | Path, **options) -> "Interpolation":
        """From two checkpoint folders.

        Args:
            multimodal: folder of the model that becomes the live one.
            language: folder of the other; only its weights are read.
            **options: of `AutoModelForCausalLM.from_pretrained`, such as `dtype` and `device_map`.

        Raises:
            FileNotFoundError: a folder has no safetensors weights.
            ValueError: the weights cannot be read, or the weights or the tokenizers do not match.
        """
        tensors = [read_tensors(Path(folder)) for folder in (multimodal, language)]
        check_vocabularies(Path(multimodal), Path(language))
        model = AutoModelForCausalLM.from_pretrained(multimodal, use_safetensors=True, **options).eval()
        return cls(model, *tensors)

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        """Make the live decoder `alpha * multimodal + (1 - alpha) * language`; both ends are exact.

        Raises:
            ValueError: alpha is not between 0 and 1, or the model was moved or cast since this was made.
        """
        check_alpha(alpha)
        for part in self._parts:
            part.set(float(alpha))
        self.alpha = float(alpha)


@dataclass(frozen=True)
class _Block:
    """A stretch of the flat tensors: the live weights and the two ends, (n,) each."""

    live: Tensor
    multimodal: Tensor
    language: Tensor


class _Part:
    """The parameters of one dtype and device, laid end to end: one part, unless a model has several."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        multimodal: Mapping[str, Tensor],
        language: Mapping[str, Tensor],
        merged_dtype: torch.dtype,
    ):
        first = next(iter(parameters.values()))
        size, device = sum(parameter.numel() for parameter in parameters.values()), first.device
        exact = torch.float64 if merged_dtype == torch.float64 else torch.float32
        live = torch.empty(size, dtype=first.dtype, device=device)
        ends = [torch.empty(size, dtype=exact, device=device) for _ in range(2)]
        start = 0
        for name, parameter in parameters.items():
            place = slice(start, start + parameter.numel())
            for end, tensors in zip(ends, (multimodal, language), strict=True):
                end[place].copy_(tensors[name].reshape(-1))
            parameter.data = live[place].view(parameter.shape)
            start = place.stop
        self._zero = torch.zeros((), dtype=exact, device=device)  # a sum begins at 0.0, so that -0.0 is nowhere
        self._first, self._address = first, first.data_ptr()
        self._rounds_between = merged_dtype not in (exact, live.dtype)
        length = min(size, GPU_BLOCK if device.type != "cpu" else CPU_BLOCK * torch.get_num_threads())
        self._sum = None if live.dtype == exact else torch.empty(length, dtype=exact, device=device)
        self._rounded = torch.empty(length, dtype=merged_dtype, device=device) if self._rounds_between else None
        self._blocks = [_Block(*parts) for parts in zip(*(t.split(length) for t in (live, *ends)), strict=True)]

    def set(self, alpha: float) -> None:
        if self._first.data_ptr() != self._address:
            raise ValueError("The model was moved or cast since its Interpolation was made; make a new one.")
        weights = torch.tensor((alpha, 1 - alpha), dtype=self._blocks[0].multimodal.dtype)
        whole = weights.sum().item()  # 1, or next to it
        for block in self._blocks:
            if alpha in (0.0, 1.0):
                block.live.copy_(block.multimodal if alpha else block.language)
            else:
                self._blend(block, alpha, whole)

    def _blend(self, block: _Block, alpha: float, whole: float) -> None:
        size = len(block.live)
        total = block.live if self._sum is None else self._sum[:size]
        torch.add(self._zero, block.multimodal, alpha=alpha, out=total).add_(block.language, alpha=1 - alpha)
        if whole != 1:
            total.div_(whole)
        if self._rounds_between:
            total = self._rounded[:size].copy_(total)
        if total is not block.live:
            block.live.copy_(total)


def check_match(parameters: Mapping[str, Tensor], multimodal: Mapping[str, Tensor], language: Mapping[str, Tensor]):
    """Raise ValueError unless both have the same decoder tensors, and those are the parameters of the live model."""
    ends = [{name for name in tensors if PROJECTOR not in name} for tensors in (multimodal, language)]
    unmatched = sorted(ends[0] ^ ends[1])
    if unmatched:
        raise ValueError(
            f"Only one of the two models has the tensor {unmatched[0]} ({len(unmatched)} in all); both need the same "
            "decoder."
        )
    missing = sorted(set(parameters) - ends[0])
    if missing:
        raise ValueError(f"The live model has the parameter {missing[0]}, which the given tensors lack.")
    for name, parameter in parameters.items():
        shapes = [tuple(tensor.shape) for tensor in (parameter, multimodal[name], language[name])]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"The tensor {name} has the shape {shapes[1]} in the multimodal model and {shapes[2]} in the language "
                f"model (in the live one {shapes[0]}); interpolate models of one architecture and one tokenizer."
            )
        if multimodal[name].dtype != language[name].dtype:
            dtypes = [str(tensors[name].dtype).removeprefix("torch.") for tensors in (multimodal, language)]
            raise ValueError(
                f"The tensor {name} is {dtypes[0]} in the multimodal model and {dtypes[1]} in the language model; "
                "save both in one dtype."
            )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder as they are stored. Raises as `Weights`."""
    weights = Weights(folder)
    return {name: as_tensor(weights.tensor(name)) for name in weights.names}


def check_vocabularies(multimodal: Path, language: Path) -> None:
    """Raise ValueError where both folders have a tokenizer and number their tokens differently."""
    folders = [folder for folder in (multimodal, language) if (folder / "tokenizer.json").is_file()]
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in folders]
    if len(vocabularies) == 2 and vocabularies[0] != vocabularies[1]:
        raise ValueError(
            f"{multimodal} and {language} number their tokens differently: take models that share a tokenizer."
        )
