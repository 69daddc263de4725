"""Read a merge from a mergekit YAML file.

- One file says the whole merge and travels with the result; `mergekit-yaml` reads the same file and means the same.
- Linear merges of any number of models are ours (`MergePlan.native`); any other method of mergekit, and its rarer
  tokenizer settings, are handed to mergekit. A key that neither knows is an error: a merge that silently means
  something else is worse than none.
- A weight is a number, a list of numbers (a gradient: interpolated over the layers from the first to the last), or a
  list of `{filter, value}`: the first filter that is a substring of the tensor's name counts, and an entry without a
  filter matches every name. A weight under the plan's own `parameters` counts where the model's own has none.
- Paths are relative to the current folder, as in mergekit. A name that is no folder is taken for a Hub repository
  (`user/name` or `user/name@revision`), and `model+adapter` for a model with a PEFT adapter.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROJECTOR = "multi_modal_projector"
"""Substring of the names of the tensors that only the multimodal model has; a merge copies them bit for bit."""

DTYPES = ("float16", "bfloat16", "float32", "float64")
PLAN_KEYS = (
    *("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype"),
    *("tokenizer", "tokenizer_source", "chat_template"),
)
ADAPTER_FILE = "adapter_model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class WeightRule:
    """A weight for every tensor whose name contains `filter` (for every tensor where `filter` is None).

    Attributes:
        values: one number, or a gradient: numbers at equal distances from the first layer to the last.
        filter: part of a tensor's name.
    """

    values: tuple[float, ...]
    filter: str | None = None

    def matches(self, tensor_name: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in tensor_name

    def value(self, depth: float) -> float:
        """The weight at a depth from 0 (first layer) to 1 (last layer), linear between two numbers."""
        place = depth * (len(self.values) - 1)
        before = int(place)
        after = min(before + 1, len(self.values) - 1)
        share = place - before
        return (1 - share) * self.values[before] + share * self.values[after]


@dataclass(frozen=True)
class Source:
    """One model of a merge.

    Attributes:
        name: as the YAML writes it.
        folder: where its checkpoint lies.
        rules: its weights, and after them the plan's.
        adapter: folder of a PEFT adapter that is to be folded in first.
        unfolded: where an adapter has been folded in, the checkpoint as it was before.
    """

    name: str
    folder: Path
    rules: tuple[WeightRule, ...]
    adapter: Path | None = None
    unfolded: Path | None = None

    @property
    def commit(self) -> str | None:
        """Of a model from the Hub, the commit; its folder in the cache has that name."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    def weight(self, tensor_name: str, depth: float = 0.0) -> float:
        """The weight of a tensor by the first rule that matches. Raises ValueError where none does.

        Args:
            tensor_name: as in the checkpoint.
            depth: 0 in the first layer, 1 in the last one, and 0 outside the layers; it matters to gradients only.
        """
        for rule in self.rules:
            if rule.matches(tensor_name):
                return rule.value(depth)
        raise ValueError(
            f"No weight of {self.name} matches the tensor {tensor_name}; end its list with an entry without a filter."
        )


@dataclass(frozen=True)
class MergePlan:
    """A merge of checkpoints.

    Attributes:
        text: the YAML itself, kept to be stored beside the merged weights.
        method: mergekit's name of the merge method.
        sources: the models in the order of the YAML, which is the order of the sum; a base that is not listed is last.
        base: the source whose configuration, tokenizer, processor and code the result takes.
        native: whether we carry it out ourselves; if not, mergekit does.
        normalize: divide the weights of a tensor by their sum.
        dtype: convert the tensors to this before merging (None: keep theirs).
        out_dtype: convert the result to this after merging (None: keep it).
        align_tokens: match embeddings by token, in the vocabulary of the base (`tokenizer: {source: base}`).
    """

    text: str
    method: str
    sources: tuple[Source, ...]
    base: Source
    native: bool = True
    normalize: bool = True
    dtype: str | None = None
    out_dtype: str | None = None
    align_tokens: bool = False


def read_plan(path: str | Path) -> MergePlan:
    """Read and check a merge plan; nothing of the weights is read yet.

    Raises:
        FileNotFoundError: the YAML, or a checkpoint that it names, is not there.
        ValueError: it is no merge that we or mergekit carry out.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no merge plan {path}; paths are relative to {Path.cwd()}.")
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}.") from error
    try:
        return _parse(text, content)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def linear_plan_yaml(multimodal: str, language: str, alpha: float) -> str:
    """The merge plan of two checkpoints at one alpha, as YAML text for us and for mergekit.

    The decoder is `alpha * multimodal + (1 - alpha) * language`; the projector is copied. Weights are written with
    `repr`, so that reading them back gives the same floats.

    Raises:
        ValueError: alpha is not between 0 and 1.
    """
    check_alpha(alpha)
    alpha, multimodal, language = float(alpha), _quoted(multimodal), _quoted(language)
    return f"""\
# theta = alpha * multimodal + (1 - alpha) * language, with alpha = {alpha!r} (1 = multimodal, 0 = language-only)
merge_method: linear
base_model: {multimodal}
models:
  - model: {multimodal}
    parameters:
      weight:
        - {{filter: {PROJECTOR}, value: 1.0}}
        - {{value: {alpha!r}}}
  - model: {language}
    parameters:
      weight:
        - {{filter: {PROJECTOR}, value: 0.0}}
        - {{value: {1 - alpha!r}}}
parameters: {{normalize: true}}
"""


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless 0 <= alpha <= 1."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}, but it must lie between 0 (language-only) and 1 (multimodal).")


def _quoted(name: str) -> str:
    """A model name for YAML. A folder `a/b` becomes `./a/b`, or mergekit would take it for a Hub repository."""
    name = str(name)
    if Path(name).is_dir() and not name.startswith((".", "/", "~")):
        name = f"./{name}"
    return json.dumps(name, ensure_ascii=False)


def _parse(text: str, content: Any) -> MergePlan:
    for key in ("slices", "modules"):
        if isinstance(content, dict) and key in content:
            raise ValueError(f"{key} are not merged here; list whole models under models, or run mergekit-yaml.")
    _check_keys(content, "the plan", PLAN_KEYS)
    method = content.get("merge_method")
    if not isinstance(method, str):
        raise ValueError(f"merge_method is {method!r}, but it must name a method, such as linear.")
    tokenizer = _parse_tokenizer(content)
    native = method == "linear" and tokenizer in (None, {"source": "base"}) and not content.get("chat_template")
    sources = _parse_sources(content, native)
    base = [source for source in sources if source.name == content.get("base_model")]
    if not base:
        raise ValueError(
            f"base_model is {content.get('base_model')!r}, but it must name a model: the one whose configuration, "
            f"tokenizer and code the result takes, and which has every tensor (here {sources[0].name}?)."
        )
    return MergePlan(
        text=text,
        method=method,
        sources=sources,
        base=base[0],
        native=native,
        normalize=_parse_normalize(content.get("parameters") or {}) if native else True,
        dtype=_parse_dtype(content, "dtype"),
        out_dtype=_parse_dtype(content, "out_dtype"),
        align_tokens=tokenizer is not None,
    )


def _parse_tokenizer(content: dict) -> dict | None:
    """The tokenizer setting in its long form; None where there is none."""
    if content.get("tokenizer_source") is not None:
        if content.get("tokenizer") is not None:
            raise ValueError("tokenizer and tokenizer_source say the same; keep one of them.")
        return {"source": content["tokenizer_source"]}
    tokenizer = content.get("tokenizer")
    if tokenizer is not None:
        _check_keys(tokenizer, "tokenizer", ("source", "tokens", "pad_to_multiple_of"))
    return tokenizer


def _parse_sources(content: dict, native: bool) -> tuple[Source, ...]:
    """The models, in the order of the YAML; a base that is not among them comes last, as in mergekit."""
    entries = content.get("models")
    if not isinstance(entries, list) or not entries:
        raise ValueError("models must be a list of models to merge.")
    shared = content.get("parameters") or {}
    if native:
        _check_keys(shared, "parameters", ("normalize", "weight"))
    rules = _parse_rules(shared["weight"], "parameters.weight") if native and "weight" in shared else ()
    sources = [_parse_source(entry, f"models[{place}]", rules, native) for place, entry in enumerate(entries)]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"models lists {twice} twice; a merge needs different models.")
    base = content.get("base_model")
    if isinstance(base, str) and base not in names:
        if native and not rules:
            raise ValueError(
                f"base_model is {base!r}, which models does not list (is it written the same way there?) and which so "
                "has no weight; add it to models, with the weight 0 if it is to add nothing."
            )
        sources.append(_make_source(base, "base_model", rules))
    return tuple(sources)


def _parse_normalize(parameters: dict) -> bool:
    normalize = parameters.get("normalize", True)
    if not isinstance(normalize, bool):
        raise ValueError(f"parameters.normalize is {normalize!r}, but it must be true or false.")
    return normalize


def _check_keys(content: Any, where: str, known: tuple[str, ...]) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be a mapping with the keys {', '.join(known)}.")
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known here: {', '.join(known)}.")


def _parse_source(entry: Any, where: str, shared: tuple[WeightRule, ...], native: bool) -> Source:
    _check_keys(entry, where, ("model", "parameters"))
    name = entry.get("model")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}.model must be a checkpoint folder or a Hub repository, not {name!r}.")
    parameters = entry.get("parameters") or {}
    rules = ()
    if native:
        _check_keys(parameters, f"{where}.parameters", ("weight",))
        if "weight" in parameters:
            rules = _parse_rules(parameters["weight"], f"{where}.parameters.weight")
        elif not shared:
            raise ValueError(f"{where} ({name}) has no parameters.weight.")
    return _make_source(name, f"{where}.model", rules + shared)


def _make_source(name: str, where: str, rules: tuple[WeightRule, ...]) -> Source:
    model, plus, adapter = (name, "", "") if Path(name).exists() else name.partition("+")
    folder = _checkpoint_folder(model, where)
    return Source(name, folder, rules, _adapter_folder(adapter, where) if plus else None)


def _parse_rules(setting: Any, where: str) -> tuple[WeightRule, ...]:
    """A weight as mergekit writes it: a number, a gradient, `{filter, value}`, or a list of these last."""
    if isinstance(setting, dict):
        setting = [setting]
    if isinstance(setting, list) and any(isinstance(entry, dict) for entry in setting):
        return tuple(_parse_rule(entry, where) for entry in setting)
    return (WeightRule(_parse_values(setting, where)),)


def _parse_rule(entry: Any, where: str) -> WeightRule:
    _check_keys(entry, where, ("filter", "value"))
    name_part = entry.get("filter")
    if name_part is not None and not isinstance(name_part, str):
        raise ValueError(f"{where}: the filter {name_part!r} must be a part of a tensor's name.")
    return WeightRule(_parse_values(entry.get("value"), where), name_part)


def _parse_values(setting: Any, where: str) -> tuple[float, ...]:
    """A number, or the numbers of a gradient."""
    values = setting if isinstance(setting, list) else [setting]
    if not values:
        raise ValueError(f"{where} is an empty list.")
    return tuple(_parse_number(value, where) for value in values)


def _parse_number(value: Any, where: str) -> float:
    """A finite number; YAML reads `1e-05` as a string, mergekit as a number, and so do we."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ValueError(f"{where}: {value!r} is not a finite number.")
    return number


def _parse_dtype(content: dict, key: str) -> str | None:
    name = content.get(key)
    if name is not None and name not in DTYPES:
        raise ValueError(f"{key} is {name!r}, but it must be one of {', '.join(DTYPES)}.")
    return name


def _checkpoint_folder(name: str, where: str) -> Path:
    """The local folder of a checkpoint, downloaded first where `name` is a Hub repository (`user/name[@revision]`)."""
    folder = Path(name).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(name):
        folder = _download(name, where)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{where} names the checkpoint folder {name}, which is not there; paths are relative to the current "
            f"folder ({Path.cwd()})."
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{where} names {name}, which has no config.json, so it is not a checkpoint.")
    return folder


def _adapter_folder(name: str, where: str) -> Path:
    """The local folder of a PEFT adapter, downloaded first where `name` is a Hub repository."""
    folder = Path(name).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(name):
        folder = _download(name, where)
    for file in ("adapter_config.json", ADAPTER_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{where} names the adapter {name}, which has no {file}.")
    return folder


def _download(name: str, where: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repo_id, _, revision = name.partition("@")
    ignored = ["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "checkpoint-*/*"]
    try:
        return Path(snapshot_download(repo_id, revision=revision or None, ignore_patterns=ignored))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"{where} names {name}, which is neither a checkpoint folder (paths are relative to the current folder, "
            f"{Path.cwd()}) nor a repository that the Hub gives out ({type(error).__name__})."
        ) from error
