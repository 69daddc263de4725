"""Linear merging: theta = w_0 * theta_0 + w_1 * theta_1, tensor by tensor.

- One kernel, `blend`, serves files and memory, so a sweep in memory scores exactly the weights that a merge writes.
- The kernel sums in fp32 (fp64 for fp64 tensors) in the order of the plan and rounds once, as mergekit 0.1.5 does; the
  results agree bit for bit. `w*A + v*B`, `lerp` and `B + w*(A - B)` round differently.
- A tensor that one model has with weight 1, and the other lacks or weighs 0, is copied, never computed.
- Every tensor of either model is either merged, copied or an error. Nothing is dropped.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..files import check_new_folder, new_folder
from .output import PLAN_FILE, check_overlap, check_tokenizers, copy_rest
from .plan import PROJECTOR, MergePlan, Source, check_alpha
from .weights import Weights

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class Step:
    """What happens to one tensor: it is blended from both sources, or copied from one of them.

    Attributes:
        name: of the tensor.
        weights: of the two sources, in the order of the plan.
        copied_from: index of the source that it is copied from, None where it is blended.
    """

    name: str
    weights: tuple[float, float]
    copied_from: int | None = None


def merge(plan: MergePlan, output_dir: str | Path, overwrite: bool = False) -> None:
    """Carry out a plan: a folder that `from_pretrained` reads, complete or not there at all.

    Everything of the base model but its weights, model card and training state is copied along, and the plan is stored
    as `mergekit_config.yml`.

    Args:
        plan: from `read_plan`.
        output_dir: a new folder.
        overwrite: replace an earlier merge of that name.

    Raises:
        FileExistsError: `output_dir` exists and `overwrite` is false, or it holds something else than a merge.
        FileNotFoundError: a checkpoint has no weights.
        ValueError: the weights do not fit each other or the plan, or cannot be read.
    """
    output_dir = Path(output_dir)
    check_overlap(output_dir, [source.folder for source in plan.sources])
    check_new_folder(output_dir, overwrite, PLAN_FILE)
    check_tokenizers([source.folder for source in plan.sources])
    weights = (Weights(plan.sources[0].folder), Weights(plan.sources[1].folder))
    steps = plan_steps(plan, weights)
    with new_folder(output_dir, overwrite, PLAN_FILE) as folder:
        copy_rest(plan, folder)
        tensors = {}
        for step in tqdm(steps, desc="Merging", unit="tensor", disable=None, delay=2):
            tensors[step.name] = _result(step, plan, weights)
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        shutil.copymode(folder / PLAN_FILE, folder / WEIGHTS_FILE)  # safetensors makes it readable by its owner only


def interpolate(multimodal: dict[str, Tensor], language: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Merge two state dicts in memory, bit for bit as `merge` does with the plan of `linear_plan_yaml`.

    Args:
        multimodal: its tensors; those of the projector are copied.
        language: must have every other tensor of `multimodal`, in the same shape, and none besides.
        alpha: weight of the multimodal model; at 1 its tensors are returned exactly, at 0 the language model's.

    Returns:
        New tensors, under the names of `multimodal`. The inputs are not changed.

    Raises:
        ValueError: alpha is not between 0 and 1, or the tensors do not match.
    """
    check_alpha(alpha)
    alpha = float(alpha)
    decoder = {name for name in multimodal if PROJECTOR not in name}
    unmatched = sorted(decoder ^ {name for name in language if PROJECTOR not in name})
    if unmatched:
        raise ValueError(f"Only one of the two models has {_some(unmatched)}; both need the same decoder tensors.")
    merged = {}
    for name, tensor in multimodal.items():
        if name not in decoder or alpha == 1.0:
            merged[name] = tensor.clone()
            continue
        if tensor.shape != language[name].shape:
            raise ValueError(_shape_error(name, tensor.shape, language[name].shape))
        if alpha == 0.0:
            merged[name] = language[name].clone()
        else:
            merged[name] = _blend_named(name, tensor, language[name], (alpha, 1 - alpha))
    return merged


def blend(a: Tensor, b: Tensor, weights: tuple[float, float], normalize: bool = True) -> Tensor:
    """`weights[0] * a + weights[1] * b`, divided by the sum of the weights where `normalize`.

    Integer and boolean tensors cannot be blended: they must be equal.

    Returns:
        A new tensor in the wider of the two dtypes.

    Raises:
        ValueError: integer tensors differ, or the weights sum to 0.
    """
    dtype = torch.promote_types(a.dtype, b.dtype)
    if not dtype.is_floating_point:
        if a.dtype != b.dtype or not torch.equal(a, b):
            raise ValueError("The models hold different integers here, which cannot be interpolated.")
        return a.clone()
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    merged = (a.to(exact) * weights[0]).add_(b.to(exact), alpha=weights[1])
    if normalize:
        total = torch.tensor(weights, dtype=exact).sum()
        if total == 0:
            raise ValueError("The weights of the two models sum to 0 here, so they cannot be normalized.")
        if total != 1:
            merged.div_(total)
    return merged.to(dtype)


def plan_steps(plan: MergePlan, weights: tuple[Weights, Weights]) -> list[Step]:
    """What the plan does with every tensor of the two checkpoints, by their headers alone, sorted by name.

    Raises:
        ValueError: a tensor to be interpolated is missing from one model or differs in shape, or has no weight.
    """
    names = sorted(weights[0].names | weights[1].names)
    return [_step(name, plan.sources, weights) for name in names]


def _step(name: str, sources: tuple[Source, Source], weights: tuple[Weights, Weights]) -> Step:
    shares = (sources[0].weight(name), sources[1].weight(name))
    for here, there in ((0, 1), (1, 0)):
        absent = name not in weights[there].names
        if shares[here] == 1.0 and (absent or shares[there] == 0.0) and name in weights[here].names:
            return Step(name, shares, copied_from=here)
        if absent:
            raise ValueError(
                f"The tensor {name} is in {sources[here].name} but not in {sources[there].name}, so it cannot be "
                f"interpolated; to copy it, give {sources[here].name} a filter for it with the value 1.0."
            )
    shapes = weights[0].shape(name), weights[1].shape(name)
    if shapes[0] != shapes[1]:
        raise ValueError(_shape_error(name, *shapes))
    return Step(name, shares)


def _result(step: Step, plan: MergePlan, weights: tuple[Weights, Weights]) -> Tensor:
    """The merged tensor of one step, in the dtype that the plan asks for."""
    convert = _converter(plan.dtype)
    if step.copied_from is not None:
        merged = convert(weights[step.copied_from].tensor(step.name))
    else:
        a, b = (convert(source.tensor(step.name)) for source in weights)
        merged = _blend_named(step.name, a, b, step.weights, plan.normalize)
    return _converter(plan.out_dtype)(merged).contiguous()


def _blend_named(name: str, a: Tensor, b: Tensor, weights: tuple[float, float], normalize: bool = True) -> Tensor:
    """`blend`, with the tensor's name in its errors."""
    try:
        return blend(a, b, weights, normalize)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _converter(dtype: str | None) -> Callable[[Tensor], Tensor]:
    """To a dtype by name; integer tensors, and every tensor where the name is None, pass unchanged."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(getattr(torch, dtype)) if dtype and tensor.is_floating_point() else tensor

    return convert


def _shape_error(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> str:
    hint = " (do the models share one tokenizer?)" if len(a) == len(b) == 2 and a[1:] == b[1:] else ""
    return f"The tensor {name} has the shape {tuple(a)} in one model and {tuple(b)} in the other{hint}."


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"
