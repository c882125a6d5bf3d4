"""Which cells are kept, how many a budget buys, and that the stored tensors give the kept cells back."""

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost
from pipeline.embeddings.kept_cells import Layout, Masked, cells_within, top_cells

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("tags", 7, width=2)))
DIM = 5  # so that rows do not begin with a byte


def table(rows: int, dim: int, kept: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows * dim, dtype=torch.bool)
    mask[torch.randperm(rows * dim, generator=generator)[:kept]] = True
    return torch.randn(rows, dim, generator=generator), mask.view(rows, dim)


@pytest.mark.parametrize(
    ("rows", "dim", "kept", "form"),
    [
        (200, 40, 1, "csr"),
        (200, 40, 300, "csr"),
        (203, 40, 2000, "bitmap"),
        (37, 5, 60, "bitmap"),
        (203, 40, 8119, "dense"),
        (20, 300, 40, "csr"),
        (1, 8, 8, "dense"),
    ],
)
def test_rows_are_read_back_from_every_form_of_storage(rows: int, dim: int, kept: int, form: str) -> None:
    values, mask = table(rows, dim, kept)
    layout = Layout(rows, dim, kept)
    packed = layout.pack(values, mask)
    assert layout.name == form
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in packed.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in layout.measured().items()
    }
    assert torch.equal(layout.take(packed, torch.arange(rows)), values * mask)
    chosen = torch.randperm(rows)[: rows // 2 + 1].sort().values
    assert torch.equal(layout.take(packed, chosen), (values * mask)[chosen])


def test_the_form_of_the_fewest_bytes_is_taken_as_counted_by_hand() -> None:
    rows, dim = 1024, 40
    for kept in (10, 3000, 5000, 20_000, 40_000):
        csr = 5 * kept + rows + 4 * rows // 16
        bitmap = 4 * kept + rows * dim // 8 + 4 * rows * dim // 512
        assert cost(Layout(rows, dim, kept).measured()).bytes == min(csr, bitmap, 4 * rows * dim)


def test_storage_is_sparse_and_reading_rows_never_makes_the_whole_table() -> None:
    values, mask = table(5000, 40, 4000)
    layout = Layout(5000, 40, 4000)
    packed = layout.pack(values, mask)
    assert packed["table.cells"].shape == (4000,)
    assert sum(tensor.untyped_storage().nbytes() for tensor in packed.values()) == cost(layout.measured()).bytes
    assert cost(packed).bytes < 0.04 * values.nbytes
    widest = 0

    class Widest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal widest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                widest = max(widest, out.numel())
            return out

    with Widest():
        layout.take(packed, torch.tensor([3, 4999]))
    assert widest <= 4000  # a row's window of the index, and the cells: never (V, D)


def test_a_budget_buys_as_many_cells_as_fit() -> None:
    def size(rows: int, dim: int, kept: int) -> int:
        return cost(Layout(rows, dim, kept).measured()).bytes

    for seed in range(8):
        rng = np.random.default_rng(seed)
        rows, dim = int(rng.integers(1, 400)), int(rng.integers(1, 50))
        sizes = [size(rows, dim, kept) for kept in range(1, rows * dim + 1, max(1, rows * dim // 47))]
        assert sizes == sorted(sizes), seed
        budget = int(rng.integers(size(rows, dim, 1), 5 * rows * dim + 10))
        kept = cells_within(rows, dim, budget)
        assert size(rows, dim, kept) <= budget, seed
        assert kept == rows * dim or size(rows, dim, kept + 1) > budget, seed


def test_a_budget_too_small_for_the_cells_that_must_be_kept_is_refused() -> None:
    least = cost(Layout(100, 8, 200).measured()).bytes
    assert cells_within(100, 8, least, 200) == 200
    with pytest.raises(ValueError, match=rf"budget of {least - 1} bytes .* the least is {least}; raise the budget"):
        cells_within(100, 8, least - 1, 200)


def test_the_largest_cells_are_kept_and_each_row_keeps_at_least_so_many() -> None:
    importance = np.array([[9.0, 8.0, 7.0], [1.0, 3.0, 2.0], [0.5, 0.5, 0.4]])
    assert top_cells(importance, 4).tolist() == [[True, True, True], [False, True, False], [False, False, False]]
    assert top_cells(importance, 4, 1).sum(1).tolist() == [2, 1, 1]
    assert top_cells(importance, 7, 2).tolist() == [[True, True, True], [False, True, True], [True, True, False]]
    assert top_cells(np.zeros((3, 2)), 3).ravel().tolist() == [True, True, True, False, False, False]
    with pytest.raises(ValueError, match="2 cells of each of 3 rows must be at most the 5 kept cells"):
        top_cells(importance, 5, 2)


def test_a_mask_that_does_not_fit_the_allocation_is_refused() -> None:
    dims = dict.fromkeys(SCHEMA.names, DIM)
    mask = np.packbits(np.ones((SCHEMA.num_rows, DIM), bool), axis=1)
    with pytest.raises(ValueError, match=r"'mask' must keep 3 cells, as the settings say, got 635;"):
        Masked(SCHEMA, DIM, Allocation("pep", dims, {"cells": 3}, {"mask": mask}))
    with pytest.raises(ValueError, match=r"must have the shape \(127, 1\), got \(126, 1\)"):
        Masked(SCHEMA, DIM, Allocation("pep", dims, {"cells": 3}, {"mask": mask[1:]}))
    with pytest.raises(ValueError, match=r"127 x 5 cells must keep 1 to 635 of them, got 0"):
        Masked(SCHEMA, DIM, Allocation("pep", dims, {"cells": 0}, {"mask": mask}))


def test_cells_that_are_not_kept_are_zero_and_are_not_trained() -> None:
    _, mask = table(SCHEMA.num_rows, DIM, 100)
    dims = dict.fromkeys(SCHEMA.names, DIM)
    allocation = Allocation("pep", dims, {"cells": 100}, {"mask": np.packbits(mask.numpy(), axis=1)})
    embedding = Masked(SCHEMA, DIM, allocation)
    ids = torch.tensor([[3, 4, 5, PADDING], [69, 49, 1, 2]], dtype=torch.int32)
    embedded = embedding(Lookup(SCHEMA)(ids))
    weight = embedding.table.weight.detach() * mask
    torch.testing.assert_close(embedded[:, 0], weight[[3, 69]])
    torch.testing.assert_close(embedded[1, 2], (weight[121] + weight[122]) / 2)
    embedded.square().sum().backward()
    assert not embedding.table.weight.grad.to_dense()[~mask].any()
