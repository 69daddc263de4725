"""Train one of the twins with HF `Trainer`; the loop, the schedule and the devices are the library's.

A finished run is a complete checkpoint folder: weights, tokenizer or processor, remote code, vision tower,
`training_state.json` and a model card.
"""

import hashlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from torch.utils.data import ConcatDataset, Dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..data.captions import CaptionBlocks, CaptionedPictures, CaptionRows, read_captions
from ..data.features import Features, StoredFeatures, describe_features, picture_features
from ..data.packing import PackingCollator
from ..data.text import TextBlocks, count_words, first_words, read_sentences
from ..data.tokenizer import train_tokenizer
from ..files import check_new_folder, named_source, sha256
from ..hub.facts import STATE_FILE
from ..model import BabylmVlmConfig, BabylmVlmForConditionalGeneration, BabylmVlmProcessor
from .checkpoints import (
    Checkpoints,
    advice,
    check_same_run,
    earlier_state,
    finish,
    resume_point,
    run_folder,
    sigterm_stops,
    tidy,
)
from .recipe import Recipe, training_arguments
from .schedule import Schedule, checkpoint_steps, make_schedule

MOST_EPOCHS = 10  # of the BabyLM challenge, since 2025
DECODER_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
DECODER_MATRICES = r".*\.layers\.\d+\..*_proj"


@dataclass
class Prepared:
    """What a run needs besides its arguments.

    Attributes:
        model: with the weights that training starts from.
        processor: its tokenizer, or for a multimodal one its processor.
        text: rows of text, if there is any.
        captions: rows of captions, if there are any.
        data: for each data set what it is (name, words, sentences or captions and pictures).
        data_sha256: hash of all sentences and captions.
    """

    model: PreTrainedModel
    processor: ProcessorMixin | PreTrainedTokenizerBase
    text: TextBlocks | None
    captions: CaptionRows | CaptionBlocks | None
    data: list[dict]
    data_sha256: str


def train(recipe: Recipe, overwrite: bool = False, resume: bool = False) -> dict:
    """Train what the recipe says and leave a checkpoint in `recipe.output_dir`.

    Args:
        recipe: what to train.
        overwrite: replace an earlier run in the output folder.
        resume: go on with an unfinished run there, from its newest resume point; a finished one is left as it is, and
            where there is none a new one begins.

    Returns:
        The training state, as in `training_state.json`.

    Raises:
        FileExistsError: the output folder exists, and it is neither to be replaced nor to be resumed.
        FileNotFoundError, ValueError: the data or the ancestor cannot be used, or the loss is NaN.
        InterruptedError: SIGTERM came; there is a resume point.
    """
    started = time.monotonic()
    output = Path(recipe.output_dir)
    earlier = earlier_state(output) if resume else None
    if earlier and earlier["finished"]:
        tidy(output)
        return earlier
    arguments = training_arguments(recipe, output)
    if arguments.should_save and earlier is None:
        check_new_folder(output, overwrite, STATE_FILE)
    set_seed(arguments.seed)
    point = resume_point(output, earlier["steps"]) if earlier and earlier["steps"] else None
    run = prepare(recipe, arguments, point)
    keys = {key: value for key, value in asdict(recipe).items() if key != "training"} | recipe.training
    if earlier:
        check_same_run(earlier, keys, run.data_sha256, output)
    sources = [rows for rows in (run.text, run.captions) if rows is not None]
    nothing = np.zeros(0, dtype=int)
    text, captions = (nothing if rows is None else rows.words for rows in (run.text, run.captions))
    schedule, steps = make_schedule(recipe, arguments, text, captions)
    words = schedule.read_after(np.concatenate([text, captions]), steps)
    tokens = schedule.read_after(np.concatenate([rows.tokens for rows in sources]), steps)
    epochs = schedule.read_after(np.ones(len(text) + len(captions)), steps) / (len(text) + len(captions))
    due = checkpoint_steps(recipe.checkpoint_words, words)
    if arguments.should_save and (recipe.word_budget or due):
        print_budget(run.data, words[-1], epochs[-1], [name for names in due.values() for name in names])
    arguments.max_steps = steps

    def describe(state: TrainerState) -> dict:
        step = state.global_step
        losses = [entry.get("loss", entry.get("train_loss")) for entry in state.log_history]
        return {
            "model": recipe.model,
            "finished": step == steps,
            "ancestor": ancestor,
            "data": run.data,
            "data_sha256": run.data_sha256,
            "epochs": round(float(epochs[step]), 4),
            "words_seen": int(words[step]),
            "tokens_seen": int(tokens[step]),
            "steps": step,
            "final_loss": losses[-1] if losses else None,
            "parameters": parameters,
            "seed": arguments.seed,
            "precision": "bf16 autocast" if arguments.bf16 else "fp32",
            "hardware": hardware(),
            "minutes": round((time.monotonic() - started) / 60 + (earlier["minutes"] if earlier else 0), 2),
            "versions": {package: version(package) for package in ("babylm-vlm", "torch", "transformers")},
            "recipe": keys,
        }

    ancestor, parameters = describe_ancestor(recipe.init_from), run.model.num_parameters()
    if recipe.embedding_learning_rate == 0:
        run.model.get_input_embeddings().requires_grad_(False)  # spares the time of its gradient
    with run_folder(output, earlier or describe(TrainerState()), arguments.should_save):
        trainer = TwinTrainer(
            model=run.model if recipe.lora is None else add_adapters(run.model, recipe),
            args=arguments,
            train_dataset=ConcatDataset(sources),
            data_collator=PackingCollator(tokenizer_of(run.processor), recipe.block_size),
            schedule=schedule,
            projector_learning_rate=recipe.projector_learning_rate,
            embedding_learning_rate=recipe.embedding_learning_rate,
        )
        trainer.add_callback(Checkpoints(trainer, run.processor, due, describe))
        with sigterm_stops(trainer):
            trainer.train(resume_from_checkpoint=None if point is None else str(point))
        state = describe(trainer.state)
        if not state["finished"]:
            raise InterruptedError(
                f"Stopped by SIGTERM after step {state['steps']} of {steps}; go on with the same command and --resume."
            )
        if arguments.should_save:
            finish(output, trainer.model, run.processor, state)
    return state


def prepare(recipe: Recipe, arguments: TrainingArguments, point: Path | None = None) -> Prepared:
    """Everything that training needs, from the recipe; the tokenizer of a resume point, if there is one."""
    sentences = {source: read_sentences(source, recipe.text_column) for source in recipe.text}
    tokenizer = load_tokenizer(recipe, sentences) if point is None else AutoTokenizer.from_pretrained(point)
    sentences = {source: first_words(lines, recipe.text_words) for source, lines in sentences.items()}
    model, processor = build_language_model(recipe, tokenizer), tokenizer
    if "<image>" not in tokenizer.get_vocab() or tokenizer.pad_token_id is None or tokenizer.bos_token_id is None:
        raise ValueError("The tokenizer lacks <image>, a padding or a BOS token: use one that was made by babylm-vlm.")
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, but the ancestor {model.config.vocab_size}: use its own."
        )
    data = [{"name": source, "words": count_words(s), "sentences": len(s)} for source, s in sentences.items()]
    lines = [line for s in sentences.values() for line in s]
    digest = hashlib.sha256("\n".join(lines).encode())
    text = TextBlocks(lines, tokenizer, recipe.block_size) if lines else None
    captions = None
    if recipe.model == "multimodal":
        model, processor = give_eyes(model, recipe, tokenizer)
        found = read_captions(recipe.captions, recipe.image_column, recipe.caption_column)
        digest.update(json.dumps(found.captions).encode())
        features = load_features(recipe, model.to(arguments.device), processor, found)
        captions = CaptionRows(found.captions, features, tokenizer)
        words = int(captions.words.sum())
        if recipe.pack_captions:
            captions = CaptionBlocks(captions, recipe.block_size, arguments.seed)
        described = {"captions": len(found.captions), "pictures": len(found.pictures)}
        data.append({"name": recipe.captions, "words": words, **described})
    return Prepared(model, processor, text, captions, data, digest.hexdigest())


def print_budget(data: list[dict], words: int, epochs: float, checkpoints: list[str]) -> None:
    """A table of the words of every source, and what the run makes of them."""
    total = sum(source["words"] for source in data)
    table = Table("Source", box=None)
    for column in ("Words", "Share"):
        table.add_column(column, justify="right")
    for source in data:
        table.add_row(source["name"], f"{source['words']:,}", f"{source['words'] / total:.1%}")
    table.add_row("all", f"{total:,}", "100.0%", style="bold")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    names = ", ".join(checkpoints) or "none"
    console.print(f"The run reads {words:,} words in {epochs:.2f} passes. Checkpoints: {names}.")
    if epochs > MOST_EPOCHS:
        console.print(f"[yellow]Warning:[/yellow] the BabyLM challenge allows no more than {MOST_EPOCHS} passes.")


def hardware() -> str:
    """The device that trains, in words: the GPU's name, or the kind of processor and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def load_tokenizer(recipe: Recipe, sentences: dict[str, list[str]]) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer, the ancestor's, or a new one trained on the text.

    Raises:
        FileNotFoundError: the ancestor is not there.
        ValueError: there is nothing to train a tokenizer on.
    """
    source = recipe.tokenizer or recipe.init_from
    if source is not None:
        with named_source(source, "the recipe's 'tokenizer' and 'init_from'"):
            return AutoTokenizer.from_pretrained(source)
    if not sentences:
        raise ValueError("Without 'tokenizer' and 'init_from' a recipe needs 'text' to train a tokenizer on.")
    return train_tokenizer((line for lines in sentences.values() for line in lines), recipe.vocab_size)


def build_language_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """The ancestor in fp32, or a Llama of the recipe's shape with random weights and tied embeddings."""
    if recipe.init_from is not None:
        with named_source(recipe.init_from, "the recipe's 'init_from'"):
            return close_eyes(recipe.init_from)
    try:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **{name: getattr(recipe, name) for name in DECODER_SHAPE},
        )
    except StrictDataclassError as error:
        raise ValueError(f"The recipe's shape is no decoder: {error.__cause__ or error}") from error
    return LlamaForCausalLM(config)


def close_eyes(checkpoint: str) -> LlamaForCausalLM:
    """The decoder of a checkpoint in fp32; of a multimodal one neither the projector nor the eyes' configuration."""
    kind = AutoConfig.from_pretrained(checkpoint).model_type
    if kind not in ("llama", "babylm_vlm"):
        raise ValueError(f"'init_from' names {checkpoint}, a {kind} model; it must be llama or babylm_vlm.")
    config = LlamaConfig.from_pretrained(checkpoint).to_dict()
    config = LlamaConfig(**{key: value for key, value in config.items() if key in LlamaConfig().to_dict()})
    return LlamaForCausalLM.from_pretrained(checkpoint, config=config, dtype=torch.float32, use_safetensors=True)


def give_eyes(
    language: LlamaForCausalLM, recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> tuple[BabylmVlmForConditionalGeneration, BabylmVlmProcessor]:
    """The multimodal model with this decoder and a new projector; if the ancestor has eyes, the ancestor itself."""
    if recipe.init_from is not None and AutoConfig.from_pretrained(recipe.init_from).model_type == "babylm_vlm":
        model = BabylmVlmForConditionalGeneration.from_pretrained(recipe.init_from, dtype=torch.float32)
        image_processor = BabylmVlmProcessor.from_pretrained(recipe.init_from).image_processor
        return model, BabylmVlmProcessor(image_processor, tokenizer, visual_tokens=model.config.visual_tokens)
    tower = {"pretrained_model_name_or_path": recipe.vision_tower, "revision": recipe.vision_tower_revision}
    with named_source(recipe.vision_tower, "the recipe's 'vision_tower'"):
        tower_config = AutoConfig.from_pretrained(**tower)
        image_processor = AutoImageProcessor.from_pretrained(**tower)
    folder = Path(recipe.vision_tower)
    decoder = {k: v for k, v in language.config.to_dict().items() if k not in ("model_type", "architectures")}
    config = BabylmVlmConfig(
        vision_tower=str(folder.resolve()) if folder.is_dir() else recipe.vision_tower,
        vision_tower_revision=recipe.vision_tower_revision,
        vision_feature_layer=recipe.vision_feature_layer,
        vision_hidden_size=tower_config.hidden_size,
        vision_grid=recipe.vision_grid,
        image_token_id=tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        image_processor=image_processor.to_dict(),
        **decoder,
    )
    model = BabylmVlmForConditionalGeneration(config)
    model.model.load_state_dict(language.model.state_dict(), strict=False)
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    return model, BabylmVlmProcessor(image_processor, tokenizer, visual_tokens=model.config.visual_tokens)


def load_features(
    recipe: Recipe, model: BabylmVlmForConditionalGeneration, processor: BabylmVlmProcessor, found: CaptionedPictures
) -> Features:
    """Pooled features of the pictures: stored ones, if the recipe names some, or else made now."""
    if recipe.features is None:
        return picture_features(model.model, processor.image_processor, found.pictures)
    return StoredFeatures(recipe.features, describe_features(model.model, found))


def add_adapters(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """The model with LoRA adapters on all matrices of the decoder's layers; they and the projector are trained.

    Raises:
        ValueError: `lora` has a field that is none of `peft.LoraConfig`.
    """
    projector = ["multi_modal_projector"] if recipe.model == "multimodal" else None
    try:
        config = LoraConfig(**{"target_modules": DECODER_MATRICES, "modules_to_save": projector} | recipe.lora)
    except TypeError as error:
        raise ValueError(f"'lora' has a wrong field: {error}") from error
    return get_peft_model(model, config)


def tokenizer_of(processor: ProcessorMixin | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A processor's tokenizer; a tokenizer itself."""
    return processor.tokenizer if isinstance(processor, ProcessorMixin) else processor


def describe_ancestor(init_from: str | None) -> dict | None:
    """Name of the ancestor and, for a folder on this disk, the hash of its weights."""
    if init_from is None:
        return None
    weights = Path(init_from) / "model.safetensors"
    return {"name": init_from, "sha256": sha256(weights) if weights.is_file() else None}


class TwinTrainer(Trainer):
    """`Trainer` that reads its rows in the order of a `Schedule` and stops at a loss that is not finite.

    The projector, which starts from random weights, has a learning rate of its own, and so have embeddings: those of
    words that captions lack drift far, as Adam makes the smallest gradient a full step.
    """

    def __init__(
        self,
        *args,
        schedule: Schedule,
        projector_learning_rate: float | None,
        embedding_learning_rate: float | None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.schedule = schedule
        self.peaks = {"multi_modal_projector": projector_learning_rate, "embed_tokens": embedding_learning_rate}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Schedule:
        return self.schedule

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """As `Trainer.training_step`; a loss that is NaN or infinite ends the run before the update."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}. {advice(Path(self.args.output_dir))}"
            )
        return loss

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
