"""Data at an address, such as s3a://bucket/clicks, which Spark reads where they lie."""

from __future__ import annotations

from pipeline.workflow.outputs import broken
from pipeline.workflow.places import root

ADDRESS = "address"  # entry of raw.json, if the rows stay where they are
ENDING = ".url"  # of a file that holds an address


def address_of(path: str) -> str | None:
    """The address that ``dataset.path`` is, or that the file holds which it names; None for data on this machine.

    Args:
        path: as in params.yaml. DVC depends on files, so its pipeline names a file that ends in `ENDING`.

    Raises:
        ValueError: if such a file does not hold one address.
    """
    if "://" in path:
        return path
    if not path.endswith(ENDING) or not (root() / path).is_file():
        return None
    address = (root() / path).read_text(encoding="utf-8").strip()
    if "://" not in address or len(address.splitlines()) > 1:
        raise broken(root() / path, "must hold one address, such as s3a://bucket/clicks/*.parquet")
    return address
