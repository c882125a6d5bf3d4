"""Which cells are kept, how many of them a budget buys, and that what is stored gives back what was kept."""

import numpy as np
import pytest
import torch

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.bitmap import Bitmap
from pipeline.embeddings.cost import cost
from pipeline.embeddings.kept_cells import Layout, Masked, cells_within, top_cells

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("tags", 7, width=2)))
DIM = 5  # so that rows do not begin with a byte


def table(rows: int, dim: int, kept: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows * dim, dtype=torch.bool)
    mask[torch.randperm(rows * dim, generator=generator)[:kept]] = True
    return torch.randn(rows, dim, generator=generator), mask.view(rows, dim)


@pytest.mark.parametrize("bits", [1, 63, 64, 65, 511, 512, 513, 2000])
def test_a_bitmap_knows_its_bits_and_how_many_ones_come_before_each(bits: int) -> None:
    ones = np.random.default_rng(bits).random(bits) < 0.6
    bitmap, places = Bitmap.of(ones), torch.arange(bits)
    assert bitmap.at(places).tolist() == ones.tolist()
    assert bitmap.rank(places).tolist() == (np.cumsum(ones) - ones).tolist()
    assert Bitmap.of(np.ones(bits, bool)).rank(places).tolist() == list(range(bits))
    form = {"bits": bitmap.words, "before": bitmap.before}
    assert {name: (len(tensor), tensor.dtype) for name, tensor in form.items()} == Bitmap.form(bits)


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
def test_rows_come_back_from_what_is_stored_whatever_its_form(rows: int, dim: int, kept: int, form: str) -> None:
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


def test_the_form_is_the_one_of_fewest_bytes_counted_by_hand() -> None:
    rows, dim = 1024, 40
    for kept in (10, 3000, 5000, 20_000, 40_000):
        csr = 5 * kept + rows + 4 * rows // 16
        bitmap = 4 * kept + rows * dim // 8 + 4 * rows * dim // 512
        assert cost(Layout(rows, dim, kept).measured()).bytes == min(csr, bitmap, 4 * rows * dim)


def test_what_is_stored_is_sparse_the_table_is_nowhere_in_it() -> None:
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


@pytest.mark.parametrize("seed", range(10))
def test_a_budget_buys_all_the_cells_that_fit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, dim = int(rng.integers(1, 400)), int(rng.integers(1, 50))
    sizes = [
        cost(Layout(rows, dim, kept).measured()).bytes for kept in range(1, rows * dim + 1, max(1, rows * dim // 97))
    ]
    assert sizes == sorted(sizes)
    budget = int(rng.integers(cost(Layout(rows, dim, 1).measured()).bytes, 5 * rows * dim + 10))
    kept = cells_within(rows, dim, budget)
    assert cost(Layout(rows, dim, kept).measured()).bytes <= budget
    assert kept == rows * dim or cost(Layout(rows, dim, kept + 1).measured()).bytes > budget


def test_a_budget_without_room_for_the_cells_that_have_to_be_kept_is_refused() -> None:
    least = cost(Layout(100, 8, 200).measured()).bytes
    assert cells_within(100, 8, least, 200) == 200
    with pytest.raises(ValueError, match=rf"budget of {least - 1} bytes: the least is {least}; raise the budget"):
        cells_within(100, 8, least - 1, 200)


def test_the_largest_cells_are_kept_and_of_each_row_so_many_at_least() -> None:
    importance = np.array([[9.0, 8.0, 7.0], [1.0, 3.0, 2.0], [0.5, 0.5, 0.4]])
    assert top_cells(importance, 4).tolist() == [[True, True, True], [False, True, False], [False, False, False]]
    assert top_cells(importance, 4, 1).sum(1).tolist() == [2, 1, 1]
    assert top_cells(importance, 7, 2).tolist() == [[True, True, True], [False, True, True], [True, True, False]]
    assert top_cells(np.zeros((3, 2)), 3).ravel().tolist() == [True, True, True, False, False, False]
    with pytest.raises(ValueError, match="2 cells of each of 3 rows are more than the 5"):
        top_cells(importance, 5, 2)


def test_a_mask_that_is_not_the_allocation_s_is_refused() -> None:
    dims = dict.fromkeys(SCHEMA.names, DIM)
    mask = np.packbits(np.ones((SCHEMA.num_rows, DIM), bool), axis=1)
    with pytest.raises(ValueError, match=r"'mask' keeps 635 cells, however cells=3;"):
        Masked(SCHEMA, DIM, Allocation("pep", dims, {"cells": 3}, {"mask": mask}))
    with pytest.raises(ValueError, match=r"must have the shape \(127, 1\), however octets.shape=\(126, 1\)"):
        Masked(SCHEMA, DIM, Allocation("pep", dims, {"cells": 3}, {"mask": mask[1:]}))
    with pytest.raises(ValueError, match=r"127 x 5 cells cannot keep 0 of them; keep 1 to 635"):
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
