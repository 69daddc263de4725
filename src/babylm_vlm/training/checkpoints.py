"""What a run leaves in its folder while it goes on, so that nothing is lost when the machine dies.

- `chck_NM/`: complete checkpoints at numbers of words seen. Each appears whole.
- `checkpoint-STEP/`: the newest point to resume from, as `Trainer` writes it, with the optimizer's state. It replaces
  the one before only when all of it is on the disk.
- `training_state.json`: what the run is, and which resume point is the newest.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import check_free_space, new_folder, read_json, sync_folder
from ..hub.facts import STATE_FILE, write_trained_card
from ..hub.push import push
from ..model import BabylmVlmForConditionalGeneration
from .record import plot_loss

Processor = ProcessorMixin | PreTrainedTokenizerBase


class Checkpoints(TrainerCallback):
    """Starts every pass of the schedule, leaves checkpoints and resume points, and stops the run at SIGTERM.

    Args:
        trainer: the one this is added to; its `train_dataset` order is a `Schedule`.
        processor: saved with every checkpoint.
        due: names of the checkpoints to leave after an update.
        describe: the training state after the update that `TrainerState` is at.
        push_to: "user/name" on the Hub, where each checkpoint is published as a branch when it appears; a failure is
            said once, and training goes on.
    """

    def __init__(
        self,
        trainer: Trainer,
        processor: Processor,
        due: dict[int, list[str]],
        describe: Callable[[TrainerState], dict],
        push_to: str | None = None,
    ):
        self.push_to, self.failed = push_to, False
        self.trainer, self.processor, self.due, self.describe = trainer, processor, due, describe
        self.output = Path(trainer.args.output_dir)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Let the rows come in the order of the pass that begins, or is taken up again."""
        self.trainer.plan.schedule.start(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: PreTrainedModel, **kwargs
    ) -> None:
        """Save what is due, if the weights are good."""
        if self.trainer.accelerator.check_trigger():  # SIGTERM, in this process or another
            control.should_save = control.should_training_stop = True
        names = self.due.get(state.global_step, [])
        if names or control.should_save:
            check_weights(model, state.global_step, self.output)
        weights = whole_weights(self.trainer) if names else None
        if not state.is_world_process_zero:
            return
        for name in names:
            with new_folder(self.output / name, overwrite=True, marker=STATE_FILE) as folder:
                write_checkpoint(folder, self.trainer.model, weights, self.processor, self.describe(state))
            if self.push_to:
                self.publish(name)

    def publish(self, name: str) -> None:
        """Send a checkpoint to its branch."""
        try:
            push(self.output / name, self.push_to, revision=name)
        except (OSError, ValueError) as error:
            if not self.failed:
                Console(stderr=True, soft_wrap=True, markup=False).print(
                    f"Warning: {name} was not published: {error} Training goes on; at its end all is sent that is "
                    "missing on the Hub."
                )
            self.failed = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Make the resume point that `Trainer` has just written the one that counts, and remove those before it."""
        self.trainer.accelerator.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        point = resume_point(self.output, state.global_step)
        self.processor.save_pretrained(point)
        sync_folder(point)
        write_state(self.output, self.describe(state) | {"finished": False})  # it is when `finish` has been there
        remove_resume_points(self.output, keep=point)


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """The weights of a model that FSDP has cut up among the processes, all of which must call this; else None."""
    if not trainer.is_fsdp_enabled:
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(trainer.model_wrapped, options=options)
    if trainer.model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)  # gathered, it is no longer seen to be the embeddings
    return weights


def write_checkpoint(
    folder: Path,
    model: PreTrainedModel | PeftModel,
    weights: dict[str, torch.Tensor] | None,
    processor: Processor,
    state: dict,
) -> None:
    """A complete checkpoint: weights, tokenizer or processor, remote code, vision tower, state and model card.

    Of a model with adapters the weights have them folded in, and `adapter/` holds them alone. `weights` stand in for
    those of a model that is cut up.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(folder / "adapter")
        model = deepcopy(model).merge_and_unload()
    model.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
    write_state(folder, state)
    write_trained_card(folder)
    sync_folder(folder)


def write_state(folder: Path, state: dict) -> None:
    """Write `training_state.json`, or put a new one in its place in one step."""
    draft = folder / f".{STATE_FILE}.part"
    draft.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, folder / STATE_FILE)


def finish(output: Path, trainer: Trainer, processor: Processor, state: dict) -> None:
    """Put the finished model into the run's folder, with the log and its curve, its state last."""
    weights = whole_weights(trainer)
    if not trainer.args.should_save:
        return
    with new_folder(output / "final", overwrite=True, marker=STATE_FILE) as folder:
        trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        plot_loss(trainer.state.log_history, folder / "training_curve.png")
        write_checkpoint(folder, trainer.model, weights, processor, state)
    final = output / "final"
    for path in sorted(final.iterdir(), key=lambda path: path.name == STATE_FILE):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    tidy(output)


def tidy(output: Path) -> None:
    """Remove from the folder of a finished run what only resuming needs."""
    shutil.rmtree(output / "final", ignore_errors=True)
    remove_resume_points(output)


def check_space(output: Path, model: PreTrainedModel, due: dict[int, list[str]], step: int, resumable: bool) -> None:
    """Raise OSError unless there is room for all that a run is still to write.

    That is: a checkpoint for each name that is due after `step`, and the finished model, in fp32 and with the vision
    tower if it is a local one; and of a resumable run two resume points of three numbers a weight, as Adam keeps two
    moments, and one is there until the next is complete.
    """
    weights = 4 * model.num_parameters()
    tower = model.model.local_tower() if isinstance(model, BabylmVlmForConditionalGeneration) else None
    own = weights + (0 if tower is None else sum(file.stat().st_size for file in tower.glob("*")))
    checkpoints = 1 + sum(len(names) for at, names in due.items() if at > step)
    check_free_space(output, checkpoints * own + (2 * 3 * weights if resumable else 0))


def resume_point(output: Path, step: int) -> Path:
    """Folder of the resume point after an update."""
    return output / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def remove_resume_points(output: Path, keep: Path | None = None) -> None:
    """Remove all resume points but one."""
    for path in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path != keep:
            shutil.rmtree(path)


def earlier_state(output: Path) -> dict | None:
    """The state of a run that is to be resumed; None if there is none in this folder."""
    return read_json(output / STATE_FILE) if (output / STATE_FILE).is_file() else None


def check_same_run(earlier: dict, recipe: dict, data: str, output: Path) -> None:
    """Raise ValueError unless a recipe and its data are those of the run that is to be resumed."""
    recipe = json.loads(json.dumps(recipe))
    for key in sorted(recipe.keys() | earlier["recipe"].keys()):
        before, value = earlier["recipe"].get(key), recipe.get(key)
        if key != "output_dir" and before != value:
            raise ValueError(
                f"The run in {output} has {before!r} for '{key}', and the recipe {value!r}: a run is resumed with the "
                "recipe it began with. Change it back, or start anew with --overwrite."
            )
    if earlier["data_sha256"] != data:
        raise ValueError(f"The data have changed since the run in {output} began: start anew with --overwrite.")


def check_weights(model: PreTrainedModel, step: int, output: Path) -> None:
    """Raise ValueError if a weight is NaN or infinite, so that a checkpoint of such weights is never written."""
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise ValueError(f"After step {step} the weights are not finite. {advice(output)}")


def advice(output: Path) -> str:
    """Where the last good weights are, and what to do about a loss that is not finite."""
    kept = [*output.glob("chck_*"), *output.glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    newest = max(kept, key=lambda path: path.stat().st_mtime, default=None)
    where = "No checkpoint was written before" if newest is None else f"The last good checkpoint is {newest}"
    return f"{where}; lower the learning rate, or set max_grad_norm, bf16 or warmup_steps."


@contextmanager
def sigterm_stops(trainer: Trainer) -> Iterator[None]:
    """SIGTERM lets the trainer finish its update, write a resume point and stop."""
    before = signal.signal(signal.SIGTERM, lambda *_: trainer.accelerator.set_trigger())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def run_folder(output: Path, state: dict, mine: bool) -> Iterator[None]:
    """Around the training: a new folder with the run's state, in place of an earlier run; none if nothing comes of it.

    Args:
        output: the folder.
        state: of the run before its first update.
        mine: whether this process writes.
    """
    if mine and state["steps"] == 0:
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        write_state(output, state)
    try:
        yield
    finally:
        if mine and {path.name for path in output.iterdir()} <= {STATE_FILE, "runs"}:  # the second is TensorBoard's
            shutil.rmtree(output)
