"""The weights of a checkpoint folder: one safetensors file, or several with an index."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Weights:
    """Tensors of a checkpoint by name. Headers are read at once, a tensor when it is asked for.

    Attributes:
        names: of all tensors.

    Raises:
        FileNotFoundError: there is no weights file, or a shard is missing.
        ValueError: the weights are pickled, or a file is damaged.
    """

    def __init__(self, folder: Path):
        self._open = {}
        for path in _weight_files(folder):
            try:
                shard = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is no complete safetensors file ({error}); save it again.") from error
            self._open.update(dict.fromkeys(shard.keys(), shard))
        self.names = set(self._open)
        _check_index(folder, self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._open[name].get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        return self._open[name].get_tensor(name)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        files = [folder / shard for shard in sorted(set(_weight_map(folder).values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"{folder / INDEX} names the weights file {missing[0]}, which is not there.")
        return files
    if any(folder.glob("pytorch_model*.bin")):
        raise ValueError(
            f"{folder} has pickled weights (pytorch_model.bin) only, which can run code when read; load the model and "
            "save it with save_pretrained to get model.safetensors."
        )
    raise FileNotFoundError(f"{folder} has no weights: neither {SINGLE} nor {INDEX} is there.")


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> name of its file, from the index."""
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {str(name): Path(file).name for name, file in weight_map.items()}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is not an index of safetensors files.") from error


def _check_index(folder: Path, names: set[str]) -> None:
    """A tensor that the index names must be in one of the files."""
    if (folder / SINGLE).is_file():
        return
    missing = sorted(set(_weight_map(folder)) - names)
    if missing:
        raise ValueError(f"{folder / INDEX} names the tensor {missing[0]}, which none of its files holds.")
