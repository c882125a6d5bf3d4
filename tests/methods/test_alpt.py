"""ALPT: the rounding, the step's gradient, and what is trained, stored and served."""

import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import spent
from pipeline.experiment.method import Method
from pipeline.methods import alpt
from pipeline.training.row_adam import RowAdam
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIM, ROWS = 4, 123
BITS = [2, 4, 8]


def made(bits: int) -> alpt.LowPrecision:
    torch.manual_seed(0)
    settings = {"bits": bits, "span": alpt.SPAN[bits]}
    embedding = alpt.build(SCHEMA, DIM, Allocation("alpt", dict.fromkeys(SCHEMA.names, DIM), settings))
    with torch.no_grad():
        for table in embedding.tables.values():
            table.weight.copy_(0.3 * torch.randn(table.weight.shape))
        for steps in embedding.steps.values():
            steps.weight.copy_(0.2 * torch.randn(steps.weight.shape))
    return embedding


def occurrences(rows: int = 20):
    return Lookup(SCHEMA)(torch.stack([torch.arange(rows) % n for n in (70, 50, 3)], 1).int())


def steps_of(embedding: alpt.LowPrecision) -> torch.Tensor:
    """(V,) of the one table."""
    return embedding.span / 2 ** (embedding.bits - 1) * embedding.steps[str(DIM)].weight.detach()[:, 0].exp()


def assert_on_grid(rows: torch.Tensor, steps: torch.Tensor, bits: int) -> None:
    codes = rows.double() / steps.double()[:, None]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert float(codes.min()) >= -(2 ** (bits - 1)) - 1e-3 and float(codes.max()) <= 2 ** (bits - 1) - 1 + 1e-3


@pytest.mark.parametrize("bits", BITS)
def test_the_step_s_gradient_is_lsq_s(bits: int) -> None:
    """Written out number by number: round(w / step) - w / step within the range, the end of the range beyond it."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(0)
    rows = (2 ** (bits - 1) * torch.randn(6, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    step = torch.rand(6, 1, generator=generator, dtype=torch.float64).add_(0.5).requires_grad_()
    weight = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    (alpt.RoundToStep.apply(rows, step, 0.5, low, high) * weight).sum().backward()
    beyond = 0
    for r in range(6):
        expected = 0.0
        for c in range(5):
            scaled = float(rows[r, c].detach() / step[r].detach())
            slope = low if scaled < low else high if scaled > high else round(scaled) - scaled
            beyond += not low <= scaled <= high
            expected += float(weight[r, c]) * slope
        assert float(step.grad[r]) == pytest.approx(expected)
    assert beyond > 0
    assert torch.equal(rows.grad, weight)


@pytest.mark.parametrize("bits", BITS)
def test_a_lookup_in_training_gives_a_neighbour_of_w_and_w_on_average(bits: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rows = (low + (high - low) * torch.rand(7, 3, generator=torch.Generator().manual_seed(0))) * 0.25
    step = torch.full((7, 1), 0.25)
    torch.manual_seed(1)
    drawn = torch.stack([alpt.RoundToStep.apply(rows, step, torch.rand(7, 3), low, high) for _ in range(2000)])
    assert float((drawn - rows).abs().max()) < 0.25
    assert float((drawn.mean(0) - rows).abs().max()) < 5 * 0.5 * 0.25 / 2000**0.5
    nearest = alpt.RoundToStep.apply(rows, step, 0.5, low, high)
    assert float((nearest - rows).abs().max()) <= 0.125 + 1e-6


@pytest.mark.parametrize("bits", BITS)
def test_a_step_of_training_starts_from_the_grid_and_changes_only_the_rows_of_its_batch(bits: int) -> None:
    embedding, occ = made(bits), occurrences()
    table, steps = embedding.tables[str(DIM)], embedding.steps[str(DIM)]
    optimizer = RowAdam([table.weight, steps.weight], lr=0.01)
    before = {"table": table.weight.detach().clone(), "steps": steps.weight.detach().clone()}
    looked_up_with = steps_of(embedding)[occ.rows]
    embedding(occ).square().sum().backward()
    stored = table.weight.detach()[occ.rows].clone()
    assert_on_grid(stored, looked_up_with, bits)
    for parameter in (table.weight, steps.weight):
        assert parameter.grad.is_sparse and torch.equal(parameter.grad.coalesce().indices()[0], occ.rows)
    optimizer.step()
    others = torch.ones(ROWS, dtype=torch.bool).index_fill_(0, occ.rows, False)
    assert torch.equal(table.weight[others], before["table"][others])
    assert torch.equal(steps.weight[others], before["steps"][others])
    moved = table.weight.detach()[occ.rows] - stored
    assert float(moved.abs().max()) <= 0.0101
    assert bool((steps.weight.detach()[occ.rows] != before["steps"][occ.rows]).any())
    with torch.no_grad():
        embedding(occ)  # the next batch with these rows rounds them to the new grid
    assert_on_grid(table.weight.detach()[occ.rows], steps_of(embedding)[occ.rows], bits)


def test_a_step_grows_if_numbers_are_clipped_that_should_be_larger() -> None:
    embedding, occ = made(8), occurrences()
    table, steps = embedding.tables[str(DIM)], embedding.steps[str(DIM)]
    with torch.no_grad():
        table.weight.fill_(3 * embedding.span)
        steps.weight.zero_()
    optimizer = RowAdam([table.weight, steps.weight], lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        (embedding(occ) - 3 * embedding.span).square().sum().backward()
        optimizer.step()
    assert float(steps.weight.detach()[occ.rows].min()) > 0.2
    assert float(steps.weight[40].detach()) == 0  # a row that did not occur


def test_a_row_s_codes_reach_as_far_as_the_span_says() -> None:
    for options, reach in (({}, 0.25), ({"bits": 4}, 0.125), ({"bits": 4, "span": 0.5}, 0.5)):
        embedding = alpt.build(SCHEMA, DIM, alpt.derive(evidence("alpt", SCHEMA, DIM), **options))
        assert float(embedding.rounded(str(DIM))[1][0].detach()) * -embedding.low == reach
    with pytest.raises(ValueError, match=r"alpt: span must be a number above 0 or null, got 0\.0"):
        Method.named("alpt", {"span": 0.0})


@pytest.mark.parametrize("bits", BITS)
def test_evaluation_rounds_to_the_nearest_and_changes_nothing(bits: int) -> None:
    embedding, occ = made(bits).eval(), occurrences()
    before = embedding.tables[str(DIM)].weight.detach().clone()
    with torch.no_grad():
        embedded = embedding(occ)
    assert torch.equal(embedding.tables[str(DIM)].weight, before)
    step = steps_of(embedding)[:20, None]
    nearest = (before[:20] / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step
    torch.testing.assert_close(embedded[:, 0], nearest)


@pytest.mark.parametrize("bits", BITS)
def test_what_is_served_lies_on_the_grid_of_the_stored_steps(bits: int) -> None:
    embedding, occ = made(bits), occurrences()
    steps = steps_of(embedding)
    embedding.finish()
    embedding.eval()
    packed = embedding.packed()
    scale = packed[f"scale.{DIM}"]
    torch.testing.assert_close(scale.float(), steps, rtol=1e-3, atol=0)
    with torch.no_grad():
        embedded = embedding(occ)
    assert_on_grid(embedded[:, 0], scale[:20].float(), bits)
    codes = embedded[:, 0] / scale[:20].float()[:, None]
    assert float(codes.min()) < 0 < float(codes.max()) and len(codes.round().unique()) > bits // 2
    assert packed[f"table.{DIM}"].shape == (ROWS, DIM * bits // 8 or 1)


def test_the_widest_dimension_within_the_budget_is_taken_and_d_without_one() -> None:
    for bits, size, dim in ((8, 3 + 2, 3), (4, 1 + 2, 2), (2, 1 + 2, 4)):
        allocation = alpt.derive(evidence("alpt", SCHEMA, DIM, budget=ROWS * size), bits=bits)
        assert allocation.settings["bits"] == bits and set(allocation.dims.values()) == {dim}
        assert spent(alpt.build, SCHEMA, DIM, allocation).bytes == ROWS * size
        assert set(alpt.derive(evidence("alpt", SCHEMA, DIM), bits=bits).dims.values()) == {DIM}
    with pytest.raises(ValueError, match=rf"alpt: no dimension .* the least is {3 * ROWS}; raise the budget"):
        alpt.derive(evidence("alpt", SCHEMA, DIM, budget=3 * ROWS - 1))
