"""Read a linear merge from a mergekit YAML file.

- One file says the whole merge and travels with the result; `mergekit-yaml` reads the same file.
- Only what we carry out ourselves is accepted: `merge_method: linear`, two models, scalar or filtered weights.
  Any other key is an error, never ignored: a merge that silently means something else is worse than none.
- A filter means what it means in mergekit: it matches as a substring of the tensor's name, the first match wins, and
  an entry without a filter matches every name.
- Paths are relative to the current folder, as in mergekit. A name that is no folder is taken for a Hub repository.
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
PLAN_KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class WeightRule:
    """A weight for every tensor whose name contains `filter` (for every tensor where `filter` is None)."""

    value: float
    filter: str | None = None

    def matches(self, tensor_name: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in tensor_name


@dataclass(frozen=True)
class Source:
    """One model of a merge: `name` as the YAML writes it, `folder` where its checkpoint lies."""

    name: str
    folder: Path
    rules: tuple[WeightRule, ...]

    def weight(self, tensor_name: str) -> float:
        """The weight of a tensor by the first rule that matches. Raises ValueError where none does."""
        for rule in self.rules:
            if rule.matches(tensor_name):
                return rule.value
        raise ValueError(
            f"No weight of {self.name} matches the tensor {tensor_name}; end its list with an entry without a filter."
        )


@dataclass(frozen=True)
class MergePlan:
    """A linear merge of two checkpoints.

    Attributes:
        text: the YAML itself, kept to be stored beside the merged weights.
        sources: the two models in the order of the YAML, which is the order of the sum.
        base: the source whose configuration, tokenizer, processor and code the result takes.
        normalize: divide the weights of a tensor by their sum.
        dtype: convert the tensors to this before merging (None: keep theirs).
        out_dtype: convert the result to this after merging (None: keep it).
    """

    text: str
    sources: tuple[Source, Source]
    base: Source
    normalize: bool = True
    dtype: str | None = None
    out_dtype: str | None = None


def read_plan(path: str | Path) -> MergePlan:
    """Read and check a merge plan; nothing of the weights is read yet.

    Raises:
        FileNotFoundError: the YAML, or a checkpoint that it names, is not there.
        ValueError: it is not a linear merge of two checkpoints in safetensors format.
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
    _check_keys(content, "the plan", PLAN_KEYS)
    if content.get("merge_method") != "linear":
        raise ValueError(
            f"merge_method is {content.get('merge_method')!r}, but only 'linear' is carried out here; "
            "for other methods run mergekit-yaml on the same file."
        )
    entries = content.get("models")
    if not isinstance(entries, list) or len(entries) != 2:
        raise ValueError("models must list exactly two models.")
    sources = (_parse_source(entries[0], "models[0]"), _parse_source(entries[1], "models[1]"))
    if sources[0].name == sources[1].name:
        raise ValueError(f"models lists {sources[0].name} twice; a merge needs two different models.")
    base = [source for source in sources if source.name == content.get("base_model")]
    if not base:
        raise ValueError(
            f"base_model is {content.get('base_model')!r}, but it must be one of the two models, written the same way "
            f"({sources[0].name} or {sources[1].name}); take the multimodal one."
        )
    parameters = content.get("parameters") or {}
    _check_keys(parameters, "parameters", ("normalize",))
    normalize = parameters.get("normalize", True)
    if not isinstance(normalize, bool):
        raise ValueError(f"parameters.normalize is {normalize!r}, but it must be true or false.")
    return MergePlan(
        text=text,
        sources=sources,
        base=base[0],
        normalize=normalize,
        dtype=_parse_dtype(content, "dtype"),
        out_dtype=_parse_dtype(content, "out_dtype"),
    )


def _check_keys(content: Any, where: str, known: tuple[str, ...]) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be a mapping with the keys {', '.join(known)}.")
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known here: {', '.join(known)}.")


def _parse_source(entry: Any, where: str) -> Source:
    _check_keys(entry, where, ("model", "parameters"))
    name = entry.get("model")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}.model must be a checkpoint folder or a Hub repository, not {name!r}.")
    parameters = entry.get("parameters") or {}
    _check_keys(parameters, f"{where}.parameters", ("weight",))
    if "weight" not in parameters:
        raise ValueError(f"{where} ({name}) has no parameters.weight.")
    rules = _parse_rules(parameters["weight"], f"{where}.parameters.weight")
    return Source(name=name, folder=_checkpoint_folder(name, f"{where}.model"), rules=rules)


def _parse_rules(setting: Any, where: str) -> tuple[WeightRule, ...]:
    """A weight as mergekit writes it: a number, `{filter, value}`, or a list of these."""
    entries = setting if isinstance(setting, list) else [setting]
    if not entries:
        raise ValueError(f"{where} is an empty list.")
    if isinstance(setting, list) and not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{where} must be a number or a list of {{filter, value}} entries; for layer gradients run mergekit-yaml."
        )
    return tuple(_parse_rule(entry, where) for entry in entries)


def _parse_rule(entry: Any, where: str) -> WeightRule:
    if not isinstance(entry, dict):
        return WeightRule(value=_parse_number(entry, where))
    _check_keys(entry, where, ("filter", "value"))
    name_part = entry.get("filter")
    if name_part is not None and not isinstance(name_part, str):
        raise ValueError(f"{where}: the filter {name_part!r} must be a part of a tensor's name.")
    return WeightRule(value=_parse_number(entry.get("value"), where), filter=name_part)


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
