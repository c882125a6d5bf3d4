"""LMA's claims about its slots (Desai et al. 2021), which the published generator of min-hashes does not meet."""

from collections import Counter
from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch

from pipeline.allocation.evidence import Problem
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.minhash_memory import MinHashMemory, Signatures, cut, find, permutation
from tests.contracts import WORD, splitmix64

ROWS = 4000
PAIRS = 60  # of sets, for each Jaccard similarity
MEMORY = 2**22


def signatures(schema: Schema, ids: np.ndarray, seed: int = 0, **options: int) -> Signatures:
    one_each, free = ((1,),) * len(schema), np.zeros((len(schema), 1), np.int64)  # neither matters here
    asked = {"candidates": one_each, "prices": free, "full_bytes": 1, "seed": seed, "training_ids": lambda: ids}
    return Signatures(**find(Problem(method="lma", schema=schema, dim=1, **asked), **options))


def memory_of(schema: Schema, known: Signatures, dim: int, bits: type, power: int, **more) -> MinHashMemory:
    arrays = {"signatures": known.hashes.astype(bits), "signed": known.signed}
    return MinHashMemory(schema, dim, **{"size": MEMORY, "power": power, "seed": 7, "sign": False, **arrays, **more})


def cells_of(memory: MinHashMemory, schema: Schema) -> torch.Tensor:
    """(V, d) cells of all values of all fields."""
    ends = torch.from_numpy(np.cumsum(schema.cardinalities)).int()
    keys = memory.keys(torch.arange(schema.num_rows), ends)
    return memory.hash(keys.index_select(1, memory.choice_of_slot), len(memory.memory.weight))


def pairs_of_sets(sizes: list[tuple[int, int, int]]) -> np.ndarray:
    """Ids (ROWS, sets), 1 where a row is in a set: of each (|A|, |B|, |A and B|) there are `PAIRS` pairs A, B."""
    rng = np.random.default_rng(0)
    columns = []
    for a, b, both in sizes:
        for _ in range(PAIRS):
            rows = rng.permutation(ROWS)
            first, second = np.zeros(ROWS, np.int32), np.zeros(ROWS, np.int32)
            first[rows[:a]] = 1
            second[rows[a - both : a - both + b]] = 1
            columns += [first, second]
    return np.stack(columns, 1)


def shares(sizes: list[tuple[int, int, int]], dim: int, keys: int, bits: type, power: int) -> np.ndarray:
    """(len(sizes), PAIRS) the fraction of slots that the two sets of a pair share."""
    ids = pairs_of_sets(sizes)
    schema = Schema(tuple(Field(f"set-{i}", 2) for i in range(ids.shape[1])))
    known = signatures(schema, ids, seed=1, rows=ROWS, support=1, keys=keys)
    cells = cells_of(memory_of(schema, known, dim, bits, power), schema)[1::2]
    return (cells[::2] == cells[1::2]).double().mean(1).view(len(sizes), PAIRS).numpy()


def moments(p: float, keys: int, power: int) -> tuple[float, float, float]:
    """Mean, variance and fourth central moment of C(n, H) / C(k, H) for n binomial (k, p)."""
    odds = np.array([comb(keys, n) * p**n * (1 - p) ** (keys - n) for n in range(keys + 1)])
    share = np.array([comb(n, power) / comb(keys, power) for n in range(keys + 1)])
    mean = float(odds @ share)
    return mean, float(odds @ (share - mean) ** 2), float(odds @ (share - mean) ** 4)


@pytest.mark.parametrize(("keys", "bits", "power"), [(4, np.uint8, 1), (4, np.uint8, 2), (8, np.int16, 3)])
@pytest.mark.parametrize("size", [10, ROWS // 100, ROWS // 2])
def test_two_values_share_their_jaccard_similarity_to_the_power_of_h(
    size: int, keys: int, bits: type, power: int
) -> None:
    similarities = (0.0, 0.2, 0.5, 0.8)
    both = [round(2 * size * j / (1 + j)) for j in similarities]
    dim = comb(keys, power) * 4
    measured = shares([(size, size, c) for c in both], dim, keys, bits, power)
    for c, share in zip(both, measured, strict=True):
        j = c / (2 * size - c)
        p = j + (1 - j) / 2 ** (8 * np.dtype(bits).itemsize)
        mean, variance, fourth = moments(p, keys, power)
        assert mean == pytest.approx(p**power)
        assert abs(share.mean() - mean) <= 3 * (variance / PAIRS) ** 0.5 + 1 / dim / PAIRS
        error = ((fourth - variance**2) / PAIRS) ** 0.5  # of a variance that is estimated from so many draws
        assert abs(share.var() - variance) <= 4 * error + 1 / dim / PAIRS


def test_sets_of_very_different_size_share_no_more_than_their_similarity() -> None:
    sizes = [(2000, 400, 400), (2000, 1000, 1000), (2000, 40, 0), (2000, 2000, 0)]
    measured = shares(sizes, 32, keys=8, bits=np.int16, power=1)
    for (a, b, both), share in zip(sizes, measured, strict=True):
        j = both / (a + b - both)
        assert abs(share.mean() - j) <= 3 * (j * (1 - j) / 8 / PAIRS) ** 0.5 + 0.001


def test_with_few_bits_disjoint_values_share_slots_by_chance_as_often_as_calculated() -> None:
    """2 ** (-b H): one key of 8 bits gives 1 / 256; what two keys give is too rare to be measured here."""
    sizes = [(10, 10, 0)] * 8  # small, that many different rows are the least
    one = shares(sizes, 32, keys=8, bits=np.uint8, power=1).mean()
    assert abs(one - 1 / 256) <= 3 * (1 / 256 / (8 * 8 * PAIRS)) ** 0.5
    assert shares(sizes, 28, keys=8, bits=np.uint8, power=2).mean() < 0.001


def logged(rows: int = 3000, seed: int = 0) -> tuple[Schema, np.ndarray]:
    """A schema with a bag, and ids of falling frequency."""
    schema = Schema((Field("user", 300), Field("item", 80), Field("tags", 12, width=2)))
    rng = np.random.default_rng(seed)
    columns = [(rng.random(rows) ** 3 * n).astype(np.int32) for n in (300, 80)]
    tags = np.stack([rng.permutation(12)[:2] for _ in range(rows)]).astype(np.int32)
    tags[rng.random(rows) < 0.5, 1] = PADDING
    return schema, np.concatenate([np.stack(columns, 1), tags], 1)


def test_a_key_is_the_least_hash_of_the_rows_in_which_the_value_occurs() -> None:
    """Values of the same rows have the same key; those of one field, which never share a row, have different keys."""
    schema = Schema((Field("user", 40), Field("twin", 40), Field("tags", 41, width=2)))
    users = np.random.default_rng(0).permutation(400) % 40
    ids = np.stack([users, users, users, np.where(users % 2, users, PADDING)], 1).astype(np.int32)
    known = signatures(schema, ids, rows=1000, support=3, keys=4)
    assert known.signed.tolist() == [40, 40, 40]  # tag 40 is in no row
    assert np.array_equal(known.hashes[:40], known.hashes[40:80])
    assert np.array_equal(known.hashes[:40], known.hashes[80:])
    assert all(len(set(column)) == 40 for column in known.hashes[:40].T)
    assert known.support[:40].tolist() == [10] * 40


def test_the_first_ids_are_signed_as_many_as_values_have_enough_support() -> None:
    schema, ids = logged()
    known = signatures(schema, ids, rows=10**6, support=12, keys=2)
    counts = [np.bincount(ids[:, f], minlength=n) for f, n in ((0, 300), (1, 80))]
    assert known.signed[:2].tolist() == [int((count >= 12).sum()) for count in counts]
    assert known.support[: known.signed[0]].tolist() == counts[0][: known.signed[0]].tolist()
    assert 0 < known.signed[0] < 300


def test_a_signed_value_that_does_not_occur_in_the_sample_is_similar_to_no_other() -> None:
    schema = Schema((Field("user", 4), Field("item", 4)))
    ids = np.array([[1, 1], [1, 1], [2, 1], [2, 2]], np.int32)
    known = signatures(schema, ids, rows=10, support=1, keys=3)
    assert known.signed.tolist() == [2, 2] and known.support.tolist() == [0, 2, 0, 3]
    assert not (known.hashes[0] == known.hashes[2]).any()


def test_as_many_rows_are_sampled_as_set_and_equal_seeds_sample_the_same() -> None:
    schema, ids = logged()
    one, two, other = (signatures(schema, ids, seed=seed, rows=500, support=1, keys=4) for seed in (0, 0, 1))
    first = one.support[: one.signed[0]].sum()
    assert first <= 500 and one.support[-one.signed[2] :].sum() > 500  # bags have more values than rows
    assert np.array_equal(one.hashes, two.hashes) and not np.array_equal(one.hashes[:5], other.hashes[:5])


def test_every_cell_is_the_hash_of_its_slot_s_keys_or_without_a_signature_of_field_and_id() -> None:
    schema, ids = logged()
    known = signatures(schema, ids, rows=2000, support=9, keys=3)
    memory = memory_of(schema, known, 5, np.uint8, power=2, size=1000)
    cells = cells_of(memory, schema)
    assert memory.choices.tolist() == [[0, 1], [0, 2], [1, 2]]
    salts, factors, shifts = (x.tolist() for x in (memory.salts, memory.hash.factors, memory.hash.shifts))
    starts = np.cumsum(known.signed) - known.signed
    for field, first in enumerate(schema.first_rows.tolist()):
        for value in (0, 1, int(known.signed[field]) - 1, schema.fields[field].cardinality - 1):
            for i in range(5):
                if value < known.signed[field]:
                    a, b = memory.choices[i % 3].tolist()
                    keys = (known.hashes[starts[field] + value] & 255).tolist()
                    inner = splitmix64((salts[1] + keys[a]) % WORD)
                    key = splitmix64(((inner ^ (salts[2] % WORD)) + keys[b]) % WORD)
                else:
                    key = splitmix64((first + value + salts[0]) % WORD)
                expected = ((key * factors[i] + shifts[i]) % WORD >> 33) * 1000 >> 31
                assert int(cells[first + value, i]) == expected


@pytest.mark.parametrize("sign", [False, True])
def test_the_vectors_are_the_numbers_in_the_cells(sign: bool) -> None:
    schema, ids = logged()
    known = signatures(schema, ids, rows=2000, support=9, keys=3)
    memory = memory_of(schema, known, 6, np.int16, power=1, size=300, sign=sign)
    cells = cells_of(memory, schema)
    values = memory.memory.weight[cells]
    if sign:
        keys = memory.keys(torch.arange(392), torch.tensor([300, 380, 392], dtype=torch.int32))
        values = values * memory.hash.signs(keys.index_select(1, memory.choice_of_slot), torch.float32)
    batch = torch.from_numpy(ids[:50])
    embedded = memory(Lookup(schema)(batch))
    torch.testing.assert_close(embedded[:, 0], values[batch[:, 0].long()])
    torch.testing.assert_close(embedded[:, 1], values[300 + batch[:, 1].long()])
    one = batch[:, 3] == PADDING
    torch.testing.assert_close(embedded[one, 2], values[380 + batch[one, 2].long()])
    both = (values[380 + batch[~one, 2].long()] + values[380 + batch[~one, 3].long()]) / 2
    torch.testing.assert_close(embedded[~one, 2], both)
    assert len(set(torch.sign(values / memory.memory.weight[cells]).flatten().tolist())) == (2 if sign else 1)


def test_nearly_all_slots_of_a_value_have_different_cells() -> None:
    """The published hash leaves a frequent value 11 to 28 distinct cells of 256."""
    schema, ids = logged()
    known = signatures(schema, ids, rows=3000, support=3, keys=4)
    cells = cells_of(memory_of(schema, known, 256, np.uint8, power=2), schema)
    assert min(len(set(row)) for row in cells.tolist()) >= 0.98 * 256


def test_cells_of_the_memory_are_read_as_often_as_by_chance() -> None:
    schema = Schema((Field("user", 4000),))
    ids = (np.random.default_rng(0).permutation(40_000) % 4000).astype(np.int32)[:, None]
    known = signatures(schema, ids, rows=10**6, support=1, keys=4)
    cells = cells_of(memory_of(schema, known, 12, np.int16, power=2, size=3000), schema)
    loads = torch.bincount(cells.flatten(), minlength=3000).double()
    chi_square = float(((loads - 16) ** 2 / 16).sum())
    assert abs(chi_square - 2999) < 4 * (2 * 2999) ** 0.5


def test_signatures_that_do_not_fit_are_cut_from_the_values_that_occur_least() -> None:
    hashes = np.arange(18, dtype=np.int32).reshape(9, 2)
    known = Signatures(hashes, np.array([0, 9, 7, 3, 2, 8, 3, 2, 2]), np.array([5, 4]))
    assert cut(known, 9) is known
    few = cut(known, 5)  # 9, 7, 3, 8, 3
    assert few.signed.tolist() == [3, 2]
    assert few.hashes[:, 0].tolist() == [0, 2, 4, 10, 12]  # the first of each field
    assert cut(known, 4).signed.tolist() == [2, 1]  # neither of the two that occur 3 times
    assert cut(known, 0).hashes.shape == (0, 2)


def test_the_null_control_moves_every_signature_to_another_value_of_about_the_same_frequency() -> None:
    signed = np.array([300, 2, 5, 0, 1, 3])
    moved = permutation(signed, np.random.default_rng(0))
    ends = np.cumsum(signed)
    assert sorted(moved.tolist()) == list(range(311))
    stays = {0, 300, 301, 302, 307, 308}  # unknown values, and the only other value of a field of two
    assert {i for i, m in enumerate(moved) if i == m} == stays
    for end, number in zip(ends, signed, strict=True):
        for rank in range(1, number):
            other = moved[end - number + rank] - (end - number)
            assert 0 < other < number and (other + 1) / (rank + 1) < 2.1 and (rank + 1) / (other + 1) < 2.1


def test_the_null_control_keeps_all_signatures_of_a_field_but_not_which_values_share() -> None:
    schema = Schema((Field("user", 60), Field("twin", 60)))
    users = np.random.default_rng(0).permutation(600) % 60
    ids = np.stack([users, users], 1).astype(np.int32)
    plain = signatures(schema, ids, rows=10**6, support=2, keys=4)
    null = replace(plain, hashes=plain.hashes[permutation(plain.signed, np.random.default_rng(0))])
    assert np.array_equal(plain.hashes[:60], plain.hashes[60:])
    for half in (slice(60), slice(60, 120)):
        assert Counter(map(tuple, plain.hashes[half].tolist())) == Counter(map(tuple, null.hashes[half].tolist()))
    assert (null.hashes[1:60] == null.hashes[61:]).all(1).mean() < 0.2  # twins are no longer alike


def test_signatures_of_another_schema_are_refused() -> None:
    schema, _ = logged()
    known = Signatures(np.zeros((5, 2), np.int32), np.ones(5), np.array([2, 2, 2]))
    with pytest.raises(ValueError, match=r"\['user', 'item', 'tags'\], and add up to 5 signatures, got \[2, 2, 2\]"):
        memory_of(schema, known, 4, np.uint8, 1)
    fitting = Signatures(np.zeros((6, 2), np.int32), np.ones(6), np.array([2, 2, 2]))
    with pytest.raises(ValueError, match="lma: power must be 1 to the number of keys, 2, got 3"):
        memory_of(schema, fitting, 4, np.uint8, 3)
