"""What the stages that train or serve a model share: threads, candidates, prices, and the parts by name."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.plug import plug
from pipeline.schema import Schema

if TYPE_CHECKING:
    from pipeline.allocation import Allocation
    from pipeline.model import CTRModel


def tune(workers: int = 1) -> None:
    """Before torch is imported: as many threads as cores for each worker, and memory that is kept for reuse.

    glibc gives large blocks back to the system at once; a step's buffers then cost a page fault for every 4 KiB.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-3, 1 << 25), (-1, 1 << 28), (-2, 1 << 26)):  # mmap and trim thresholds, padding
            libc.mallopt(option, value)


def candidates(choice: str | Mapping[str, str], sets: Mapping[str, Sequence[int]], schema: Schema) -> list[list[int]]:
    """Candidate dims of each field, from a set's name or from {"default": name, field: name}."""
    named = {"default": choice} if isinstance(choice, str) else dict(choice)
    schema.check_names(set(named) - {"default"})
    chosen = []
    for name in schema.names:
        key = named.get(name, named.get("default", ""))
        if key not in sets:
            raise ValueError(f"no candidate set {key!r} for field {name!r} in params.yaml; there are {sorted(sets)}")
        chosen.append(sorted(sets[key]))
    return chosen


def load(folder: Path, schema: Schema, params: Mapping[str, Any]) -> tuple[CTRModel, Allocation]:
    """A retrained model, with the allocation it was built from."""
    from safetensors.torch import load_file

    from pipeline.allocation import Allocation
    from pipeline.model import assemble

    allocation = Allocation.load(folder / "allocation.json")
    backbone = plug("backbones", params["backbone"]["name"]).Backbone
    build = plug("methods", allocation.method).build
    model = assemble(schema, params["dim"], allocation, build, backbone, params["backbone"]["options"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model, allocation
