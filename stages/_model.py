"""What the stages that train or serve a model share: threads, candidates, and the parts by name."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.data.schema import Schema
from pipeline.workflow.plug import check_options, keywords, plug
from stages import _stage

if TYPE_CHECKING:
    from pipeline.allocation.allocation import Allocation
    from pipeline.models.model import CTRModel, MakeBackbone


FINDS = ("search", "propose", "observe")  # what a method may offer, at most one of them


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


def candidates(
    choice: str | Mapping[str, str], sets: Mapping[str, Sequence[int]], schema: Schema, dim: int
) -> list[list[int]]:
    """Candidate dims of each field, from a set's name or from {"default": name, field: name}."""
    named = {"default": choice} if isinstance(choice, str) else dict(choice)
    schema.check_names(set(named) - {"default"})
    chosen = []
    for name in schema.names:
        key = named.get(name, named.get("default"))
        if key is None:
            raise ValueError(f"params.yaml: search.candidates has no set for field {name!r} and no default; add one")
        if key not in sets:
            raise ValueError(f"no candidate set {key!r} for field {name!r} in params.yaml; there are {sorted(sets)}")
        if not sets[key] or len(set(sets[key])) < len(sets[key]):
            raise ValueError(f"params.yaml: candidates: {key} must be distinct, and at least one, however {sets[key]}")
        if max(sets[key]) > dim:
            raise ValueError(
                f"params.yaml: candidates: {key} goes up to {max(sets[key])}, which is more than dim, {dim}; "
                "raise dim, or choose another set in search.candidates"
            )
        chosen.append(sorted(sets[key]))
    return chosen


@dataclass(frozen=True)
class Method:
    """A method by its name in params.yaml, its options sorted by who takes them.

    Args:
        module: of `pipeline.methods`.
        finds: its ``search``, ``propose`` or ``observe``, or None if it derives from the schema alone.
        find_options: for ``finds``, and
        derive_options: for ``derive``.
    """

    module: ModuleType
    finds: Callable[..., Any] | None
    find_options: Mapping[str, Any]
    derive_options: Mapping[str, Any]

    @property
    def targets(self) -> bool:
        """Whether what it finds depends on the bytes that it is to find it for, which then are its option."""
        return self.finds is not None and "target" in keywords(self.finds)


def method(params: Mapping[str, Any]) -> Method:
    """The method that ``method`` in params.yaml names; its options are checked."""
    name = params["method"]["name"]
    module = plug("methods", name)
    given: Mapping[str, Any] = params["method"].get("options", {}).get(name) or {}
    finds = next((found for name in FINDS if (found := getattr(module, name, None)) is not None), None)
    takers = [module.derive] if finds is None else [finds, module.derive]
    check_options(takers, given, f"method.options.{name} in params.yaml")
    of_find, of_derive = (
        {name: value for name, value in given.items() if taker and name in keywords(taker)}
        for taker in (finds, module.derive)
    )
    return Method(module, finds, of_find, of_derive)


def backbone(params: Mapping[str, Any]) -> MakeBackbone:
    """The class that ``backbone`` in params.yaml names; its options are checked."""
    found: MakeBackbone = plug("backbones", params["backbone"]["name"]).Backbone
    check_options(found, params["backbone"]["options"], "params.yaml: backbone.options")
    return found


def load(folder: Path, schema: Schema, params: Mapping[str, Any]) -> tuple[CTRModel, Allocation]:
    """A retrained model, with the allocation it was built from."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from pipeline.allocation.allocation import Allocation
    from pipeline.models.model import assemble

    allocation = Allocation.load(folder / "allocation.json", schema)
    build = plug("methods", allocation.method).build
    model = assemble(schema, params["dim"], allocation, build, backbone(params), params["backbone"]["options"])
    weights = folder / "model.safetensors"
    weights.stat()  # safetensors' own error does not say which file is missing
    try:
        model.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        why = "does not hold the model that params.yaml, schema.json and allocation.json describe"
        raise _stage.broken(weights, why) from error
    return model, allocation
