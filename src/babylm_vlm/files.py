"""Folders that appear whole or not at all, hashes of files, and errors that name what is missing."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: Path, overwrite: bool = False, marker: str = "config.json") -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error.

    Args:
        path: the folder to be made.
        overwrite: replace an earlier one.
        marker: file by which an earlier one is known; a folder with other things in it is never replaced.

    Raises:
        FileExistsError: `path` exists and may not be replaced.
    """
    path = Path(path)
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
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"The output folder {path} exists: choose another one, or pass --overwrite.")
    if not (path / marker).is_file():
        raise FileExistsError(f"{path} has no {marker}, so it is no earlier output and is not overwritten.")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def named_source(name: str, what: str) -> Iterator[None]:
    """Around the loading of a checkpoint: if it is not to be had, say which one, and that `what` names it.

    Raises:
        FileNotFoundError: `name` is no folder here, and the Hub does not give it.
    """
    try:
        yield
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"There is no checkpoint {name} here or on the Hub; check {what}. ({reason})"
        ) from error
