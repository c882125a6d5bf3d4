"""The limits of a training step differ from it only in what they are said to differ in."""

import dataclasses
import json

import pytest
import torch

from benchmarks import limits, models, shapes
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.training.weights import LitWeights

SCHEMA = Schema((Field("a", 40), Field("b", 30), Field("c", 20)))
BATCH, ROWS = 16, 25  # U


def plain(seed: int = 0) -> LitWeights:
    torch.manual_seed(seed)
    return models.plain(SCHEMA, models.split(shapes.draw_batches(SCHEMA, BATCH, 1)), dim=4)


def tables(module: LitWeights) -> list[torch.Tensor]:
    model = module.model
    return [model.embedding.tables["4"].weight, model.backbone.first_order.table.weight]


def test_rows_in_order_are_the_occurrences_that_a_lookup_of_ordered_ids_finds() -> None:
    ids = (torch.arange(48) * 25 // 48)[:, None]
    expected = Lookup(Schema((Field("only", 25),)))(ids.int())
    found = limits.InOrder(25, 48, 1)(ids)
    for field in dataclasses.fields(expected):
        wanted, got = getattr(expected, field.name), getattr(found, field.name)
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(got, wanted, msg=field.name)
        else:
            assert got == wanted, field.name


def test_rows_in_order_have_the_fields_of_the_batch_and_are_no_more_than_its_occurrences() -> None:
    found = limits.InOrder(ROWS, BATCH, 3)(torch.zeros(BATCH, 3))
    assert found.shape == (BATCH, 3) and found.ends[-1] == ROWS and len(found.ends) == 3
    assert found.mass().sum() == BATCH * 3 and found.mass().min() >= 1
    with pytest.raises(ValueError, match="rows must be at most 48, the occurrences of a batch, got 49"):
        limits.InOrder(49, BATCH, 3)


def test_a_step_in_order_trains_the_first_rows_and_no_others() -> None:
    module = limits.in_order(plain(), ROWS, BATCH)
    optimizers, before = module.configure_optimizers(), [t.detach().clone() for t in tables(module)]
    for batch in shapes.draw_batches(SCHEMA, BATCH, 2):
        module.weight_step(batch, optimizers)
    for old, new in zip(before, tables(module), strict=True):
        assert (old != new)[:ROWS].any(1).all() and torch.equal(old[ROWS:], new[ROWS:])


def test_the_step_on_one_block_computes_what_the_step_in_order_does() -> None:
    ordered, block = limits.in_order(plain(), ROWS, BATCH), limits.on_one_block(plain(), ROWS, BATCH)
    ours, dense = ordered.configure_optimizers(), [torch.optim.Adam(block.weights(), lr=block.lr, fused=True)]
    for number, batch in enumerate(shapes.draw_batches(SCHEMA, BATCH, 3)):
        for module, optimizers in ((ordered, ours), (block, dense)):
            torch.manual_seed(number)  # of the dropout
            module.weight_step(batch, optimizers)
    for whole, cut in zip(tables(ordered), tables(block), strict=True):
        assert cut.shape[0] == ROWS and not cut.grad.is_sparse
        torch.testing.assert_close(whole[:ROWS], cut, rtol=1e-4, atol=1e-6)


def test_the_least_bytes_are_six_passes_over_the_touched_rows_of_both_tables() -> None:
    assert limits.least_bytes(plain(), ROWS) == 6 * 4 * ROWS * (4 + 1)


def test_limits_are_measured_of_every_step_and_said_as_multiples() -> None:
    found = limits.measure(shapes.criteo(values=500, fields=5), 40, rounds=2, big=1 << 16)
    said = limits.table(json.loads(json.dumps(found)))
    assert set(found["times limit"]) == {limits.IN_ORDER, limits.BLOCK, limits.MLP, "least"}
    assert found["memory"][limits.COPY]["times limit"] == 1 and said.startswith("## ")
    for name in (*found["steps"], *found["memory"]):
        assert f"\n| {name} | " in said
    assert f"{found['times limit'][limits.BLOCK]:.2f} x its limit" in said
