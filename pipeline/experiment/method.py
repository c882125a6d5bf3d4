"""A method: one file in ``pipeline/methods``, and defaults for the functions that the file does not define.

The file defines ``derive(evidence, *, options) -> Allocation``, and may define:

* ``find(problem, *, options)``: the search. It returns a supernet (an embedding), which is trained on ``train`` and
  ``arch``; or proposals (a list of allocations), which are trained one by one and judged on ``val``; or a dict of
  arrays, which is passed on to ``derive``. A method without ``find`` derives from the problem alone.
* ``build(schema, dim, allocation) -> FieldEmbedding``: the embedding of an allocation. ``schema`` has the kept fields
  only; ``dim`` is D. Default: `MixedTables`.
* ``plain(schema, dims, dim) -> FieldEmbedding``: the embedding on which candidates are priced. Default: `MixedTables`.
* ``candidates(schema, dim) -> list[list[int]]``: candidate dims of each field. Default: those of params.yaml.
* ``check(dim, options)``: raises a ValueError for options that do not fit D or each other; the text begins with the
  option's name. The types of single options are checked without it.
* ``ARCHITECTURE``: settings of the architecture's training that override ``search.architecture``.

An option ``target`` of ``find`` is the size at which the search aims: bytes, or a share of the full tables' bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, get_type_hints

import numpy as np

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Schema
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import Plain
from pipeline.embeddings.mixed import MixedTables
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options, keywords

Finding = FieldEmbedding | list[Allocation] | dict[str, np.ndarray]


@dataclass(frozen=True)
class Method:
    """A method and its options.

    Args:
        name: of the file.
        module: the file.
        options: of its ``find`` and ``derive``; checked.
    """

    name: str
    module: ModuleType
    options: Mapping[str, Any]

    @classmethod
    def named(cls, name: str, options: Mapping[str, Any] | None = None, place: str = "params.yaml") -> Method:
        """The method of this name.

        Args:
            name: of the file.
            options: of its functions.
            place: where the user wrote them, for messages.

        Raises:
            ValueError: naming the valid methods if there is none, or an unknown or wrong option.
        """
        module = plug("methods", name)
        takers = [getattr(module, taker) for taker in ("find", "derive") if hasattr(module, taker)]
        return cls(name, module, checked_options(takers, options or {}, f"{place}: method.options.{name}"))

    def check(self, dim: int, place: str = "params.yaml") -> None:
        """Check that the options fit D, and each other.

        Args:
            dim: D.
            place: where the user wrote them, for messages.

        Raises:
            ValueError: naming the option that does not.
        """
        if hasattr(self.module, "check"):
            try:
                self.module.check(dim, self.options)
            except ValueError as error:
                raise ValueError(f"{place}: method.options.{self.name}: {error}") from error

    @property
    def finds(self) -> bool:
        """Whether the method has a search."""
        return hasattr(self.module, "find")

    @property
    def trains(self) -> bool:
        """Whether the search trains a supernet: the return type of ``find`` is an embedding."""
        kind = get_type_hints(self.module.find).get("return") if self.finds else None
        return isinstance(kind, type) and issubclass(kind, FieldEmbedding)

    @property
    def targets(self) -> bool:
        """Whether the search aims at a size: ``find`` has the option ``target``."""
        return self.finds and "target" in keywords(self.module.find)

    @property
    def architecture(self) -> Mapping[str, Any]:
        """Settings of the architecture's training that override params.yaml."""
        settings: Mapping[str, Any] = getattr(self.module, "ARCHITECTURE", {})
        return settings

    @property
    def plain(self) -> Plain:
        """The function that builds the embedding on which candidates are priced."""
        plain: Plain = getattr(self.module, "plain", MixedTables)
        return plain

    @cached_property
    def own_candidates(self) -> Any:
        """The method's ``candidates`` function; None if it uses those of params.yaml."""
        return getattr(self.module, "candidates", None)

    def find(self, problem: Problem) -> Finding:
        """A supernet, proposals or arrays; see the module's docstring."""
        finding: Finding = self.module.find(problem, **self._options_of(self.module.find))
        return finding

    def derive(self, evidence: Evidence) -> Allocation:
        """The method's allocation; its size is not checked here."""
        with self._needed("of its search", "search again"):
            allocation: Allocation = self.module.derive(evidence, **self._options_of(self.module.derive))
        return allocation

    def build(self, schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
        """The embedding of an allocation.

        Args:
            schema: the fields that the allocation keeps.
            dim: D.
            allocation: of this method.
        """
        build = getattr(self.module, "build", None)
        if build is None:
            return MixedTables(schema, allocation.dims, dim)
        with self._needed("of its allocation", "derive it again"):
            embedding: FieldEmbedding = build(schema, dim, allocation)
        return embedding

    @contextlib.contextmanager
    def _needed(self, whose: str, remedy: str) -> Iterator[None]:
        """Turns a `KeyError` of the block, for an array or a setting that is not there, into a `ValueError`."""
        try:
            yield
        except KeyError as error:
            raise ValueError(f"{self.name} needs {error} {whose}, and it is not there; {remedy}") from error

    def _options_of(self, function: Any) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name in keywords(function)}


def build(schema: Schema, dim: int, allocation: Allocation) -> FieldEmbedding:
    """The embedding of an allocation, built by the method that it names; see `Method.build`."""
    return Method.named(allocation.method).build(schema, dim, allocation)


def offered(method: Method, schema: Schema, dim: int, chosen: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Candidate dims of each field: the method's own if it defines them, else the ``chosen`` ones."""
    own = method.own_candidates
    return tuple(tuple(dims) for dims in (chosen if own is None else own(schema, dim)))
