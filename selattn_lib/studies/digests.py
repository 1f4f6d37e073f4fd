"""Digests of the files that decide a study's numbers, and the format of its results: what is read without PyTorch."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

FORMAT = 3  # of stored results; changes when old ones must not be read
TEXT = (".csv", ".json", ".txt", ".yaml")  # of the same content whatever its line ends, as checkouts change them
READ = (".json", ".txt", ".safetensors", ".model")  # what models are loaded from


def files_digest(paths: Iterable[Path], root: Path) -> str:
    """A hash of the names below `root`, and of the contents, of some files, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        digest.update(f"{name} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """12 hexadecimal digits for the models in a folder and below."""
    return files_digest((path for path in folder.rglob("*") if path.suffix in READ), folder)[:12]


def file_digest(path: Path) -> str:
    """A file's SHA-256, read once as long as its size and times stay as they are."""
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@cache
def _file_digest(path: Path, size: int, modified: int, changed: int) -> str:
    if path.suffix in TEXT:
        return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
