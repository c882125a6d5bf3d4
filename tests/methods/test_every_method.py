"""What every method must hold; a new file in the folder is tested by being there."""

import contextlib
import inspect
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.embeddings.batch import Lookup, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import bytes_per_field, cost, spent, training_bytes
from pipeline.embeddings.table import Table
from pipeline.experiment.method import Method
from pipeline.training.row_adam import RowAdam
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options, keywords
from tests.contracts import (
    BATCH,
    DIM,
    FULL,
    LOOKUP,
    METHODS,
    SCHEMA,
    TRAINED,
    assert_every_parameter_has_a_gradient,
    assert_rows_are_independent,
    built,
    derived,
    draw_ids,
    finding,
    ids_of,
    loss_of,
    randomised,
    served,
    supernet,
)

OF_ONE_SIZE = ["full"]
FULL_WITHOUT_A_BUDGET = ["full", "int8", "int4", "alpt"]
# A second training continues from what these serve; see `pipeline.experiment.finetune`.
SETTLED = ["int4", "int8", "autodim_int8", "alpt", "coded", "pq", "dpq", "mgqe", "mpe", "mec", "frequent_int4"]
SETTLED += ["cafe", "hot_hashing"]
LEAST_SHARE = {"mpe": 16}  # 1 / share of the full tables that is used if more is allowed: its scores may want few bits
# What these build is determined by the dimensions, and so are its bytes.
PRICED = [
    name for name in METHODS if hasattr(plug("methods", name), "plain") or not hasattr(plug("methods", name), "build")
]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_from_what_it_finds_to_vectors_of_every_kept_field(name: str) -> None:
    embedding, kept, allocation = built(name)
    assert allocation.method == name
    allocation.check(SCHEMA)
    assert Allocation.from_dict(allocation.to_dict()) == allocation
    for rows in (3, BATCH):
        assert embedding(Lookup(kept)(ids_of(kept)[:rows])).shape == (rows, len(kept), embedding.dim)
    assert training_bytes(embedding) > 0


@pytest.mark.parametrize("name", METHODS)
def test_what_is_built_costs_what_was_measured_before_it_was_built(name: str) -> None:
    embedding, _, allocation = built(name)
    before = spent(Method.named(name).build, SCHEMA, DIM, allocation)
    assert before == cost(embedding.packed())
    embedding.finish()
    assert before == cost(embedding.packed())


@pytest.mark.parametrize("name", PRICED)
def test_what_is_built_costs_what_its_candidates_were_priced_at(name: str) -> None:
    embedding, kept, allocation = built(name)
    priced = bytes_per_field(Method.named(name).plain, SCHEMA, allocation.dims, DIM)
    assert cost(embedding.packed()).bytes == sum(priced.values())
    assert {field for field, size in priced.items() if size} == set(kept.names)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OF_ONE_SIZE])
def test_a_budget_is_kept_and_one_that_is_too_small_is_refused_with_the_least_possible(name: str) -> None:
    def size(budget: int) -> int:
        return cost(built(name, budget=budget)[0].packed()).bytes

    assert FULL / LEAST_SHARE.get(name, 8) < size(FULL * 6 // 10) <= FULL * 6 // 10
    with pytest.raises(ValueError, match="budget") as refused:
        derived(name, budget=3)
    stated = re.search(r"least is ([\d,]+)", str(refused.value))
    assert stated, refused.value
    least = int(stated[1].replace(",", ""))
    assert 3 < size(least) <= least
    with pytest.raises(ValueError, match="budget"):
        derived(name, budget=least - 1)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in FULL_WITHOUT_A_BUDGET])
def test_without_a_budget_a_method_without_a_search_takes_a_quarter(name: str) -> None:
    assert cost(built(name)[0].packed()).bytes <= FULL // 4 or Method.named(name).finds


@pytest.mark.parametrize("name", METHODS)
def test_equal_seeds_give_equal_findings_allocations_and_tables(name: str) -> None:
    again = finding.__wrapped__(name)
    for key, value in finding(name).items():
        if isinstance(value, dict):
            assert value.keys() == again[key].keys()
            assert all(np.array_equal(array, again[key][which]) for which, array in value.items())
        else:
            assert np.array_equal(value, again[key]) if isinstance(value, np.ndarray) else value == again[key]
    assert derived.__wrapped__(name) == derived(name)
    (first, _, _), (second, _, _) = built(name), built(name)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_a_batch_do_not_affect_each_other_when_served(name: str) -> None:
    assert_rows_are_independent(*served(name))


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_of_what_is_built_gets_a_gradient(name: str) -> None:
    embedding, kept, _ = built(name)
    randomised(embedding)
    for step in range(2):  # some rows are given out only after the first
        embedding.zero_grad()
        embedding.before_step(1 + step, 100)
        embedded = embedding(Lookup(kept)(ids_of(kept)))
        weight = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(5))
        embedding.objective((embedded * weight).sum(), "train").backward()
    assert_every_parameter_has_a_gradient(embedding)
    assert embedding.arch_parameters() == []


@pytest.mark.parametrize("name", METHODS)
def test_a_finished_embedding_that_is_saved_and_loaded_gives_the_same_vectors(name: str) -> None:
    embedding, kept = served(name)
    other, _, _ = built(name)
    other.load_state_dict(embedding.state_dict())
    ids = ids_of(kept)
    with torch.no_grad():
        assert torch.equal(other.eval()(Lookup(kept)(ids)), embedding(Lookup(kept)(ids)))


@pytest.mark.parametrize("name", METHODS)
def test_serving_needs_only_what_is_packed(name: str) -> None:
    """The claim on bytes: all other memory may turn to NaN, and the vectors stay the same."""
    embedding, kept = served(name)
    occ = Lookup(kept)(ids_of(kept))
    packed = embedding.packed()
    saved = embedding.state_dict()
    get: Callable[[], Tensor]
    with torch.no_grad():
        expected = embedding(occ)
        if type(embedding).lookup is FieldEmbedding.lookup:
            spared = {tensor.untyped_storage().data_ptr() for tensor in packed.values()}
            get = lambda: embedding(occ)  # noqa: E731
        else:
            packed = {key: tensor.clone() for key, tensor in packed.items()}
            spared = set()
            get = lambda: spread(embedding.lookup(packed, occ), occ)  # noqa: E731
        for key, tensor in {**dict(embedding.named_parameters()), **dict(embedding.named_buffers())}.items():
            # An integer that is not saved, like an offset, follows from the schema and is no part of the model.
            floating = tensor.is_floating_point()
            if tensor.untyped_storage().data_ptr() not in spared and (floating or key in saved):
                tensor.fill_(torch.nan if floating else 1)
        torch.testing.assert_close(get(), expected, rtol=0, atol=0)
        matters = []
        for tensor in packed.values():  # and what is packed is what is looked up
            kept_values = tensor.clone()
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
            with contextlib.suppress(RuntimeError, IndexError):  # what says how to read the rest does not fit it now
                matters.append(not torch.equal(get(), expected))
            tensor.copy_(kept_values)
        assert any(matters)


@pytest.mark.parametrize("name", SETTLED)
def test_training_after_finish_trains_what_is_served_and_another_finish_changes_nothing(name: str) -> None:
    embedding, kept = served(name)
    occ = Lookup(kept)(ids_of(kept))
    weight = torch.randn(*occ.shape, embedding.dim, generator=torch.Generator().manual_seed(5))
    before = embedding(occ).detach()
    tables = [module.weight for module in embedding.modules() if isinstance(module, Table)]
    dense = [p for p in embedding.parameters() if all(p is not table for table in tables)]
    optimizers = [RowAdam(tables, lr=0.02), *([torch.optim.Adam(dense, lr=0.02)] if dense else [])]
    embedding.train()
    for step in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        embedded = embedding(occ)
        if not step:
            torch.testing.assert_close(embedded, before, rtol=1e-5, atol=1e-6)
        embedding.objective((embedded * weight).sum(), "train").backward()
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        trained = embedding.eval()(occ)
        assert float((trained * weight).sum()) < float((before * weight).sum())
        for _ in range(2):
            embedding.finish()
            torch.testing.assert_close(embedding(occ), trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_of_a_supernet_gets_a_gradient_from_its_part(name: str) -> None:
    embedding = randomised(supernet(name))
    arch = embedding.arch_parameters()
    own = {id(parameter) for parameter in embedding.parameters()}
    assert all(id(parameter) in own for parameter in arch)
    embedding.objective(loss_of(embedding, draw_ids()), "train").backward()
    assert_every_parameter_has_a_gradient(embedding, but=arch)
    if arch:
        gradients = torch.autograd.grad(embedding.objective(loss_of(embedding, draw_ids()), "arch"), arch)
        assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("name", TRAINED)
def test_rows_of_a_batch_do_not_affect_each_other_when_a_supernet_is_evaluated(name: str) -> None:
    embedding = supernet(name)
    embedding(LOOKUP(draw_ids()))  # fills running statistics
    assert_rows_are_independent(embedding.eval(), SCHEMA)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_options_all_have_defaults_and_are_checked(name: str) -> None:
    method = Method.named(name)
    takers = [method.module.derive, *([method.module.find] if method.finds else [])]
    options = {key: parameter.default for taker in takers for key, parameter in keywords(taker).items()}
    assert inspect.Parameter.empty not in options.values()
    assert checked_options(takers, options, "here") == options
    with pytest.raises(ValueError, match=f"params.yaml: method.options.{name}: there is no 'nope'"):
        Method.named(name, {"nope": 1})
