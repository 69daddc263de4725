"""Folders that appear whole or not at all, hashes of files, and errors that name what is missing."""

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    path = Path(path)
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
            if not pid.isdecimal() or _is_running(int(pid)):
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
        raise OSError(f"{path} needs {size / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there.")


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
