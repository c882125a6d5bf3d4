"""Downloads a file once, and checks its checksum."""

from __future__ import annotations

from pathlib import Path

import pooch


def download(url: str, md5: str, folder: Path) -> Path:
    """The file of ``url`` in ``folder``; it is downloaded, with a progress bar, unless it is already there.

    Args:
        url: of the file.
        md5: checksum of the file, in hex.
        folder: where to put it.

    Raises:
        ValueError: if the download fails or has another checksum; the message says how to download by hand.
    """
    name = url.rsplit("/", 1)[-1]
    try:
        return Path(pooch.retrieve(url, f"md5:{md5}", name, folder, progressbar=True))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, and a wrong checksum is a ValueError
        raise ValueError(
            f"{url} cannot be downloaded ({error}); run again, or download it by hand and put it into the folder that "
            "dataset.path in params.yaml names"
        ) from error
