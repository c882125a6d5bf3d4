"""Batches of rows: every epoch another permutation, resumed where it stopped."""

import itertools

import numpy as np
import pytest
import torch

from pipeline.data import batches as module
from pipeline.data.batches import BLOCK_ROWS, Batches
from pipeline.data.split import Split


def split(*sizes: int) -> Split:
    starts = np.cumsum([0, *sizes])
    ids = tuple(np.arange(a, b, dtype=np.int32)[:, None].repeat(2, 1) for a, b in itertools.pairwise(starts))
    return Split(ids, tuple((i[:, 0] % 2).astype(np.uint8) for i in ids))


@pytest.mark.parametrize("windows", [1, 1024])
def test_every_epoch_is_another_permutation(windows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_BLOCKS", windows)
    rows = split(5 * BLOCK_ROWS + 7, 300)
    batches = Batches(rows, 100, seed=3)
    epochs = [torch.cat([batch.ids[:, 0] for batch in batches]) for _ in range(2)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(len(rows), dtype=torch.int32))
    assert not torch.equal(*epochs)
    for ids, labels, _ in batches:
        assert torch.equal(labels, (ids[:, 0] % 2).float())


def test_without_a_seed_rows_come_in_order() -> None:
    assert torch.cat([batch.ids[:, 0] for batch in Batches(split(70, 33), 10)]).tolist() == list(range(103))


def test_labels_of_any_number_arrive_as_they_are() -> None:
    numbers = np.array([-1.5, 0, 3e9, 0.25, 7], np.float32)
    rows = Split((np.zeros((5, 2), np.int32),), (numbers,))
    (batch,) = Batches(rows, 5)
    assert batch.labels.dtype == torch.float32 and batch.labels.tolist() == numbers.tolist()


def test_batch_sizes_differ_by_at_most_one() -> None:
    sizes = {len(labels) for _, labels, _ in Batches(split(1001), 100, seed=0)}
    assert sizes == {91}


def test_batches_go_on_where_they_stopped() -> None:
    for taken in (1, 5, 10, 11, 19):
        whole, broken = Batches(split(1000), 100, seed=1), Batches(split(1000), 100, seed=1)
        for _ in range(taken):
            whole.take(), broken.take()
        again = Batches(split(1000), 100, seed=1)
        again.load_state_dict(broken.state_dict())
        for _ in range(12):
            assert torch.equal(whole.take()[0], again.take()[0]), taken


def test_batches_need_a_row_and_a_size() -> None:
    with pytest.raises(ValueError, match="there are no rows to make batches of"):
        Batches(split(0), 10)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Batches(split(5), 0)
