"""Outputs that appear whole or not at all, and JSON files that pass between stages."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UMASK = os.umask(0)  # asking for it means setting it
os.umask(UMASK)
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # in an error of a library in Rust, as safetensors


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield the path of a draft, which is moved to ``path`` only if the block ends without an error.

    The draft is in the same folder, and its name ends in the id of this process. Drafts of dead processes are removed.
    Files that a library has made private (safetensors does) get the permissions of any other new file.

    Args:
        path: of the finished file or folder; its parent folders are created.

    Raises:
        OSError: also where a library tells an error of the system, e.g. a full disk, as an error of its own.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(final)
    try:
        yield draft
        _publish(draft)
        if final.is_dir() and draft.exists():
            shutil.rmtree(final)
        draft.replace(final)
    except OSError:
        raise
    except Exception as error:
        if number := OS_ERROR.search(str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(final)) from error
        raise
    finally:
        _remove(draft)


def discard(path: Path) -> None:
    """Remove a folder whole or not at all: what is left of it after a kill is not taken for finished work.

    Args:
        path: of the folder; if there is none, nothing happens.
    """
    draft = _draft(path)
    _remove(draft)  # of a dead process that had the id of this one
    with contextlib.suppress(FileNotFoundError):
        _remove(path.replace(draft))


def _draft(final: Path) -> Path:
    """The path of this process's draft; drafts of dead processes are removed."""
    for leftover in final.parent.glob(f".{final.name}.*"):
        pid = re.fullmatch(re.escape(f".{final.name}.") + r"(\d+)", leftover.name)
        if pid and not _is_alive(int(pid[1])):
            _remove(leftover)
    return final.with_name(f".{final.name}.{os.getpid()}")


def _publish(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and file.stat().st_mode & 0o777 == 0o600:
            file.chmod(0o666 & ~UMASK)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user
        return True
    return True


def regular(path: str | Path) -> Path:
    """The path of an output, which is not read if it is something else than a file.

    Raises:
        ValueError: naming the path, if it is a folder, a pipe or a device.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise broken(path, "must be a file, not a folder, a pipe or a device")
    return path


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, in hex digits.

    Raises:
        ValueError: naming the path, if it is no file.
        FileNotFoundError: if there is nothing.
    """
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write a JSON value, whole or not at all.

    Raises:
        ValueError: if a number is not finite.
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file that an earlier stage wrote.

    Raises:
        ValueError: naming the file and the remedy, if it is not JSON, or holds a number that is not finite.
        FileNotFoundError: if the file does not exist.
    """
    text = regular(path).read_bytes()
    try:
        return json.loads(text.decode("utf-8"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise broken(path, f"is not JSON ({error})") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def broken(path: str | Path, why: object) -> ValueError:
    """The error for a file that was changed after its stage wrote it, or that was written under other settings.

    Args:
        path: of the file.
        why: what is wrong with it, to be read after the path, e.g. "is not JSON".
    """
    return ValueError(f"{path}: {why}; delete it and run `dvc repro`, which makes it again")
