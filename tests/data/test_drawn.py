"""Batches of whole queries, and the items that are drawn for them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.drawn import DrawnBatches
from pipeline.data.encoded import Encoded
from pipeline.data.split import Split
from tests.interactions import write_interactions


@pytest.fixture(scope="module", params=[3, 0], ids=["histories", "no histories"])
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = write_interactions(tmp_path_factory.mktemp("rows"), history=request.param)
    return Encoded.load(folder).split("train", "arch")


def keys_of(rows: np.ndarray) -> list[tuple[int, int]]:
    """User and item, which identify a row of the fixture."""
    return [(int(row[1]), int(row[2])) for row in rows]


def known_to(split: Split) -> dict[int, set[int]]:
    known: dict[int, set[int]] = {}
    for row in np.concatenate(split.ids):
        known.setdefault(int(row[1]), set()).add(int(row[2]))
    return known


@pytest.mark.parametrize("seed", [None, 7])
def test_an_epoch_has_every_row_once_and_whole_queries(rows: Split, seed: int | None) -> None:
    batches = DrawnBatches(rows, 40, seed)
    expected = sorted(keys_of(np.concatenate(rows.ids)))
    orders = []
    for _ in range(2):
        found = list(batches)
        assert len(found) == len(batches)
        orders.append([key for batch in found for key in keys_of(batch.ids.numpy())])
        assert sorted(orders[-1]) == expected
        for batch in found:
            assert batch.drawn is not None
            first, query = batch.drawn.first.tolist(), batch.drawn.query.tolist()
            assert query == sorted(query) and [query.index(q) for q in range(len(first))] == first
            users = batch.ids[:, 1].tolist()
            assert all(users[first[q]] == user for q, user in zip(query, users, strict=True))
            if not rows.interactions.columns.history:  # all rows of a user are one query
                assert len(set(users)) == len(first)
        sizes = [len(batch.ids) for batch in found]
        assert 20 <= np.mean(sizes) <= 40 and len(rows) == sum(sizes)
    assert (orders[0] == orders[1]) == (seed is None)


def test_a_query_with_more_rows_than_a_batch_stays_whole(rows: Split) -> None:
    batches = DrawnBatches(rows, 1, 0)
    sizes = [len(batch.drawn.first) for batch in batches]
    assert set(sizes) == {1} and len(sizes) == len(batches.starts) - 1


@pytest.mark.parametrize("options", [{"shared": 5}, {"own": 4}])
def test_the_same_is_drawn_after_going_on_in_the_middle_and_nothing_else_is_random(
    rows: Split, options: dict[str, int]
) -> None:
    whole = DrawnBatches(rows, 40, 3, **options)
    taken = [whole.take() for _ in range(2 * len(whole))]
    part = DrawnBatches(rows, 40, 3, **options)
    for _ in range(len(part) + 2):
        part.take()
    state = part.state_dict()
    resumed = DrawnBatches(rows, 40, 3, **options)
    resumed.load_state_dict(state)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for expected in taken[len(whole) + 2 :]:
        batch = resumed.take()
        assert torch.equal(batch.ids, expected.ids)
        assert all(torch.equal(a, b) for a, b in zip(batch.drawn, expected.drawn, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    other = DrawnBatches(rows, 40, 4, **options).take()
    assert other.drawn.numbers.shape[1:] == taken[0].drawn.numbers.shape[1:]
    assert other.drawn.numbers.tolist() != taken[0].drawn.numbers.tolist()


def test_known_items_are_those_of_the_rows_users(rows: Split) -> None:
    known = known_to(rows)
    for batch in DrawnBatches(rows, 40, 0, shared=2):
        pairs = {(int(q), int(i)) for q, i in batch.drawn.known.T}
        users = batch.ids[batch.drawn.first, 1].tolist()
        assert pairs == {(q, item) for q, user in enumerate(users) for item in known[user]}
    assert DrawnBatches(rows, 40, 0, shared=2, known=False).take().drawn.known.shape == (2, 0)


def test_only_items_with_rows_are_drawn_and_all_alike(rows: Split) -> None:
    batches = DrawnBatches(rows, 40, 0, shared=8)
    drawn = np.concatenate([batches.take().drawn.numbers.numpy() for _ in range(1500)])
    counts = np.bincount(drawn, minlength=20)
    assert counts[19] == 0  # cold
    expected = len(drawn) / 19
    assert np.square(counts[:19] - expected).sum() / expected < 45  # chi-squared of 18 degrees: 0.0004


def test_own_items_are_not_known_to_the_user_unless_nearly_all_are(rows: Split) -> None:
    known = known_to(rows)
    seen = set()
    for batch in DrawnBatches(rows, 40, 0, own=6):
        assert batch.drawn.numbers.shape == (len(batch.ids), 6)
        for user, items in zip(batch.ids[:, 1].tolist(), batch.drawn.numbers.tolist(), strict=True):
            assert not known[user] & set(items)
            seen.update(items)
    assert seen == set(range(19))


def test_a_user_who_knows_all_items_gets_them_all_the_same(tmp_path: Path) -> None:
    """Of two items, one is cold."""
    batches = DrawnBatches(Encoded.load(write_interactions(tmp_path, users=3, items=2)).split("train"), 40, 0, own=3)
    assert batches.take().drawn.numbers.tolist() == [[0, 0, 0]] * 3


@pytest.mark.parametrize("shared", [19, 500])
def test_as_many_as_there_are_means_all_each_once(rows: Split, shared: int) -> None:
    batches = DrawnBatches(rows, 40, 0, shared=shared)
    assert batches.take().drawn.numbers.tolist() == list(range(19))
    assert batches.chances[:19].tolist() == [0.0] * 19
    assert float(batches.chances[19]) < -80  # never a candidate


@pytest.mark.parametrize(("shared", "with_batch"), [(6, False), (0, True), (6, True)])
def test_chances_are_those_of_an_item_to_be_a_candidate(rows: Split, shared: int, with_batch: bool) -> None:
    batches = DrawnBatches(rows, 30, 0, shared=shared, with_batch=with_batch)
    times, number = np.zeros(20), 300 * len(batches)
    for _ in range(number):
        batch = batches.take()
        own = batch.ids[:, 2].numpy() if with_batch else np.zeros(0, np.int64)
        times[np.union1d(own, batch.drawn.numbers.numpy()).astype(int)] += 1
    chances = batches.chances.exp().numpy()
    np.testing.assert_allclose(chances[:19], times[:19] / number, atol=0.05)
    assert times[19] == 0 and chances[19] < 1e-30


def test_a_single_batch_has_every_item_of_its_rows(rows: Split) -> None:
    batches = DrawnBatches(rows, len(rows), 0, with_batch=True)
    assert len(batches) == 1 and batches.chances[:19].tolist() == [0.0] * 19 and float(batches.chances[19]) < -80


def test_labelled_rows_no_rows_and_an_empty_batch_are_refused(rows: Split) -> None:
    labelled = Split((np.zeros((5, 2), np.int32),), (np.ones(5, np.uint8),))
    with pytest.raises(ValueError, match="the rows must be interactions of users and items"):
        DrawnBatches(labelled, 2)
    with pytest.raises(ValueError, match="there are no rows"):
        DrawnBatches(rows.head(0), 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        DrawnBatches(rows, 0)


def test_a_thinned_split_still_knows_what_its_users_know(rows: Split) -> None:
    known = known_to(rows)
    thin = rows.thinned(1 / 3)
    batches = DrawnBatches(thin, 20, 0, own=4)
    assert sum(len(batch.ids) for batch in batches) == len(thin)
    for batch in batches:
        for user, items in zip(batch.ids[:, 1].tolist(), batch.drawn.numbers.tolist(), strict=True):
            assert not known[user] & set(items)


def test_pairs_are_those_of_the_rows_that_are_there_now(tmp_path: Path) -> None:
    first = Encoded.load(write_interactions(tmp_path, seed=0)).split("train").interactions.pairs("train")
    shutil.rmtree(tmp_path)
    again = Encoded.load(write_interactions(tmp_path, seed=1)).split("train")
    keys = set(zip(again.interactions.pairs("train").users, again.interactions.pairs("train").items, strict=True))
    assert keys == {(row[1], row[2]) for row in again.ids[0].tolist()}
    assert keys != set(zip(first.users, first.items, strict=True))


def test_items_that_users_know_from_earlier_parts_are_known_and_not_drawn_for_them(tmp_path: Path) -> None:
    encoded = Encoded.load(write_interactions(tmp_path))
    known = known_to(encoded.split("train", "arch"))
    batches = DrawnBatches(encoded.split("arch"), 1000, 0, shared=5)
    batch = batches.take()
    users = batch.ids[batch.drawn.first, 1].tolist()
    masked: dict[int, set[int]] = {}
    for query, item in batch.drawn.known.T.tolist():
        masked.setdefault(users[query], set()).add(item)
    assert masked == {user: known[user] for user in set(users)}
    own = DrawnBatches(encoded.split("arch"), 1000, 0, own=3, known=False).take()
    for user, items in zip(own.ids[:, 1].tolist(), own.drawn.numbers.tolist(), strict=True):
        assert not known[user] & set(items)


def test_the_bounds_of_batches_count_rows(rows: Split) -> None:
    batches = DrawnBatches(rows, 40)
    assert np.diff(batches.bounds).tolist() == [len(batch.ids) for batch in batches]
