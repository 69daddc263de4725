"""A recipe: one flat YAML of the fields below and of `transformers.TrainingArguments`."""

import difflib
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import yaml
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available

WHOLE_NUMBERS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
WHOLE_NUMBERS += ("block_size", "vision_grid")
ORDERS = ("mixed", "text_first", "captions_first")
NUMBER_WITHOUT_POINT = re.compile(r"[+-]?\d+[eE][+-]?\d+")  # YAML 1.1 reads 1e-3 as text


@dataclass
class Recipe:
    """What is trained, from what, on what.

    Attributes:
        model: `language` (a plain Llama) or `multimodal` (a Llama with eyes).
        output_dir: folder of the finished checkpoint.
        init_from: checkpoint (folder or Hub id) whose weights training starts from: the ancestor. Twins that are to
            be merged share it. None: random weights.
        tokenizer: folder or Hub id; None: the ancestor's, or without an ancestor a new one trained on `text`.
        vocab_size: tokens of a new tokenizer.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads: the decoder's
            shape, without an ancestor.
        text: files of a sentence a line (`.gz`: compressed), `.parquet` files or `datasets` ids.
        text_column: of a `.parquet` file or a `datasets` text set.
        text_words: train on only the first sentences of each text, up to this many words; None: all. A tokenizer that
            is made for the run sees all of them.
        block_size: tokens in a row: text is cut into rows of it, captions are packed to rows of it.
        captions: folder in `imagefolder` layout with `metadata.jsonl`, folder in the challenge's layout
            (`NAME_captions.json` with `NAME_dino_v2_states.npy`; only its width shows that it is of `vision_tower`),
            or a `datasets` id.
        image_column, caption_column: of the captions.
        vision_tower: Hub id or folder of the frozen tower.
        vision_tower_revision: its branch, tag or commit on the Hub.
        vision_feature_layer: which hidden state of the tower is pooled.
        vision_grid: pooled to `vision_grid x vision_grid` visual tokens.
        features: folder that `babylm-vlm features` made of these captions, or user/name[@revision] where it published
            them; None: the tower runs before training.
        pack_captions: a row is as many captions as fill `block_size` tokens, so that text and captions are mixed by
            words and an update reads as much of either; else a row is one caption.
        data_order: `mixed`; `text_first` or `captions_first`: all passes over one, then all over the other.
        word_budget: words the run may see, repetitions included; it stops before the update that would exceed them.
            Without `num_train_epochs` it makes as many passes as that needs.
        checkpoint_words: leave a checkpoint `chck_…` at these numbers of words seen; `babylm`: 1M … 9M, 10M … 90M,
            100M … 1000M, as the challenge asks.
        lora: fields of `peft.LoraConfig`, such as `{r: 16, lora_alpha: 32}`: the decoder stays the ancestor's and
            adapters are trained, and the projector. The checkpoint has them folded in; `adapter/` in it has them
            alone: scaled by α they give the merge with the ancestor at α. None: all weights are trained.
        projector_learning_rate: peak learning rate of the projector; None: the decoder's.
        embedding_learning_rate: peak learning rate of the word embeddings; None: the decoder's; 0: they stay.
        training: every other key, to `TrainingArguments`; `bf16: auto` means where it is fast. `report_to` is
            TensorBoard where it is installed; `wandb`, `trackio` and the library's others will do.
    """

    model: str
    output_dir: str
    init_from: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 8192
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    text: list[str] = field(default_factory=list)
    text_column: str = "text"
    text_words: int | None = None
    block_size: int = 128
    captions: str | None = None
    image_column: str = "image"
    caption_column: str = "text"
    vision_tower: str = "facebook/dinov2-large"
    vision_tower_revision: str | None = None
    vision_feature_layer: int = -2
    vision_grid: int = 1
    features: str | None = None
    pack_captions: bool = False
    data_order: str = "mixed"
    word_budget: int | None = None
    checkpoint_words: str | list[int] | None = None
    lora: dict | None = None
    projector_learning_rate: float | None = None
    embedding_learning_rate: float | None = None
    training: dict = field(default_factory=dict)

    def keys(self) -> dict:
        """All of it as flat keys, as in its YAML."""
        return {key: value for key, value in asdict(self).items() if key != "training"} | self.training


def read_recipe(path: Path, overrides: dict | None = None) -> Recipe:
    """Read a YAML recipe; `overrides` replace its keys.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no YAML mapping, or a key is unknown, missing or contradicts another.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no recipe {path}.")
    try:
        keys = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(keys, dict):
        raise ValueError(f"The recipe {path} must be a YAML mapping of keys to values.")
    where = f"{path} or the keys given with it" if overrides else str(path)
    return make_recipe({**keys, **(overrides or {})}, where)


def make_recipe(keys: dict, where: str) -> Recipe:
    """Build a recipe from flat keys; `where` names their source in error messages. Raises as `read_recipe`."""
    keys = {key: _number(value) for key, value in keys.items()}
    own = {f.name for f in fields(Recipe)} - {"training"}
    trainers = {f.name for f in fields(TrainingArguments)} - own - {"resume_from_checkpoint"}
    for key in keys:
        if key not in own | trainers:
            near = difflib.get_close_matches(str(key), own | trainers, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"Unknown key '{key}' in {where}.{hint}")
    for key in ("model", "output_dir"):
        if key not in keys:
            raise ValueError(f"The key '{key}' is missing in {where}.")
    recipe = Recipe(
        **{key: value for key, value in keys.items() if key in own},
        training={key: value for key, value in keys.items() if key in trainers},
    )
    for name in WHOLE_NUMBERS:
        value = getattr(recipe, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"'{name}' must be a whole number above 0, not {value!r}, in {where}.")
    if not isinstance(recipe.text, list | str | None) or not isinstance(recipe.captions, str | None):
        raise ValueError(f"'text' must be a list of names and 'captions' one name, in {where}.")
    recipe.text = [recipe.text] if isinstance(recipe.text, str) else recipe.text or []
    if recipe.word_budget is not None:
        recipe.word_budget = _words(recipe.word_budget, "word_budget", where)
    if recipe.checkpoint_words not in (None, "babylm"):
        if not isinstance(recipe.checkpoint_words, list) or not recipe.checkpoint_words:
            raise ValueError(f"'checkpoint_words' must be babylm or a list of numbers of words, in {where}.")
        recipe.checkpoint_words = [_words(value, "checkpoint_words", where) for value in recipe.checkpoint_words]
    if recipe.data_order not in ORDERS:
        raise ValueError(f"'data_order' must be one of {', '.join(ORDERS)}, not {recipe.data_order!r}, in {where}.")
    if recipe.model not in ("language", "multimodal"):
        raise ValueError(f"'model' must be 'language' or 'multimodal', not {recipe.model!r}, in {where}.")
    for key in ("captions", "features"):
        if recipe.model == "language" and getattr(recipe, key):
            raise ValueError(f"A language model takes no '{key}': remove the key from {where}.")
    if recipe.model == "language" and not recipe.text:
        raise ValueError(f"A language model needs 'text', a list of files or data sets, in {where}.")
    if recipe.lora is not None and recipe.init_from is None:
        raise ValueError(f"'lora' needs 'init_from', the model that adapters are added to, in {where}.")
    if recipe.lora is not None and recipe.training.get("fsdp"):
        raise ValueError(f"'lora' and 'fsdp' do not go together, in {where}: adapters are trained without it.")
    if recipe.model == "multimodal" and not recipe.captions:
        raise ValueError(f"A multimodal model needs 'captions', a folder or data set, in {where}.")
    return recipe


def parse_overrides(pairs: list[str]) -> dict:
    """`["learning_rate=1e-3", "text=[a.txt]"]` -> keys with YAML values.

    Raises:
        ValueError: a pair has no `=`, or its value is no YAML.
    """
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"'{pair}' is not of the form key=value.")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"The value of '{key}' is not valid YAML: {value}") from error
    return overrides


def training_arguments(recipe: Recipe, output_dir: Path) -> TrainingArguments:
    """`TrainingArguments` of a recipe; only what the recipe leaves open differs from the library's defaults.

    Raises:
        ValueError: a value is of the wrong kind.
    """
    for key in ("dataloader_drop_last", "auto_find_batch_size", "label_smoothing_factor"):
        if recipe.training.get(key):
            raise ValueError(f"'{key}' is not for these runs, whose reading and loss are known beforehand: remove it.")
    keys = {"save_strategy": "steps" if "save_steps" in recipe.training else "no"}
    keys |= {"logging_steps": 10, "remove_unused_columns": False}
    keys["report_to"] = "tensorboard" if is_tensorboard_available() else "none"
    keys["use_cpu"] = not torch.accelerator.is_available()  # bf16 on a CPU wants it said
    keys.update(recipe.training)
    if keys.get("bf16") == "auto":
        keys["bf16"] = bf16_is_fast()
    try:
        arguments = TrainingArguments(output_dir=str(output_dir), **keys)
    except (TypeError, ValueError) as error:
        raise ValueError(f"A training key of the recipe has a wrong value: {error}") from error
    if arguments.n_gpu > 1:
        raise ValueError(
            f"{arguments.n_gpu} GPUs are visible, but only one process trains: use scripts/launch_one_node.sh, or set "
            "CUDA_VISIBLE_DEVICES=0."
        )
    if missing := set(arguments.report_to) - set(get_available_reporting_integrations()):
        raise ValueError(f"'report_to' names {', '.join(sorted(missing))}, which is not installed here: install it.")
    return arguments


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bf16 matrices in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _number(value):
    """Text such as `1e-3` as the number it means; everything else unchanged."""
    return float(value) if isinstance(value, str) and NUMBER_WITHOUT_POINT.fullmatch(value) else value


def _words(value, name: str, where: str) -> int:
    """A number of words such as 1000000, 1_000_000 or 1e6."""
    number = _number(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or number < 1 or number % 1 != 0:
        raise ValueError(f"'{name}' must be a whole number of words above 0, not {value!r}, in {where}.")
    return int(number)
