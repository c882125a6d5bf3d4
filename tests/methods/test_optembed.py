"""OptEmbed: the row mask and its surrogate gradient, the evolution within bytes, and dropped rows, which are zero."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import full_tables, spent
from pipeline.methods import optembed
from pipeline.methods.optembed import Evolution, crossed, mutated, nearest, price_of_dims
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("tags", 7, width=2)))
DIM = 4
FULL = full_tables(SCHEMA, DIM).bytes
FIELDS = torch.arange(3).repeat_interleave(torch.tensor([70, 50, 7]))
IDS = torch.tensor([[3, 9, 0, 4], [4, 1, 2, PADDING], [3, 49, 6, 5], [69, 0, 1, 2]], dtype=torch.int32)
KEPT = np.random.default_rng(1).random(127) < 0.6
ALL = np.ones(127, bool)


def supernet(**options) -> optembed.ThresholdedRows:
    torch.manual_seed(0)
    return optembed.find(problem("optembed", SCHEMA, DIM, [[DIM]] * 3), **options)


def averaged(rows: torch.Tensor) -> torch.Tensor:
    """(V, D) vectors of all rows -> (B, F, D) of `IDS`, written out."""
    tags = [rows[[120 + t for t in row if t >= 0]].mean(0) for row in IDS[:, 2:].tolist()]
    return torch.stack([rows[IDS[:, 0].long()], rows[70 + IDS[:, 1].long()], torch.stack(tags)], 1)


def test_the_surrogate_gradient_of_the_step() -> None:
    x = torch.tensor([-1.5, -1.0, -0.7, -0.4, -0.1, 0.0, 0.3, 0.4, 0.9, 1.1], requires_grad=True)
    step = optembed._Step.apply(x)
    assert step.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    step.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0, 0.4, 0.4, 0.4, 1.6, 2.0, 0.8, 0.4, 0.4, 0]))


def test_rows_below_their_field_s_threshold_are_zero_and_the_regulariser_raises_thresholds() -> None:
    embedding = supernet(row_weight=0.5).eval()
    with torch.no_grad():
        embedding.table.weight.copy_(torch.randn(127, DIM, generator=torch.Generator().manual_seed(1)))
        embedding.thresholds.copy_(torch.tensor([2.0, 3.0, 4.0]))
    size = embedding.table.weight.detach().abs().sum(1)
    kept = size > torch.tensor([2.0, 3.0, 4.0])[FIELDS]
    assert torch.equal(torch.from_numpy(embedding.kept()), kept) and 0 < int(kept.sum()) < 127
    expected = averaged(embedding.table.weight.detach() * kept[:, None])
    torch.testing.assert_close(embedding(Lookup(SCHEMA)(IDS)).detach(), expected)
    gradient = torch.autograd.grad(embedding.objective(torch.tensor(0.0), "train"), embedding.thresholds)[0]
    torch.testing.assert_close(gradient, -0.5 * torch.exp(-torch.tensor([2.0, 3.0, 4.0])))


def test_a_field_whose_rows_are_all_below_the_threshold_keeps_its_largest_row() -> None:
    embedding = supernet()
    with torch.no_grad():
        embedding.thresholds.copy_(torch.tensor([-1.0, 9.0, -1.0]))
        embedding.table.weight[70 + 17] = 1.0
    kept = embedding.kept()
    assert kept[:70].all() and kept[120:].all() and np.flatnonzero(kept[70:120]).tolist() == [17]


def test_training_draws_a_dim_per_field_and_batch_and_evaluation_takes_the_dims_that_are_set() -> None:
    embedding = supernet()
    with torch.no_grad():
        embedding.table.weight.fill_(1.0)
    ids = IDS[[0, 2, 3]]  # bags of two
    widths = set()
    for _ in range(60):
        embedded = embedding(Lookup(SCHEMA)(ids)).detach()
        assert torch.equal(embedded, embedded[:1].expand_as(embedded))  # the same for all rows of a batch
        width = embedded[0].sum(1).long()
        assert torch.equal(embedded[0], (torch.arange(DIM) < width[:, None]).float())  # the first so many columns
        widths.add(tuple(width.tolist()))
    assert {w for width in widths for w in width} == {1, 2, 3, 4} and len(widths) > 20
    embedding.eval().dims.copy_(torch.tensor([2, 4, 1]))
    assert embedding(Lookup(SCHEMA)(ids)).sum(2).tolist() == [[2, 4, 1]] * 3


def test_a_mutation_does_not_change_its_parent() -> None:
    rng, parent = np.random.default_rng(0), np.array([3, 1, 4, 2])
    children = np.array([mutated(parent, 4, 0.5, rng) for _ in range(400)])
    assert parent.tolist() == [3, 1, 4, 2]
    assert children.min() == 1 and children.max() == 4
    assert 0.3 < (children != parent).mean() < 0.45  # half are drawn anew, and a quarter of those are as before
    assert mutated(parent, 4, 0.0, rng).tolist() == parent.tolist()
    assert not np.shares_memory(mutated(parent, 4, 0.0, rng), parent)


def test_a_crossover_point_lies_between_two_fields() -> None:
    rng = np.random.default_rng(0)
    one, other = np.full(5, 1), np.full(5, 9)
    points = [int((crossed(one, other, rng) == 1).sum()) for _ in range(400)]
    assert set(points) == {1, 2, 3, 4} and min(map(points.count, set(points))) > 60
    assert all(np.diff(crossed(one, other, rng)).min() >= 0 for _ in range(20))
    assert crossed(np.array([1]), np.array([9]), rng).tolist() == [1]


def test_dims_that_do_not_fit_are_replaced_by_the_nearest_that_do() -> None:
    price = price_of_dims(SCHEMA, DIM, ALL)
    dims, every = np.array([4, 4, 2]), list(itertools.product(range(1, DIM + 1), repeat=3))

    def far(other: tuple[int, ...]) -> float:
        return float(np.abs(np.log(other) - np.log(dims)).sum())

    for budget in (int(price.min(1).sum()), FULL // 2, FULL * 3 // 4):
        chosen = nearest(dims, price, budget)
        fitting = [other for other in every if price[np.arange(3), np.array(other) - 1].sum() <= budget]
        assert tuple(chosen.tolist()) in fitting and far(tuple(chosen)) == pytest.approx(min(map(far, fitting)))
    assert nearest(dims, price, 2 * FULL) is dims


def test_evolution_finds_the_best_dims_within_the_budget_and_nothing_outside_it() -> None:
    price, budget = price_of_dims(SCHEMA, DIM, ALL), FULL // 2
    judged: list[tuple[int, ...]] = []

    def judge(dims: np.ndarray) -> float:
        judged.append(tuple(dims.tolist()))
        return float((np.sqrt(dims) * [1.0, 3.0, 0.5]).sum())

    evolution = Evolution(generations=15, parents=5, mutations=6, crossovers=6, rate=0.3)
    dims, quality = evolution.run(price, budget, judge, np.random.default_rng(0))
    sizes = price[np.arange(3), dims - 1].sum(1)
    assert (sizes <= budget).all() and len(judged) == len(set(judged)) == len(dims)
    assert (np.diff(quality) <= 0).all()
    np.testing.assert_allclose(quality, (np.sqrt(dims) * [1.0, 3.0, 0.5]).sum(1))  # each with its own judgement
    fitting = [d for d in itertools.product(range(1, 5), repeat=3) if price[range(3), np.array(d) - 1].sum() <= budget]
    assert quality[0] == pytest.approx(max(float((np.sqrt(d) * [1.0, 3.0, 0.5]).sum()) for d in fitting))


class Distance:
    """A judge that knows the best embedded batch, and counts how often it is asked."""

    def __init__(self, embedding: optembed.ThresholdedRows, wanted: torch.Tensor) -> None:
        self.embedding, self.wanted = embedding, wanted
        self.asked: list[int | None] = []

    def losses(self) -> Iterator[torch.Tensor]:
        raise AssertionError("the evolution needs no gradient")

    def objective(self, batches: int | None = None) -> float:
        self.asked.append(batches)
        return -float((self.embedding(Lookup(SCHEMA)(IDS)) - self.wanted).square().sum())


def test_candidates_are_judged_by_the_objective_of_the_supernet_cut_to_them() -> None:
    embedding = supernet(target=0.5, generations=1, parents=2, mutations=2, crossovers=1, batches=2).eval()
    with torch.no_grad():
        embedding.table.weight.copy_(torch.randn(127, DIM))
    judge = Distance(embedding, torch.randn(4, 3, DIM))
    embedding.conclude(judge)
    arrays = embedding.findings().arrays()
    assert judge.asked == [2] * len(arrays["dims"])  # each candidate once, by two batches
    kept = torch.from_numpy(embedding.kept())[:, None]
    for dims, quality in zip(arrays["dims"], arrays["quality"], strict=True):
        cut = embedding.table.weight * (torch.arange(DIM) < torch.tensor(dims)[FIELDS][:, None])
        distance = (averaged((cut * kept).detach()) - judge.wanted).square().sum()
        assert quality == pytest.approx(-float(distance))
    assert embedding.dims.tolist() == [DIM] * 3  # as before


def given(kept: np.ndarray, dims: list[list[int]], budget: int | None = None) -> Evidence:
    quality = np.linspace(0.8, 0.7, len(dims))
    arrays = {"rows": np.packbits(kept), "dims": np.array(dims, np.int32), "quality": quality}
    return evidence("optembed", SCHEMA, DIM, arrays=arrays, budget=budget)


@pytest.mark.parametrize("kept", [KEPT, ALL])
def test_the_best_candidate_that_fits_is_taken_and_costs_its_price(kept: np.ndarray) -> None:
    evolved = [[4, 4, 4], [1, 3, 2], [1, 1, 1]]
    price = price_of_dims(SCHEMA, DIM, kept)
    sizes = [int(price[range(3), np.array(dims) - 1].sum()) for dims in evolved]
    for dims, size in zip(evolved, sizes, strict=True):
        allocation = optembed.derive(given(kept, evolved, size))
        assert list(allocation.dims.values()) == dims
        assert spent(optembed.build, SCHEMA, DIM, allocation).bytes == size
    assert bool(allocation.arrays) == (not kept.all())
    best = nearest(np.array(evolved[0]), price, sizes[1])
    assert list(optembed.derive(given(kept, evolved[:1], sizes[1])).dims.values()) == best.tolist()


def test_dropped_rows_are_zero_and_the_tables_hold_only_the_kept_rows() -> None:
    allocation = optembed.derive(given(KEPT, [[1, 3, 4]], FULL))
    embedding = optembed.build(SCHEMA, DIM, allocation)
    assert sum(len(table.weight) for table in embedding.tables.tables.values()) == KEPT.sum()
    with torch.no_grad():
        embedded = embedding(Lookup(SCHEMA)(IDS))
    tables = embedding.tables
    place = np.cumsum(KEPT) - KEPT
    full = torch.zeros(127, DIM)
    for name, first, rows, d in (("user", 0, 70, 1), ("item", 70, 50, 3), ("tags", 120, 7, 4)):
        own = np.flatnonzero(KEPT[first : first + rows]) + first
        values = tables.tables[str(d)].weight.detach()[place[own] - place[first]]
        full[own] = values if d == DIM else values @ tables.projections[str(d)].detach()[0]
        assert tables.dims[name] == d
    torch.testing.assert_close(embedded, averaged(full))


def test_a_batch_of_only_dropped_rows_is_zero_and_trains_nothing() -> None:
    kept = KEPT.copy()
    kept[[3, 79, 120]] = False
    allocation = Allocation(
        "optembed", {"user": 1, "item": 3, "tags": 4}, {"rows": int(kept.sum())}, {"rows": np.packbits(kept)}
    )
    embedding = optembed.build(SCHEMA, DIM, allocation)
    embedded = embedding(Lookup(SCHEMA)(torch.tensor([[3, 9, 0, PADDING]], dtype=torch.int32)))
    assert not embedded.any()
    embedded.sum().backward()
    assert all(p.grad is None or not p.grad.to_dense().any() for p in embedding.parameters())


def test_an_allocation_whose_rows_do_not_add_up_is_refused() -> None:
    dims = dict.fromkeys(SCHEMA.names, 2)
    with pytest.raises(ValueError, match=r"array 'rows' must keep 5 rows, as the settings say, got 127; derive"):
        optembed.build(SCHEMA, DIM, Allocation("optembed", dims, {"rows": 5}, {"rows": np.packbits(ALL)}))
    with pytest.raises(ValueError, match="array 'rows' must hold 127 bits"):
        optembed.build(SCHEMA, DIM, Allocation("optembed", dims, {"rows": 5}))
    none = np.packbits(np.arange(127) < 70)
    with pytest.raises(ValueError, match="field 'item' must keep at least one row, got none"):
        optembed.build(SCHEMA, DIM, Allocation("optembed", dims, {"rows": 70}, {"rows": none}))
