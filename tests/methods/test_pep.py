"""PEP: the thresholded numbers and their gradients against the equation, the mask, and the sparse storage."""

import numpy as np
import pytest
import torch

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup, spread
from pipeline.embeddings.cost import cost, full_tables
from pipeline.methods import pep
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("tags", 7, width=2)))
DIM = 8
FULL = full_tables(SCHEMA, DIM).bytes
FIELDS = np.repeat([0, 1, 2], [70, 50, 7])
KINDS = {"global": (1, 1), "dim": (1, DIM), "field": (3, 1), "field_dim": (3, DIM), "row": (127, 1), "cell": (127, DIM)}


PROBLEM = problem("pep", SCHEMA, DIM, [[DIM]] * 3)


def supernet(thresholds: str) -> pep.ThresholdedCells:
    torch.manual_seed(0)
    made = pep.find(PROBLEM, thresholds=thresholds)
    with torch.no_grad():
        made.table.weight.copy_(torch.randn(127, DIM))
        s = made.s.weight if isinstance(made.s, torch.nn.Module) else made.s
        s.copy_(0.5 * torch.randn(s.shape))
    return made


def thresholds_of(embedding: pep.ThresholdedCells, kind: str) -> torch.Tensor:
    """(V, D) sigmoid(s), written out."""
    s = embedding.s.weight if isinstance(embedding.s, torch.nn.Module) else embedding.s
    assert tuple(s.shape) == KINDS[kind]
    if kind in ("field", "field_dim"):
        s = s[torch.from_numpy(FIELDS)]
    return torch.sigmoid(s.detach()).expand(127, DIM)


def draw_ids() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    ids = torch.stack([torch.randint(0, n, (20,), generator=generator) for n in (70, 50, 7, 7)], 1)
    ids[::3, 3] = PADDING
    return ids.int()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_shrunk_by_the_threshold_they_share(kind: str) -> None:
    embedding = supernet(kind)
    table, threshold = embedding.table.weight.detach(), thresholds_of(embedding, kind)
    shrunk = torch.where(table > threshold, table - threshold, torch.where(table < -threshold, table + threshold, 0))
    ids = draw_ids()
    tags = ids[:, 2:].long()
    there = (tags != PADDING)[..., None]
    bags = (shrunk[120 + tags.clamp(min=0)] * there).sum(1) / there.sum(1)
    expected = torch.stack([shrunk[ids[:, 0].long()], shrunk[70 + ids[:, 1].long()], bags], 1)
    torch.testing.assert_close(embedding(Lookup(SCHEMA)(ids)).detach(), expected)
    margin = embedding.findings().arrays()["margin"]
    assert margin.dtype == np.float16
    np.testing.assert_allclose(margin, (table.abs() - threshold).numpy(), atol=2e-3)


def test_a_number_above_its_threshold_trains_itself_and_the_threshold_and_one_below_trains_neither() -> None:
    narrow = problem("pep", SCHEMA, 2, [[2]] * 3)
    embedding = pep.find(narrow, thresholds="dim", init=0.0)  # thresholds of 1/2
    with torch.no_grad():
        embedding.table.weight.zero_()
        embedding.table.weight[3] = torch.tensor([-0.8, 0.3])
    embedded = embedding(Lookup(SCHEMA)(torch.tensor([[3, 0, 0, PADDING]], dtype=torch.int32)))
    torch.testing.assert_close(embedded[0, 0], torch.tensor([-0.3, 0.0]))
    embedded[0, 0].sum().backward()
    torch.testing.assert_close(embedding.table.weight.grad.to_dense()[3], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(embedding.s.grad, torch.tensor([[0.25, 0.0]]))  # -sign(-0.8) sigmoid'(0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_has_the_l2_term_of_s_and_its_gradient_has_the_layout_that_the_optimiser_takes(kind: str) -> None:
    embedding = supernet(kind)
    occ = Lookup(SCHEMA)(draw_ids())
    vectors = embedding(occ)
    by_row = isinstance(embedding.s, torch.nn.Module)
    s = embedding.s.weight.detach()[occ.rows] if by_row else embedding.s.detach()
    loss = embedding.objective(0 * vectors.sum(), "train")
    assert float(loss.detach()) == pytest.approx(0.0001 / 2 * float((s**2).sum()))
    loss.backward()
    grad = embedding.s.weight.grad if by_row else embedding.s.grad
    assert grad.is_sparse == by_row
    torch.testing.assert_close(grad.coalesce().values() if by_row else grad, 0.0001 * s)


@pytest.mark.parametrize("kind", ["row", "cell"])
def test_thresholds_of_rows_are_trained_only_for_the_rows_of_the_batch(kind: str) -> None:
    embedding = supernet(kind)
    embedding(Lookup(SCHEMA)(draw_ids())).square().sum().backward()
    touched = Lookup(SCHEMA)(draw_ids()).rows
    assert torch.equal(embedding.s.weight.grad.coalesce().indices()[0], touched)


def given(margin: np.ndarray, budget: int | None = None) -> Evidence:
    return evidence("pep", SCHEMA, DIM, arrays={"margin": margin}, budget=budget)


def test_without_a_budget_the_cells_above_their_threshold_are_kept() -> None:
    margin = supernet("field_dim").findings().arrays()["margin"]
    built = pep.build(SCHEMA, DIM, pep.derive(given(margin)))
    assert torch.equal(built.mask, torch.from_numpy(margin > 0))
    with pytest.raises(ValueError, match=r"no cell is above its threshold; lower method.options.pep.init"):
        pep.derive(given(-np.ones((127, DIM), np.float16)))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_only_the_kept_cells_are_stored_and_they_suffice_for_the_vectors(share: float) -> None:
    """Bytes are those of the stored tensors."""
    margin = np.random.default_rng(0).normal(size=(127, DIM)).astype(np.float16)
    budget = int(FULL * share)
    built = pep.build(SCHEMA, DIM, pep.derive(given(margin, budget)))
    expected = built(Lookup(SCHEMA)(draw_ids())).detach()
    packed = {name: tensor.clone() for name, tensor in built.packed().items()}
    stored = sum(tensor.untyped_storage().nbytes() for tensor in packed.values())
    assert 0.97 * budget < stored == cost(packed).bytes <= budget
    kept = built.layout.kept
    assert packed["table.cells"].numel() == kept < 127 * DIM
    assert margin[built.mask.numpy()].min() >= margin[~built.mask.numpy()].max()
    del built.table, built.mask
    occ = Lookup(SCHEMA)(draw_ids())
    torch.testing.assert_close(spread(built.lookup(packed, occ), occ), expected)


def test_retraining_starts_from_the_same_numbers_as_a_search_with_the_same_seed() -> None:
    margin = np.random.default_rng(0).normal(size=(127, DIM)).astype(np.float16)
    allocation = pep.derive(given(margin, FULL // 4))
    torch.manual_seed(7)
    searched = pep.find(PROBLEM)
    torch.manual_seed(7)
    built = pep.build(SCHEMA, DIM, allocation)
    assert torch.equal(built.table.weight, searched.table.weight)
