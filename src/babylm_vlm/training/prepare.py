"""What a run needs before its first update: text, captions, features, a tokenizer, the model that it starts from."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainingArguments,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17: at the top only with torchvision

from ..data.captions import CaptionBlocks, CaptionedPictures, CaptionRows, read_captions
from ..data.features import Features, StoredFeatures, describe_features, picture_features
from ..data.text import TextBlocks, count_words, first_words, read_sentences
from ..data.tokenizer import train_tokenizer
from ..files import named_source
from ..model import BabylmVlmConfig, BabylmVlmForConditionalGeneration, BabylmVlmProcessor
from .recipe import Recipe

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
        described = {"captions": len(found.captions), "pictures": len(found.names)}
        data.append({"name": recipe.captions, "words": words, **described})
    return Prepared(model, processor, text, captions, data, digest.hexdigest())


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
    """Pooled features of the pictures: those that came with the captions, stored ones, or else made now.

    Raises:
        ValueError: those that came along do not fit the recipe's tower and grid, or the recipe names others too.
    """
    if found.features is not None:
        width, grid = found.features.shape[2], model.config.vision_grid
        if recipe.features is not None:
            raise ValueError(f"{recipe.captions} holds features itself: remove 'features' from the recipe.")
        if (width, grid) != (model.config.vision_hidden_size, 1):
            raise ValueError(
                f"{recipe.captions} holds one feature of width {width} a picture, but {recipe.vision_tower} with "
                f"vision_grid {grid} has {grid**2} of width {model.config.vision_hidden_size}: name the tower that "
                "made them in 'vision_tower', with vision_grid 1."
            )
        return found.features
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
