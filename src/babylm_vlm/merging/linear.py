"""Merge checkpoints into a checkpoint.

A merge is checked before anything is written (`preflight.py`, `steps.py`), streamed (`engine.py`), completed with
everything that is not weights (`output.py`) and put in place by one rename: it is whole or not there.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..files import check_free_space, check_new_folder, new_folder, sync_folder
from .delegate import completing_steps, folded_adapters, run_mergekit
from .engine import MAX_SHARD_SIZE, write_weights
from .hashing import HashedReads
from .output import PLAN_FILE, check_overlap, copy_rest, set_vocabulary_size, take_tokenizer
from .plan import MergePlan, Source
from .preflight import check_models, warn_of_strangers
from .steps import Step, plan_steps
from .vocabulary import describe_match, match_tokens
from .weights import Weights

log = logging.getLogger(__name__)

Finish = Callable[[Path, Mapping[Path, str]], None]


def merge(
    plan: MergePlan,
    output_dir: str | Path,
    overwrite: bool = False,
    allow_missing: bool = False,
    max_shard_size: str | int = MAX_SHARD_SIZE,
    trust_remote_code: bool = False,
    finish: Finish | None = None,
) -> None:
    """Carry out a plan: a folder that `from_pretrained` reads, complete or not there at all.

    Everything of the base model but its weights, model card and training state is copied along, and the plan is stored
    as `mergekit_config.yml`. Warnings go to the log, which without further ado is stderr.

    Args:
        plan: from `read_plan`.
        output_dir: a new folder.
        overwrite: replace an earlier merge of that name.
        allow_missing: merge a tensor from the models that have it, copy it where only one does; the log lists them.
        max_shard_size: largest weights file, in bytes or as "5GB".
        trust_remote_code: run code that comes with a model; only mergekit's methods and adapters need a model's code.
        finish: called as `finish(folder, hashes)` before the folder is put in place, to add to it, such as a model
            card; `hashes` are the SHA-256 of those parents' weights files that were read whole and in their order,
            none for mergekit's methods and plans with adapters.

    Raises:
        FileExistsError: `output_dir` exists and `overwrite` is false, or it holds something else than a merge.
        FileNotFoundError: a checkpoint has no weights.
        OSError: the output cannot be written.
        ValueError: the models do not fit each other or the plan, or their weights cannot be read or are not finite.
    """
    output_dir = Path(output_dir)
    check_overlap(output_dir, [source.folder for source in plan.sources])
    check_new_folder(output_dir, overwrite, PLAN_FILE)
    with folded_adapters(plan, trust_remote_code) as folded:
        steps, weights = preflight(folded, allow_missing)
        # of a folded adapter the files are temporary, and their hashes are nobody's
        hashed = HashedReads(steps, weights) if finish and plan.native and folded is plan else None
        size = sum(step.bytes for step in steps)
        check_free_space(output_dir, size if plan.native else 2 * size)  # mergekit's result and its completion
        with new_folder(output_dir, overwrite, PLAN_FILE) as folder:
            copy_rest(folded, folder)
            if plan.native:
                write_weights(steps, folded, weights, folder, max_shard_size, hashed)
            else:
                _merge_with_mergekit(folded, steps, weights, folder, max_shard_size, trust_remote_code)
            set_vocabulary_size(folder)
            if finish:
                finish(folder, hashed.sha256() if hashed else {})
            sync_folder(folder)


def preflight(plan: MergePlan, allow_missing: bool = False) -> tuple[list[Step], list[Weights]]:
    """Check a plan against its models' configurations, tokenizers and weights' headers; nothing is written.

    Returns:
        What happens to every tensor, and the opened checkpoints. Of a plan that mergekit carries out, the steps only
        say which tensors one model alone has, so that they are copied.

    Raises:
        FileNotFoundError, ValueError: as `merge`.
    """
    check_models(plan)
    weights = [Weights(source.folder) for source in plan.sources]
    vocabulary = match_tokens(plan, weights) if plan.native and plan.align_tokens else None
    if vocabulary:
        for sentence in describe_match(plan, vocabulary):
            log.warning("%s", sentence)
    steps = plan_steps(plan, weights, vocabulary, allow_missing)
    if allow_missing:
        _log_missing(plan, weights, steps)
    if warning := warn_of_strangers(plan, weights):
        log.warning("Warning: %s", warning)
    return steps, weights


def _merge_with_mergekit(
    plan: MergePlan,
    steps: Sequence[Step],
    weights: Sequence[Weights],
    folder: Path,
    max_shard_size: str | int,
    trust_remote_code: bool,
) -> None:
    """Let mergekit merge, then write its result, completed, in our format."""
    made = folder / "mergekit"
    run_mergekit(plan, made, trust_remote_code)
    result = Weights(made)
    dropped = sorted(step.name for step in steps if step.copied and step.name not in result.names)
    if dropped:
        log.warning("mergekit left out %s; copied as in the model that has it.", ", ".join(dropped))
    sources = (*plan.sources, Source("the result of mergekit", made, ()))
    completed = replace(plan, sources=sources, dtype=None, out_dtype=None)
    write_weights(completing_steps(steps, result, weights), completed, [*weights, result], folder, max_shard_size)
    take_tokenizer(made, folder)
    shutil.rmtree(made)


def _log_missing(plan: MergePlan, weights: Sequence[Weights], steps: Sequence[Step]) -> None:
    """List the tensors that some model lacks, and what happens to them."""
    for step in steps:
        lacking = [s.name for s, one in zip(plan.sources, weights, strict=True) if step.name not in one.names]
        if lacking:
            names = " and ".join(plan.sources[place].name for place in step.sources)
            log.warning("%s is not in %s: %s %s.", step.name, " and ".join(lacking), step.operation, names)
