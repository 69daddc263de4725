"""Reading benchmark files: JSON lines or CSV, plain or compressed, with errors that name file and line."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".jsonl", ".jsonl.gz")


def file_stem(file: Path) -> str:
    """`a/b.jsonl.gz` and `a/b.jsonl` are both `b`."""
    return file.name.removesuffix(".gz").rpartition(".")[0]


def data_files(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files with one of the suffixes directly inside a folder, sorted; or the file itself.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: it is no such file, holds none, or holds one twice (plain and compressed).
    """
    kinds = " or ".join(suffixes)
    if path.is_file():
        if not path.name.endswith(suffixes):
            raise ValueError(f"{path} is not a {kinds} file.")
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; name a {kinds} file, or a folder of them.")
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(suffixes))
    if not files:
        raise ValueError(f"{path} holds no {kinds} file.")
    stems = [file_stem(file) for file in files]
    for file, stem in zip(files, stems, strict=True):
        if stems.count(stem) > 1:
            raise ValueError(
                f"{path} holds {stem}{suffixes[0]} both plain and compressed ({file.name}); remove one of them."
            )
    return files


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines that are not blank.

    Raises:
        ValueError: the file is damaged, no UTF-8 text, or has no such line.
    """
    opener = gzip.open if file.name.endswith(".gz") else open
    empty = True
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    empty = False
                    yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is not a whole gzip file ({error}); compress or download it again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error
    if empty:
        raise ValueError(f"{file} is empty; it should hold one item a line.")


def json_rows(path: Path) -> Iterator[tuple[Path, str, dict]]:
    """File, `file:line` and JSON object of every line of a file, or of all files directly inside a folder.

    Raises:
        FileNotFoundError, ValueError: as `data_files` and `numbered_lines`, or a line is no JSON object.
    """
    for file in data_files(Path(path)):
        for number, line in numbered_lines(file):
            where = f"{file}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not valid JSON ({error.msg} at column {error.colno}).") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a line must be a JSON object.")
            yield file, where, row


def csv_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """`file:line` and fields of every row below the header of a CSV file. Errors as `numbered_lines`, or no row."""
    where = None
    for number, row in enumerate(csv.DictReader(line for _, line in numbered_lines(file)), start=2):
        where = f"{file}:{number}"
        yield where, row
    if where is None:
        raise ValueError(f"{file} has a header and no row below it.")


def text_field(row: dict, name: str, where: str) -> str:
    """A field that must hold text that is not blank; ValueError names it and its line."""
    if name not in row:
        raise ValueError(f"{where}: the field {name} is missing; is this a file of the right task?")
    if not isinstance(row[name], str) or not row[name].strip():
        raise ValueError(f"{where}: the field {name} must be text, not {row[name]!r}.")
    return row[name]


def number_field(row: dict, name: str, where: str) -> float:
    """A field that must hold a number; ValueError names it and its line."""
    if name not in row:
        raise ValueError(f"{where}: the field {name} is missing; is this a file of the right task?")
    try:
        return float(row[name])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: the field {name} must be a number, not {row[name]!r}.") from error
