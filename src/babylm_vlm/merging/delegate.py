"""What other libraries carry out: merge methods of mergekit besides linear, and the folding in of PEFT adapters.

mergekit drops a tensor that one of the models lacks, with exit code 0. So its result is never taken as it is: every
tensor of the base that is not in it is copied from the base, bit for bit.
"""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from .output import copy_beside_weights
from .plan import MergePlan, Source
from .preflight import STATE_FILE
from .steps import Step, in_file_order
from .weights import Weights


@contextlib.contextmanager
def folded_adapters(plan: MergePlan, trust_remote_code: bool = False) -> Iterator[MergePlan]:
    """The plan with every `model+adapter` replaced by a temporary checkpoint into which the adapter is folded.

    Args:
        plan: with or without adapters.
        trust_remote_code: run code that comes with a model.
    """
    if not any(source.adapter for source in plan.sources):
        yield plan
        return
    with tempfile.TemporaryDirectory(prefix="babylm-vlm-folded-") as place:
        folded = {
            source: _fold(source, Path(place, str(number)), trust_remote_code) if source.adapter else source
            for number, source in enumerate(plan.sources)
        }
        yield replace(plan, sources=tuple(folded.values()), base=folded[plan.base])


def _fold(source: Source, folder: Path, trust_remote_code: bool) -> Source:
    """As mergekit does it: load, `merge_and_unload`, save; with tokenizer, code and recorded ancestor."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from .. import model as _model  # noqa: F401  (registers its classes)

    loaded = AutoModelForCausalLM.from_pretrained(
        source.folder, use_safetensors=True, trust_remote_code=trust_remote_code
    )
    PeftModel.from_pretrained(loaded, source.adapter).merge_and_unload().save_pretrained(folder)
    copy_beside_weights(source.folder, folder)
    if (state := source.folder / STATE_FILE).is_file():
        shutil.copyfile(state, folder / STATE_FILE)
    return replace(source, folder=folder, adapter=None, unfolded=source.folder)


def run_mergekit(plan: MergePlan, folder: Path, trust_remote_code: bool = False) -> None:
    """Let mergekit merge into a folder.

    Raises:
        ValueError: it refuses the plan.
    """
    from mergekit.architecture.auto import infer_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    content = yaml.safe_load(plan.text)
    paths = {source.name: str(source.folder.resolve()) for source in plan.sources}  # not the Hub's, whatever they are
    for entry in content["models"]:
        entry["model"] = paths[entry["model"]]
    content["base_model"] = paths[content["base_model"]]
    for key in content.keys() & {"tokenizer", "tokenizer_source"}:
        content[key] = _with_paths(content[key], paths)
    quiet = not sys.stderr.isatty()
    options = MergeOptions(trust_remote_code=trust_remote_code, write_model_card=False, quiet=quiet, random_seed=0)
    LoaderCache.loaders.clear()  # both remember folders by name, but their content may have changed
    infer_architecture_info.cache_clear()
    try:
        config = MergeConfiguration.model_validate(content)
        run_merge(config, str(folder), options)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ValueError(
                "A model of the plan comes with code of its own, which mergekit has to run: look at the .py files in "
                "its folder, and pass --trust-remote-code."
            ) from error
        raise ValueError(f"mergekit refuses the plan: {' '.join(str(error).split())}") from error


def _with_paths(value, paths: dict[str, str]):
    """A part of a plan with every model named by its path."""
    if isinstance(value, dict):
        return {key: _with_paths(part, paths) for key, part in value.items()}
    return paths.get(value, value) if isinstance(value, str) else value


def completing_steps(steps: Sequence[Step], result: Weights, weights: Sequence[Weights]) -> list[Step]:
    """Copies of all tensors that mergekit made, and of those that it left out because only one model has them.

    Args:
        steps: of the delegated plan.
        result: what mergekit made; it takes the place after the plan's models.
        weights: of the plan's models.

    Raises:
        ValueError: mergekit left out a tensor that several models have, or made one that none has.
    """
    everything = [*weights, result]
    known = {step.name for step in steps}
    if strange := sorted(result.names - known):
        raise ValueError(
            f"mergekit made the tensor {strange[0]}, which none of the models has; its result is not used."
        )
    copies = []
    for step in steps:
        if step.name not in result.names and not step.copied:
            raise ValueError(
                f"mergekit left out the tensor {step.name}, which more than one model has; its result is not used."
            )
        place = len(weights) if step.name in result.names else step.sources[0]
        stored = everything[place].stored[step.name]
        copies.append(Step(step.name, (place,), (1.0,), True, stored.dtype, stored.shape))
    return in_file_order(copies)
