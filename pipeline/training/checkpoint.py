"""Files of trainings: whether they are as they were written."""

from __future__ import annotations

import logging
import shutil
import zipfile
import zlib
from pathlib import Path

from pipeline.workflow.outputs import regular

log = logging.getLogger("pipeline.training")


def is_sound(file: Path) -> bool:
    """Whether there is a file of torch as it was written; one that is damaged is removed with a warning."""
    if not file.exists():
        return False
    try:
        with zipfile.ZipFile(regular(file)) as members:  # with a checksum of each
            damaged = members.testzip() if members.namelist() else "it has no members"
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        damaged = str(error)
    if damaged is None:
        return True
    log.warning("%s: is damaged (%s); it is removed, and the training begins anew", file, damaged)
    shutil.rmtree(file, ignore_errors=True) if file.is_dir() else file.unlink(missing_ok=True)  # by several processes
    return False
