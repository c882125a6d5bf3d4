"""What every method has to hold, whatever it finds out first: a new file in the folder is tested by being there."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Trial
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import cost, full_tables, prices, spent, training_bytes
from pipeline.workflow.plug import check_options, keywords, names, plug
from stages import _model
from tests.test_plugs import assert_every_parameter_has_a_gradient, dense, randomised

# Cardinalities that a swapped axis cannot pass, large enough for codebooks to be worth their bytes.
SCHEMA = Schema((Field("user", 700), Field("item", 150), Field("age", 3), Field("tags", 60, width=3)))
CANDIDATES = [[1, 2, 3, 4, 5, 6, 8], [1, 2, 4, 8], [1, 4, 8], [0, 1, 2, 4, 8]]
DIM, BATCH = 8, 512
FULL = full_tables(SCHEMA, DIM).bytes
LOOKUP = Lookup(SCHEMA)
METHODS = names("methods")


@functools.cache
def draw_ids(seed: int = 0, rows: int = BATCH) -> Tensor:
    """(B, S) ids; frequent ones have small numbers, as the encoder makes them, and bags have one to three values."""
    rng = np.random.default_rng(seed)
    columns = [(rng.random(rows) ** 3 * field.cardinality).astype(np.int32) for field in SCHEMA.fields[:3]]
    tags = np.stack([rng.permutation(60)[:3] for _ in range(rows)])
    tags[np.arange(3) >= rng.integers(1, 4, (rows, 1))] = PADDING
    return torch.from_numpy(np.concatenate([np.stack(columns, 1), tags], 1).astype(np.int32))


def labels_of(ids: Tensor) -> Tensor:
    return (ids.long().clamp(min=0).sum(1) % 2).float()


def finder(name: str) -> Callable[..., Any] | None:
    return _model.method({"method": {"name": name}}).finds


def candidates(method: ModuleType) -> list[list[int]]:
    own = getattr(method, "candidates", None)
    offered: list[list[int]] = CANDIDATES if own is None else own(SCHEMA, DIM)
    return offered


def priced(method: ModuleType) -> np.ndarray:
    return prices(method.build, SCHEMA, candidates(method), DIM)


def supernet(name: str) -> FieldEmbedding:
    """A searched embedding in the middle of its search."""
    method = plug("methods", name)
    torch.manual_seed(0)
    made: FieldEmbedding = method.search(SCHEMA, DIM, candidates(method), priced(method))
    made.before_step(50, 100)
    return made


def logits_of(embedding: FieldEmbedding, ids: Tensor) -> Tensor:
    """(B,) with which every coordinate of every field has something to do."""
    embedded: Tensor = embedding(LOOKUP(ids))
    weight = torch.randn(embedded.shape[1:], generator=torch.Generator().manual_seed(5))
    return (embedded * weight).sum((1, 2)) + embedded.sum(1).square().sum(1)


def evidence(name: str, seed: int = 3, **given: Any) -> Evidence:
    """What ``derive`` is given, after a search that was short, but was one."""
    method, finds = plug("methods", name), finder(name)
    own: dict[str, Any] = {}
    if finds is not None and finds.__name__ == "search":
        embedding = randomised(supernet(name), seed)
        assert isinstance(embedding, FieldEmbedding)
        for step in range(3):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits_of(embedding, draw_ids(step)), labels_of(draw_ids(step))
            )
            embedding.objective(loss, "train").backward()
        embedding.eval()

        def passes() -> Iterator[tuple[Tensor, Tensor]]:
            for step in range(2):
                yield logits_of(embedding, draw_ids(step)), labels_of(draw_ids(step))

        embedding.conclude(passes)
        scores = embedding.scores()
        own = {"found": embedding.found(), "scores": None if scores is None else scores.detach().numpy()}
    elif finds is not None and finds.__name__ == "observe":
        own = {"found": finds(SCHEMA, draw_ids(seed, 2000).numpy(), np.random.default_rng(seed))}
    elif finds is not None:
        proposed = finds(SCHEMA, DIM, candidates(method), priced(method), np.random.default_rng(seed))
        trials = [
            Trial(allocation, 0.5 + 0.01 * i, spent(method.build, SCHEMA, DIM, allocation).bytes)
            for i, allocation in enumerate(proposed)
        ]
        own = {"trials": tuple(trials)}
    rows = tuple(map(tuple, candidates(method)))
    return Evidence(SCHEMA, DIM, rows, priced(method), FULL, seed, **{**own, **given})


def built(name: str, seed: int = 3, **given: Any) -> tuple[FieldEmbedding, Schema, Allocation]:
    """find (if any) -> derive -> build, of the fields that are kept."""
    allocation = plug("methods", name).derive(evidence(name, seed, **given))
    allocation.check(SCHEMA)
    kept = SCHEMA.subset(allocation.kept())
    torch.manual_seed(seed)
    return plug("methods", allocation.method).build(kept, DIM, allocation.of_kept()), kept, allocation


def served(name: str, **given: Any) -> tuple[FieldEmbedding, Schema]:
    """What is built, as after its training."""
    embedding, kept, _ = built(name, **given)
    randomised(embedding)
    embedding(Lookup(kept)(ids_of(kept)))  # statistics, if it keeps any
    embedding.finish()
    return embedding.eval(), kept


def ids_of(kept: Schema, seed: int = 0) -> Tensor:
    return draw_ids(seed)[:, SCHEMA.slots_of(kept.names)]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_from_what_it_finds_to_vectors_of_every_kept_field(name: str) -> None:
    embedding, kept, allocation = built(name)
    assert Allocation.from_dict(allocation.to_dict()) == allocation
    for rows in (3, BATCH):
        assert embedding(Lookup(kept)(ids_of(kept)[:rows])).shape == (rows, len(kept), embedding.dim)
    assert training_bytes(embedding) > 0


@pytest.mark.parametrize("name", METHODS)
def test_what_is_built_costs_what_was_measured_before_it_was_built(name: str) -> None:
    embedding, _, allocation = built(name)
    before = spent(plug("methods", allocation.method).build, SCHEMA, DIM, allocation)
    assert before == cost(embedding.packed())
    embedding.finish()
    assert before == cost(embedding.packed())


@pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
def test_a_budget_is_kept_and_one_that_cannot_be_is_refused_with_the_least_that_can(name: str) -> None:
    """`full` alone has but one size."""

    def size(budget: int) -> int:
        return cost(built(name, budget=budget)[0].packed()).bytes

    assert FULL / 8 < size(FULL * 6 // 10) <= FULL * 6 // 10
    with pytest.raises(ValueError, match=r"budget") as refused:
        size(3)
    found = re.search(r"least (?:is |possible is )?([\d,]+)", str(refused.value))
    assert found, refused.value
    least = int(found[1].replace(",", ""))
    assert 3 < size(least) <= least
    with pytest.raises(ValueError, match="budget"):
        size(least - 1)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("full", "int8", "int4", "alpt")])
def test_without_a_budget_a_method_that_needs_one_keeps_to_a_quarter(name: str) -> None:
    """Those left out need none: they have the full dimension then."""
    assert cost(built(name)[0].packed()).bytes <= FULL // 4 or finder(name) is not None


@pytest.mark.parametrize("name", METHODS)
def test_equal_seeds_give_equal_allocations_and_equal_tables(name: str) -> None:
    (first, _, one), (second, _, two) = built(name), built(name)
    assert one == two
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_a_batch_do_not_see_each_other_in_what_is_served(name: str) -> None:
    embedding, kept = served(name)
    assert_rows_are_independent(embedding, kept)


def assert_rows_are_independent(embedding: FieldEmbedding, kept: Schema) -> None:
    lookup, ids = Lookup(kept), ids_of(kept)
    with torch.no_grad():
        together = embedding(lookup(ids))
        assert torch.equal(embedding(lookup(ids)), together)
        for row in range(5):
            torch.testing.assert_close(embedding(lookup(ids[row : row + 1]))[0], together[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_of_what_is_built_gets_a_gradient(name: str) -> None:
    embedding, kept, _ = built(name)
    randomised(embedding)
    embedding.before_step(1, 100)
    embedded = embedding(Lookup(kept)(ids_of(kept)))
    weight = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(5))
    embedding.objective((embedded * weight).sum(), "train").backward()
    assert_every_parameter_has_a_gradient(embedding)
    assert embedding.arch_parameters() == []


@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_of_a_finished_embedding_serves_the_same_vectors_elsewhere(name: str) -> None:
    embedding, kept = served(name)
    other, _, _ = built(name)
    other.load_state_dict(embedding.state_dict())
    ids = ids_of(kept)
    with torch.no_grad():
        assert torch.equal(other.eval()(Lookup(kept)(ids)), embedding(Lookup(kept)(ids)))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_packed_is_not_needed_to_serve(name: str) -> None:
    """The claim on bytes: all other memory may turn to NaN, and the vectors stay the same."""
    embedding, kept = served(name)
    occ = Lookup(kept)(ids_of(kept))
    packed = embedding.packed()
    saved = embedding.state_dict()
    with torch.no_grad():
        expected = embedding(occ)
        if type(embedding).lookup is FieldEmbedding.lookup:
            kept_back = {tensor.untyped_storage().data_ptr() for tensor in packed.values()}
            get: Callable[[], Tensor] = lambda: embedding(occ)  # noqa: E731
        else:
            packed = {key: tensor.clone() for key, tensor in packed.items()}
            kept_back = set()
            get = lambda: embedding.lookup(packed, occ)  # noqa: E731
        for key, tensor in {**dict(embedding.named_parameters()), **dict(embedding.named_buffers())}.items():
            # An integer that is not saved either, like an offset, is the schema's and no part of the model.
            floating = tensor.is_floating_point()
            if tensor.untyped_storage().data_ptr() not in kept_back and (floating or key in saved):
                tensor.fill_(torch.nan if floating else 1)
        torch.testing.assert_close(get(), expected, rtol=0, atol=0)
        for tensor in packed.values():  # and what is packed is what is looked up
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        assert not torch.equal(get(), expected)


TRAINED = [name for name in METHODS if getattr(finder(name), "__name__", "") == "search"]


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_of_a_supernet_gets_a_gradient_from_its_part(name: str) -> None:
    embedding = randomised(supernet(name))
    assert isinstance(embedding, FieldEmbedding)
    arch = embedding.arch_parameters()
    owned = {id(parameter) for parameter in embedding.parameters()}
    assert all(id(parameter) in owned for parameter in arch)
    ids, labels = draw_ids(), labels_of(draw_ids())

    def loss() -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits_of(embedding, ids), labels)

    embedding.objective(loss(), "train").backward()
    chosen = {id(parameter) for parameter in arch}
    without = [
        key
        for key, p in embedding.named_parameters()
        if id(p) not in chosen and (p.grad is None or not bool(dense(p.grad).any()))
    ]
    assert not without
    if arch:
        gradients = torch.autograd.grad(embedding.objective(loss(), "arch"), arch)
        assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("name", TRAINED)
def test_rows_of_a_batch_do_not_see_each_other_when_a_supernet_is_evaluated(name: str) -> None:
    embedding = supernet(name)
    embedding(LOOKUP(draw_ids()))  # statistics
    assert_rows_are_independent(embedding.eval(), SCHEMA)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_options_have_defaults_and_are_checked(name: str) -> None:
    takers = [function for function in (finder(name), plug("methods", name).derive) if function is not None]
    options = {key: p.default for taker in takers for key, p in keywords(taker).items()}
    check_options(takers, options, "here")
    assert not any(default is inspect.Parameter.empty for default in options.values())
    with pytest.raises(ValueError, match="here: no option 'nope'"):
        check_options(takers, {"nope": 1}, "here")
