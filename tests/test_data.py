import itertools

import numpy as np
import pytest
import torch

from pipeline.data.batches import BLOCK_ROWS, Batches
from pipeline.data.split import Split


def split(*sizes: int) -> Split:
    starts = np.cumsum([0, *sizes])
    ids = tuple(np.arange(a, b, dtype=np.int32)[:, None].repeat(2, 1) for a, b in itertools.pairwise(starts))
    return Split(ids, tuple((i[:, 0] % 2).astype(np.uint8) for i in ids))


@pytest.mark.parametrize("windows", [1, 1024])
def test_an_epoch_is_a_permutation_and_the_next_another(windows: int, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.data.WINDOW_BLOCKS", windows)
    data = split(5 * BLOCK_ROWS + 7, 300)
    batches = Batches(data, 100, seed=3)
    epochs = [torch.cat([ids[:, 0] for ids, _ in batches]) for _ in range(2)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(len(data), dtype=torch.int32))
    assert not torch.equal(*epochs)
    for ids, labels in batches:
        assert torch.equal(labels, (ids[:, 0] % 2).float())


def test_without_a_seed_rows_come_in_order() -> None:
    assert torch.cat([ids[:, 0] for ids, _ in Batches(split(70, 33), 10)]).tolist() == list(range(103))


def test_batch_sizes_differ_by_at_most_one() -> None:
    sizes = {len(labels) for _, labels in Batches(split(1001), 100, seed=0)}
    assert sizes == {91}


@pytest.mark.parametrize("taken", [1, 5, 10, 11, 19])
def test_batches_go_on_where_they_stopped(taken: int) -> None:
    whole, broken = Batches(split(1000), 100, seed=1), Batches(split(1000), 100, seed=1)
    for _ in range(taken):
        whole.take(), broken.take()
    again = Batches(split(1000), 100, seed=1)
    again.load_state_dict(broken.state_dict())
    for _ in range(12):
        assert torch.equal(whole.take()[0], again.take()[0])


def test_nothing_to_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        Batches(split(0), 10)


@pytest.mark.parametrize("name", ["ids", "labels"])
def test_arrays_that_are_no_whole_part_are_refused_by_file(tmp_path, name):
    arrays = {"ids": np.zeros((5, 2), np.int32), "labels": np.zeros(5, np.uint8)}
    (tmp_path / "train").mkdir()
    for wrong, named in (
        (arrays[name][:4], r"train: \d rows in ids.npy, \d in labels.npy; encode the data again"),
        (arrays[name][..., None], rf"{name}.npy: must have \d dimensions, however array.shape="),
    ):
        for key, array in {**arrays, name: wrong}.items():
            np.save(tmp_path / "train" / f"{key}.npy", array)
        with pytest.raises(ValueError, match=named):
            Split.load(tmp_path, "train")


def test_a_share_of_the_rows_is_every_kth() -> None:
    ids, labels = np.arange(20, dtype=np.int32).reshape(10, 2), np.arange(10, dtype=np.uint8) % 2
    thin = Split((ids,), (labels,)).thinned(0.25)
    assert thin.ids[0].tolist() == ids[[0, 4, 8]].tolist() and thin.labels[0].tolist() == labels[[0, 4, 8]].tolist()
    for share in (0.3, 0, 2):
        with pytest.raises(ValueError, match="must be 1/k"):
            Split((ids,), (labels,)).thinned(share)
