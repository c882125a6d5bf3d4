"""Blocks of rows with several dimensions: lookups against plain indexing, and prices against the tables' bytes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost, spent
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.row_blocks import (
    BlockTables,
    allocate,
    block_rows,
    build,
    choice_prices,
    merged,
    padded,
    pick,
)
from pipeline.training.row_adam import RowAdam
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 50), Field("age", 3), Field("tags", 20, width=3)))
BLOCKS = {"user": ((10, 4), (15, 0), (25, 2)), "age": ((3, 1),), "tags": ((5, 2), (15, 0))}
DIM = 4


def draw_ids(rows: int = 64) -> Tensor:
    rng = np.random.default_rng(0)
    tags = np.stack([rng.permutation(20)[:3] for _ in range(rows)])
    tags[np.arange(3) >= rng.integers(1, 4, (rows, 1))] = PADDING
    columns = [rng.integers(0, 50, (rows, 1)), rng.integers(0, 3, (rows, 1)), tags]
    return torch.from_numpy(np.concatenate(columns, 1).astype(np.int32))


def tables(seed: int = 0) -> BlockTables:
    torch.manual_seed(seed)
    return BlockTables(SCHEMA, BLOCKS, DIM)


def vector(made: BlockTables, field: int, row: int) -> Tensor:
    """The vector of a value, by plain indexing of the packed parameters."""
    packed = made.packed()
    if field == 0 and row < 10:
        return packed["table.4"][row]
    if field == 0 and row < 25:
        return packed["table.shared"][0]
    if field == 0:
        return packed["table.2"][row - 25] @ packed["projection.2"][0]
    if field == 1:
        return packed["table.1"][row] @ packed["projection.1"][0]
    if row < 5:
        return packed["table.2"][25 + row] @ packed["projection.2"][1]
    return packed["table.shared"][1]


def test_every_row_has_the_dimension_and_the_matrix_of_its_block() -> None:
    made, ids = tables(), draw_ids()
    embedded = made(Lookup(SCHEMA)(ids))
    assert embedded.shape == (64, 3, DIM)
    for row, values in zip(embedded, ids.tolist(), strict=True):
        tags = [vector(made, 2, tag) for tag in values[2:] if tag != PADDING]
        expected = [vector(made, 0, values[0]), vector(made, 1, values[1]), torch.stack(tags).mean(0)]
        torch.testing.assert_close(row, torch.stack(expected))


def test_fields_of_one_block_are_plain_tables() -> None:
    dims = {"user": 2, "age": 1, "tags": 4}
    torch.manual_seed(0)
    plain = MixedTables(SCHEMA, dims, DIM)
    torch.manual_seed(0)
    made = build(SCHEMA, DIM, Allocation("nis", dims))
    occ = Lookup(SCHEMA)(draw_ids())
    assert torch.equal(made(occ), plain(occ))
    assert cost(made.packed()) == cost(plain.packed())


def test_a_step_on_a_batch_without_rows_of_some_dimension_does_not_change_its_table() -> None:
    schema = Schema((Field("user", 50),))
    made = BlockTables(schema, {"user": ((10, 4), (20, 2), (20, 0))}, DIM)
    optimizer = RowAdam([table.weight for table in made.tables.tables.values()])
    for ids in ([[3], [4]], [[45], [46]], [[12]]):
        before = {name: value.clone() for name, value in made.state_dict().items()}
        optimizer.zero_grad()
        made(Lookup(schema)(torch.tensor(ids, dtype=torch.int32))).square().sum().backward()
        optimizer.step()
        changed = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {3: {"tables.tables.4.weight"}, 12: {"tables.tables.2.weight"}}.get(ids[0][0], set())


@pytest.mark.parametrize(
    ("blocks", "wrong"),
    [
        (((10, 4),), "must add up to its 50 rows, got"),
        (((20, 0), (30, 0)), "not all 0, got"),
        (((20, 5), (30, 1)), "dims from 0 to dim=4"),
        (((50, 1), (0, 2)), "must have rows"),
    ],
)
def test_blocks_that_do_not_make_a_field_are_refused(blocks: tuple[tuple[int, int], ...], wrong: str) -> None:
    with pytest.raises(ValueError, match=f"field 'user' .*{wrong}"):
        BlockTables(SCHEMA, BLOCKS | {"user": blocks}, DIM)


def test_blocks_grow_by_the_ratio_and_none_is_too_small() -> None:
    schema = Schema((Field("a", 6400), Field("b", 700), Field("c", 40), Field("d", 1)))
    expected = [[100, 300, 1200, 4800], [44, 131, 525, 0], [40, 0, 0, 0], [1, 0, 0, 0]]
    assert block_rows(schema, 4, 4).tolist() == expected
    assert block_rows(schema, 1, 4).tolist() == [[6400], [700], [40], [1]]
    for wrong in ({"blocks": 0, "ratio": 4}, {"blocks": 3, "ratio": 1}):
        with pytest.raises(ValueError, match="at least one block, with a ratio above 1, got"):
            block_rows(schema, **wrong)


def test_neighbours_of_one_dimension_become_one_block() -> None:
    assert merged([1, 2, 3, 4], [8, 8, 2, 8]) == ((3, 8), (3, 2), (4, 8))
    assert merged([1, 2, 0, 0], [8, 8, 2, 0]) == ((3, 8),)


GIVEN = evidence("nis", SCHEMA, DIM)


def test_an_allocation_of_blocks_builds_them_again() -> None:
    made = allocate(GIVEN, [BLOCKS[name] for name in SCHEMA.names])
    assert made.dims == {"user": 4, "age": 1, "tags": 2}
    again = Allocation.from_dict(made.to_dict())
    assert again == made and set(again.settings["blocks"]) == {"user", "tags"}
    torch.manual_seed(0)
    occ = Lookup(SCHEMA)(draw_ids())
    assert torch.equal(build(SCHEMA, DIM, again)(occ), tables()(occ))


def test_prices_add_up_to_the_bytes_of_the_tables_for_every_choice() -> None:
    rows = np.array([[10, 15, 25], [3, 0, 0], [5, 15, 0]])
    every = [list(dims) for dims in itertools.product((0, 1, 2, 4), repeat=3)]
    choices = padded([every, every[:7], every])
    priced = choice_prices(rows, choices, DIM)
    assert (priced[1, 7:] == np.iinfo(np.int64).max).all()
    rng = np.random.default_rng(0)
    for _ in range(30):
        chosen = [int(rng.integers(len(offered))) for offered in (every, every[:7], every)]
        blocks = [merged(rows[f].tolist(), choices[f, n].tolist()) for f, n in enumerate(chosen)]
        expected = sum(int(priced[f, n]) for f, n in enumerate(chosen))
        if expected:  # not all fields dropped
            made = allocate(GIVEN, blocks)
            assert spent(build, SCHEMA, DIM, made).bytes == expected


def test_the_choice_within_a_budget_is_the_best_of_an_exhaustive_search() -> None:
    rows = np.array([[10, 15, 25], [3, 0, 0], [5, 15, 0]])
    choices = padded([[[4, 4, 4], [4, 2, 0], [2, 2, 2], [1, 1, 0]], [[4, 4, 4], [1, 1, 1]], [[4, 1, 0], [2, 2, 2]]])
    priced = choice_prices(rows, choices, DIM)
    scores = np.where(choices[:, :, 0] >= 0, np.random.default_rng(1).standard_normal(choices.shape[:2]), -np.inf)
    for budget in (400, 600, 900, 10_000):
        fitting = [
            chosen
            for chosen in itertools.product(range(4), range(2), range(2))
            if sum(int(priced[f, n]) for f, n in enumerate(chosen)) <= budget
        ]
        best = max(fitting, key=lambda chosen: sum(scores[f, n] for f, n in enumerate(chosen)))
        expected = [merged(rows[f].tolist(), choices[f, n].tolist()) for f, n in enumerate(best)]
        picked = pick(replace(GIVEN, budget=budget), rows, choices, scores)
        assert picked == allocate(GIVEN, expected)
    assert picked == pick(GIVEN, rows, choices, scores)
