"""Fetches a file once: with a progress bar, resuming what was interrupted, and believing only its checksum."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path

from tqdm import tqdm

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30


def download(url: str, md5: str, folder: Path) -> Path:
    """Fetch ``url`` into ``folder``, unless it is there already.

    What has arrived stays in ``<name>.part`` when the connection breaks; the next call continues there.

    Args:
        md5: of the file, in hex.

    Raises:
        ValueError: if it cannot be fetched, or if its checksum is another. Says how to fetch it by hand.
    """
    final = folder / url.rsplit("/", 1)[-1]
    if final.is_file() and _md5(final) == md5:
        return final
    folder.mkdir(parents=True, exist_ok=True)
    part = final.with_name(final.name + ".part")
    try:
        _fetch(url, part)
    except OSError as error:  # urllib's errors and broken connections are OSErrors
        kept = part.stat().st_size if part.is_file() else 0
        raise ValueError(
            f"{url}: {error}; run again to continue after the {kept:,} bytes that arrived, or download it "
            f"yourself and put it at {final}"
        ) from error
    found = _md5(part)
    if found != md5:
        part.unlink()
        raise ValueError(
            f"{url}: md5 is {found}, however expected {md5}; run again, or if it stays so the publisher has "
            f"changed the file: put the data into dataset.path of params.yaml yourself"
        )
    part.replace(final)
    return final


def _fetch(url: str, part: Path) -> None:
    """Append to ``part`` what it lacks."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            return  # nothing is left to fetch; the checksum judges
    with response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server sends all of it again
        left = response.headers.get("Content-Length")
        total = None if left is None else have + int(left)
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True) as progress,
        ):
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
        if total is not None and part.stat().st_size < total:
            raise ConnectionError(f"the connection broke at {part.stat().st_size:,} of {total:,} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
