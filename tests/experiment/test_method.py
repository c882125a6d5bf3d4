"""A method is its file: what it defines, and what it leaves to defaults."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.mixed import MixedTables
from pipeline.experiment.experiment import check_params
from pipeline.experiment.method import Method, build, offered
from pipeline.workflow.params import Params
from pipeline.workflow.validation import Budget, Count
from tests.contracts import evidence
from tests.project import Project

SCHEMA = Schema((Field("user", 7), Field("item", 5)))
CODES = ("dpq", "pq", "mec", "mgqe")  # of groups of coordinates


def derive(evidence: Evidence, *, most: Count = 2) -> Allocation:
    return Allocation("own", dict.fromkeys(evidence.schema.names, most))


def method(options: Mapping[str, Any] | None = None, **defined: Any) -> Method:
    """A method whose file defines `derive` and these."""
    module = ModuleType("pipeline.methods.own")
    vars(module).update({"derive": derive, **defined})
    return Method("own", module, options or {})


def test_a_file_with_a_derive_alone_has_a_default_for_everything_else() -> None:
    plain = method()
    assert not (plain.finds or plain.trains or plain.targets) and plain.architecture == {}
    assert plain.plain is MixedTables and plain.own_candidates is None
    allocation = plain.derive(evidence("uniform", SCHEMA, 4))
    embedding = plain.build(SCHEMA, 4, allocation)
    assert isinstance(embedding, MixedTables) and embedding.dims == {"user": 2, "item": 2}
    assert offered(plain, SCHEMA, 4, [[1, 2], [4]]) == ((1, 2), (4,))


def test_what_a_file_defines_comes_before_the_defaults() -> None:
    class Whole(MixedTables):
        pass

    own = method(
        plain=Whole,
        candidates=lambda schema, dim: [[0, dim]] * len(schema),
        ARCHITECTURE={"level": "single"},
        build=lambda schema, dim, allocation: Whole(schema, allocation.dims, dim),
    )
    assert own.plain is Whole and own.architecture == {"level": "single"}
    assert offered(own, SCHEMA, 4, [[1, 2], [4]]) == ((0, 4), (0, 4))
    assert type(own.build(SCHEMA, 4, Allocation("own", {"user": 1, "item": 2}))) is Whole


def test_what_find_returns_says_how_it_finds() -> None:
    def supernet(problem: Problem) -> MixedTables: ...

    def proposals(problem: Problem, *, target: Budget | None = None) -> list[Allocation]: ...

    def arrays(problem: Problem) -> dict[str, np.ndarray]: ...

    def no_embedding(problem: Problem) -> nn.Module: ...

    trains = {function: method(find=function) for function in (supernet, proposals, arrays, no_embedding)}
    assert all(one.finds for one in trains.values())
    assert [one.trains for one in trains.values()] == [True, False, False, False]
    assert [one.targets for one in trains.values()] == [False, True, False, False]
    assert issubclass(MixedTables, FieldEmbedding)


def test_find_and_derive_each_get_the_options_that_are_theirs() -> None:
    seen = {}

    def find(problem: Problem, *, draws: Count = 1) -> dict[str, np.ndarray]:
        seen["draws"] = draws
        return {}

    asked = evidence("uniform", SCHEMA, 4)
    both = method({"draws": 5, "most": 3}, find=find)
    assert both.find(asked) == {} and seen == {"draws": 5}
    assert both.derive(asked).dims == {"user": 3, "item": 3}
    assert method({"draws": 5}, find=find).derive(asked).dims == {"user": 2, "item": 2}


def test_a_method_is_found_by_its_name_and_its_options_are_checked() -> None:
    assert Method.named("autodim").trains and Method.named("random_search").targets
    with pytest.raises(ValueError, match=r"there is no method 'autodimm' .did you mean 'autodim'.*; there are alpt, "):
        Method.named("autodimm")
    with pytest.raises(ValueError, match=r"method.options.random_search: draws must be a whole number of at least 1"):
        Method.named("random_search", {"draws": 0})


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("coded", {"dim": 9}, "dim must be at most 8, the dim of the full tables, got 9"),
        ("magnitude", {"least": 9}, "least must be at most 8, the dim of the full tables, got 9"),
        ("autosrh", {"shares": [0.5, 0.4]}, r"shares of the values must be above 0 and add up to 1, got \[0.5, 0.4\]"),
        *((name, {"groups": 3}, "groups must divide 8, the dim of the tables, got 3") for name in CODES),
        ("mgqe", {"centroids": [8]}, r"centroids must be two numbers, of head and tail, that do not rise, got \[8\]"),
        ("mgqe", {"centroids": [8, 16]}, "centroids must be two numbers, of head and tail, that do not rise"),
        ("dpq", {"variant": "sx", "groups": 8}, "groups must be below 8 with variant sx, whose groups need two "),
    ],
)
def test_options_that_do_not_fit_the_dimension_or_each_other_are_refused(
    name: str, options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"params.yaml: method.options.{name}: {why}"):
        Method.named(name, options).check(8)
    project = Project(tmp_path, dim=8, method__name="full", method__options={name: options})
    with project.inside(), pytest.raises(ValueError, match=why):
        check_params(Params.load())  # also of a method that is not used


@pytest.mark.parametrize(
    ("name", "options"),
    [("coded", {"dim": 8}), ("coded", {"dim": None}), ("magnitude", {"least": 8}), ("autosrh", {}), ("mgqe", {})]
    + [(name, {"groups": 4}) for name in CODES],
)
def test_options_that_fit_are_accepted(name: str, options: dict[str, Any]) -> None:
    method = Method.named(name, options)
    method.check(8)
    assert method.options == options


def test_an_allocation_is_built_by_the_method_that_it_names() -> None:
    for name in ("uniform", "int8"):
        allocation = Method.named(name).derive(evidence(name, SCHEMA, 4))
        expected = Method.named(name).build(SCHEMA, 4, allocation)
        assert type(build(SCHEMA, 4, allocation)) is type(expected)
    with pytest.raises(ValueError, match="there is no method 'nope'"):
        build(SCHEMA, 4, Allocation("nope", {"user": 1, "item": 1}))
