"""Folders that appear whole or not at all, hashes of files, JSON, and errors that name what is missing."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.filesize import decimal

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@contextmanager
def new_folder(path: Path, overwrite: bool = False, marker: str = "config.json") -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error.

    What a killed process left beside `path` is cleaned up first.

    Args:
        path: the folder to be made.
        overwrite: replace an earlier one.
        marker: file by which an earlier one is known; a folder with other things in it is never replaced.

    Raises:
        FileExistsError: `path` exists and may not be replaced.
    """
    path = Path(path).resolve()  # a link to a folder stays, and its target is replaced
    _clean_up_after_the_dead(path)
    check_new_folder(path, overwrite, marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def check_new_folder(path: Path, overwrite: bool = False, marker: str = "config.json") -> None:
    """Raise the FileExistsError of `new_folder`; to be called before long work, not after it."""
    path = Path(path)
    if path.is_mount():
        raise FileExistsError(f"{path} is a mount point, which cannot be replaced: name a folder in it.")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"The output folder {path} exists: choose another one, or pass --overwrite.")
    if not (path / marker).is_file():
        raise FileExistsError(f"{path} has no {marker}, so it is no earlier output and is not overwritten.")


def _clean_up_after_the_dead(path: Path) -> None:
    """Remove temporary folders of processes that run no more; one killed while it replaced `path` gets it put back."""
    for kind in ("old", "incomplete"):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.{kind}"):
            pid = left.name.removesuffix(f".{kind}").rpartition(".")[2]
            if left.name != f".{path.name}.{pid}.{kind}" or not pid.isdecimal():
                continue  # another output's, whose name begins alike
            if int(pid) != os.getpid() and _is_running(int(pid)):  # in containers one is often born again with its id
                continue
            if kind == "old" and not path.exists():
                left.rename(path)
            else:
                shutil.rmtree(left)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def sync_folder(folder: Path) -> None:
    """Wait until every file in a folder is on the disk, so that a rename after it cannot outlive its content."""
    for path in (folder, *folder.rglob("*")):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def check_free_space(path: Path, size: int) -> None:
    """Raise OSError unless a file system has room for `size` bytes in a folder that is to be made."""
    place = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise OSError(f"{path} needs {decimal(size)}, but only {decimal(free)} are free there.")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is that of a full disk."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return True
    return error is not None and is_disk_full(error.__cause__)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError if it holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a JSON file ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object.")
    return content


def checkpoint_name(words: int) -> str:
    """`chck_1M` for a million words, as the challenge names its branches; `chck_1500` for 1,500."""
    return f"chck_{words // 1_000_000}M" if words % 1_000_000 == 0 else f"chck_{words}"


def words_seen(name: str) -> int | None:
    """Words that a checkpoint has seen, as its name says: `chck_10M` and `chck_1500` do, of other names it is None."""
    found = re.fullmatch(r"chck_(\d+)(M?)", name)
    return int(found[1]) * (1_000_000 if found[2] else 1) if found else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted by name.

    Raises:
        FileNotFoundError: there are none, or a shard is missing.
        ValueError: the weights are pickled or stored twice, or the index is not one, or it names a file elsewhere.
    """
    single, index = (folder / SINGLE).is_file(), (folder / INDEX).is_file()
    if single and index:
        raise ValueError(f"{folder} has both {SINGLE} and {INDEX}; remove the one that is out of date.")
    if single:
        return [folder / SINGLE]
    if index:
        files = [folder / shard for shard in sorted(set(weight_map(folder).values()))]
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


def weights_sha256(folder: Path, known: Mapping[Path, str] | None = None) -> str:
    """Hexadecimal SHA-256 of a checkpoint's weights: of its one file, or, of shards, of what `sha256sum` prints.

    The second is `sha256sum model-*.safetensors | sha256sum` in the folder. `known` are hashes of files, if there are.
    """
    files, known = weight_files(folder), known or {}
    with ThreadPoolExecutor(2) as pool:
        hashes = list(pool.map(lambda file: known.get(file) or sha256(file), files))
    if len(files) == 1:
        return hashes[0]
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(hashes, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> name of its file, from the index."""
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        weight_map = {str(name): str(file) for name, file in weight_map.items()}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is not an index of safetensors files.") from error
    for file in weight_map.values():
        if Path(file).name != file or file in ("", ".", ".."):
            raise ValueError(f"{folder / INDEX} names the file {file!r}, but only files of its own folder are read.")
    return weight_map


@contextmanager
def named_source(name: str, what: str, kind: str = "checkpoint") -> Iterator[None]:
    """Around the loading of a checkpoint: if it is not to be had, say which one, and that `what` names it.

    Raises:
        FileNotFoundError: `name` is no folder here, and the Hub does not give it.
        OSError: the disk is full, so that it cannot be downloaded.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"There is no {kind} {name} here or on the Hub; check {what}. ({reason})") from error
