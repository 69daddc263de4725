"""Train one of the twins with HF `Trainer`; the loop, the schedule and the devices are the library's.

A finished run is a complete checkpoint folder: weights, tokenizer or processor, remote code, vision tower,
`training_state.json` and a model card.
"""

import json
import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import ConcatDataset
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
    set_seed,
)

from ..data.captions import CaptionRows, read_captions
from ..data.features import picture_features
from ..data.packing import PackingCollator
from ..data.text import TextBlocks, count_words, first_words, read_sentences
from ..data.tokenizer import train_tokenizer
from ..files import named_source, new_folder, sha256
from ..hub.facts import STATE_FILE, write_trained_card
from ..model import BabylmVlmConfig, BabylmVlmForConditionalGeneration, BabylmVlmProcessor
from .recipe import Recipe, training_arguments

DECODER_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def train(recipe: Recipe, overwrite: bool = False) -> dict:
    """Train what the recipe says and leave a checkpoint in `recipe.output_dir`.

    Returns:
        The training state, as in `training_state.json`.

    Raises:
        FileExistsError: the output folder exists and `overwrite` is off.
        FileNotFoundError, ValueError: the data or the ancestor cannot be used.
    """
    with new_folder(Path(recipe.output_dir), overwrite) as folder:
        started = time.monotonic()
        arguments = training_arguments(recipe, folder)
        set_seed(arguments.seed)
        model, processor, rows, data = prepare(recipe, arguments.device)
        if recipe.embedding_learning_rate == 0:
            model.get_input_embeddings().requires_grad_(False)  # spares the time of its gradient
        trainer = TwinTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=PackingCollator(tokenizer_of(processor), recipe.block_size),
            projector_learning_rate=recipe.projector_learning_rate,
            embedding_learning_rate=recipe.embedding_learning_rate,
        )
        output = trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        epochs = output.metrics["epoch"]
        state = {
            "model": recipe.model,
            "ancestor": describe_ancestor(recipe.init_from),
            "data": data,
            "epochs": round(epochs, 4),
            "words_seen": round(epochs * sum(source["words"] for source in data)),
            "steps": trainer.state.global_step,
            "final_loss": losses[-1] if losses else output.training_loss,
            "parameters": model.num_parameters(),
            "seed": arguments.seed,
            "precision": "bf16 autocast" if arguments.bf16 else "fp32",
            "hardware": hardware(),
            "minutes": round((time.monotonic() - started) / 60, 2),
            "versions": {package: version(package) for package in ("babylm-vlm", "torch", "transformers")},
            "recipe": {key: value for key, value in asdict(recipe).items() if key != "training"} | recipe.training,
        }
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    write_trained_card(Path(recipe.output_dir))
    return state


def prepare(
    recipe: Recipe, device: torch.device
) -> tuple[PreTrainedModel, ProcessorMixin | PreTrainedTokenizerBase, ConcatDataset, list[dict]]:
    """Everything that training needs, from the recipe.

    Returns:
        The model; its tokenizer, or for a multimodal one its processor; the rows of all data together; and for each
        data set what it is (name, words, sentences or captions and pictures).
    """
    sentences = {source: read_sentences(source, recipe.text_column) for source in recipe.text}
    tokenizer = load_tokenizer(recipe, sentences)
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
    rows = [TextBlocks(lines, tokenizer, recipe.block_size)] if lines else []
    if recipe.model == "multimodal":
        model, processor = give_eyes(model, recipe, tokenizer)
        captions, described = load_captions(recipe, model.to(device), processor)
        rows.append(captions)
        data.append(described)
    return model, processor, ConcatDataset(rows), data


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


def load_captions(
    recipe: Recipe, model: BabylmVlmForConditionalGeneration, processor: BabylmVlmProcessor
) -> tuple[CaptionRows, dict]:
    """Caption rows with their pictures' pooled features, and what they are (name, words, pictures, captions)."""
    found = read_captions(recipe.captions, recipe.image_column, recipe.caption_column)
    features = picture_features(model, processor.image_processor, found.pictures)
    described = {
        "name": recipe.captions,
        "words": count_words([caption for _, caption in found.captions]),
        "captions": len(found.captions),
        "pictures": len(found.pictures),
    }
    return CaptionRows(found.captions, features, processor.tokenizer), described


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
    """`Trainer` with learning rates of their own for the projector, which starts from random weights, and embeddings.

    Embeddings of words that captions lack drift far: Adam makes the smallest gradient a full step.
    """

    def __init__(self, *args, projector_learning_rate: float | None, embedding_learning_rate: float | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.peaks = {"multi_modal_projector": projector_learning_rate, "embed_tokens": embedding_learning_rate}

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
