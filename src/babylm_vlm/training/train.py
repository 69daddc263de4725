"""Train one of the twins with HF `Trainer`; the loop, the schedule and the devices are the library's.

A finished run is a complete checkpoint folder: weights, tokenizer or processor, remote code, vision tower,
`training_state.json`, a model card, the log (`trainer_state.json`) and its `training_curve.png`.
"""

import time
from pathlib import Path

import torch
from torch.utils.data import ConcatDataset, Dataset
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments, set_seed

from ..data.packing import PackingCollator
from ..files import check_new_folder
from ..hub.facts import STATE_FILE
from ..hub.push import check_repository, push
from .checkpoints import (
    Checkpoints,
    advice,
    check_same_run,
    check_space,
    earlier_state,
    finish,
    resume_point,
    run_folder,
    sigterm_stops,
    tidy,
)
from .loss import use_chunked_loss
from .prepare import Prepared, add_adapters, prepare, tokenizer_of
from .recipe import Recipe, training_arguments
from .record import Record, print_budget
from .schedule import RunPlan, Schedule, plan_run
from .speed import flops_per_token, matmul_rate


def train(recipe: Recipe, overwrite: bool = False, resume: bool = False, push_to: str | None = None) -> dict:
    """Train what the recipe says and leave a checkpoint in `recipe.output_dir`.

    Args:
        recipe: what to train.
        overwrite: replace an earlier run in the output folder.
        resume: go on with an unfinished run there, from its newest resume point; a finished one is left as it is (what
            the Hub lacks of it is sent), and where there is none a new one begins.
        push_to: "user/name" on the Hub: each checkpoint is published there when it appears, and in the end the run.

    Returns:
        The training state, as in `training_state.json`.

    Raises:
        FileExistsError: the output folder exists, and it is neither to be replaced nor to be resumed.
        FileNotFoundError, ValueError: the data or the ancestor cannot be used, or the loss is NaN.
        InterruptedError: SIGTERM came; there is a resume point.
        OSError: the disk has no room for the run's checkpoints, or the Hub refuses the finished run.
    """
    started = time.monotonic()
    output = Path(recipe.output_dir)
    earlier = earlier_state(output) if resume else None
    arguments = training_arguments(recipe, output)
    if push_to and arguments.should_save:
        check_repository(push_to)
    if earlier and earlier["finished"]:
        tidy(output)
        if push_to and arguments.should_save:
            push(output, push_to)
        return earlier
    if arguments.should_save and earlier is None:
        check_new_folder(output, overwrite, STATE_FILE)
    set_seed(arguments.seed)
    point = resume_point(output, earlier["steps"]) if earlier and earlier["steps"] else None
    run = prepare(recipe, arguments, point)
    if earlier:
        check_same_run(earlier, recipe.keys(), run.data_sha256, output)
    plan = plan_run(recipe, arguments, run.text, run.captions)
    if earlier and plan.tokens[: earlier["steps"] + 1][-1] != earlier["tokens_seen"]:
        raise ValueError(
            f"The run in {output} had read {earlier['tokens_seen']:,} tokens in {earlier['steps']} updates, which "
            "this one would not: resume it with as many processes as it began with."
        )
    arguments.max_steps = plan.steps
    if arguments.should_save:
        if recipe.word_budget or plan.due:
            print_budget(run.data, plan)
        step, resumable = (earlier["steps"] if earlier else 0), arguments.save_strategy != "no"
        check_space(output, run.model, plan.due, step, resumable)
    record = Record(recipe, arguments, run, plan, started, earlier)
    trainer = make_trainer(recipe, arguments, run, plan)
    with run_folder(output, earlier or record.after(TrainerState()), arguments.should_save):
        trainer.add_callback(Checkpoints(trainer, run.processor, plan.due, record.after, push_to))
        with sigterm_stops(trainer):
            trainer.train(resume_from_checkpoint=None if point is None else str(point))
        state = record.after(trainer.state)
        if not state["finished"]:
            raise InterruptedError(
                f"Stopped by SIGTERM after step {state['steps']} of {plan.steps}; go on with the same command and "
                "--resume."
            )
        finish(output, trainer, run.processor, state)
    if push_to and arguments.should_save:
        push(output, push_to)
    return state


def make_trainer(recipe: Recipe, arguments: TrainingArguments, run: Prepared, plan: RunPlan) -> "TwinTrainer":
    """The trainer of a prepared run."""
    if recipe.embedding_learning_rate == 0:
        run.model.get_input_embeddings().requires_grad_(False)  # spares the time of its gradient
    make_fast(run.model, arguments)
    flops = flops_per_token(run.model, recipe.block_size)  # adapters, added below, do not count
    return TwinTrainer(
        model=run.model if recipe.lora is None else add_adapters(run.model, recipe),
        args=arguments,
        train_dataset=ConcatDataset([rows for rows in (run.text, run.captions) if rows is not None]),
        data_collator=PackingCollator(tokenizer_of(run.processor), recipe.block_size),
        plan=plan,
        flops_per_token=flops,
        projector_learning_rate=recipe.projector_learning_rate,
        embedding_learning_rate=recipe.embedding_learning_rate,
    )


def make_fast(model: PreTrainedModel, arguments: TrainingArguments) -> None:
    """Let a model compute the same with what is fastest on this device."""
    if not (arguments.bf16 or arguments.fp16 or arguments.torch_compile):
        use_chunked_loss(model)
    if arguments.torch_compile and arguments.device.type == "cpu":
        model.set_attn_implementation("eager")  # torch.compile fuses it; the CPU's own attention kernel is slower


class TwinTrainer(Trainer):
    """`Trainer` that reads its rows in the order of a `Schedule` and stops at a loss that is not finite.

    The projector, which starts from random weights, has a learning rate of its own, and so have embeddings: those of
    words that captions lack drift far, as Adam makes the smallest gradient a full step.
    """

    def __init__(
        self,
        *args,
        plan: RunPlan,
        flops_per_token: int,
        projector_learning_rate: float | None,
        embedding_learning_rate: float | None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.plan, self.flops_per_token = plan, flops_per_token
        self.matmul_rate = matmul_rate(
            torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32, self.args.device
        )
        self.clock: tuple[int, float] | None = None  # update and time of the log before
        self.peaks = {"multi_modal_projector": projector_learning_rate, "embed_tokens": embedding_learning_rate}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Schedule:
        return self.plan.schedule

    def _run_epoch(self, **kwargs) -> None:
        """As `Trainer._run_epoch`, but no update more in a run that is resumed at its end, inside a pass."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """As `Trainer.training_step`; a loss that is NaN or infinite ends the run before the update."""
        if self.clock is None:
            self.clock = self.state.global_step, time.monotonic()
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}. {advice(Path(self.args.output_dir))}"
            )
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`, with the words and tokens seen, and their rate since the log before.

        `mfu` is the model's FLOPs a second as a share of what this device's matrix multiplication was measured to do
        when the run began.
        """
        step, now = self.state.global_step, time.monotonic()
        before, since = self.clock or (step, now)  # a run that is resumed at its end makes no update
        words, tokens = (int(seen[step]) for seen in (self.plan.words, self.plan.tokens))
        logs |= {"words_seen": words, "tokens_seen": tokens}
        if step > before:
            rate = (tokens - self.plan.tokens[before]) / (now - since)
            logs["words_per_second"] = (words - self.plan.words[before]) / (now - since)
            logs["tokens_per_second"] = rate
            logs["mfu"] = rate * self.flops_per_token / (self.matmul_rate * self.args.world_size)
            self.clock = step, now
        super().log(logs, start_time)

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Four groups: decoder weights, decoder vectors (norms; no decay), projector (no decay), embeddings."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        own = {part: [] for part in self.peaks}
        decoder = []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            part = next((part for part in self.peaks if part in name), None)
            (decoder if part is None else own[part]).append(parameter)
        groups = [
            {"params": [p for p in decoder if p.dim() > 1], "weight_decay": self.args.weight_decay},
            {"params": [p for p in decoder if p.dim() <= 1], "weight_decay": 0.0},
        ]
        for part, decay in (("multi_modal_projector", 0.0), ("embed_tokens", self.args.weight_decay)):
            if own[part]:
                rate = self.args.learning_rate if self.peaks[part] is None else self.peaks[part]
                groups.append({"params": own[part], "weight_decay": decay, "lr": rate})
        self.optimizer = optimizer_class(groups, **options)
        return self.optimizer
