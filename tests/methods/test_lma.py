"""LMA's decisions: what is sampled, signed and paid for; its slots are tested in test_minhash_memory."""

import numpy as np
import pytest
import torch

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import cost, full_tables, spent
from pipeline.experiment.method import Method
from pipeline.methods import lma
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 700), Field("item", 90), Field("age", 3)))
DIM = 8
FULL = full_tables(SCHEMA, DIM).bytes


def draw_ids(rows: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([(rng.random(rows) ** 3 * n).astype(np.int32) for n in SCHEMA.cardinalities.tolist()], 1)


def signatures(schema: Schema, ids: np.ndarray) -> dict[str, np.ndarray]:
    return lma.find(problem("lma", schema, DIM, [[DIM]] * len(schema), training_ids=lambda: ids))


SIGNATURES = signatures(SCHEMA, draw_ids())


def given(**more) -> Evidence:
    return evidence("lma", SCHEMA, DIM, **{"arrays": SIGNATURES, **more})


def test_the_budget_covers_the_memory_the_signatures_and_the_numbers_of_signed_ids() -> None:
    allocation = lma.derive(given(budget=6001))
    kinds = spent(lma.build, SCHEMA, DIM, allocation).bytes_by_kind
    signed = int(allocation.arrays["signed"].sum())
    assert kinds == {"table": 4 * allocation.settings["size"], "signature": 4 * signed, "index": 4 * 3}
    assert sum(kinds.values()) == 6000
    assert cost(lma.build(SCHEMA, DIM, allocation).packed()).bytes_by_kind == kinds


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.9])
def test_signatures_take_at_most_their_share_and_go_to_the_values_that_occur_most(share: float) -> None:
    allocation = lma.derive(given(budget=6000), share=share)
    signed = allocation.arrays["signed"]
    assert allocation.arrays["signatures"].nbytes <= share * 6000
    if share == 0.9:  # all that have enough support
        assert signed.tolist() == SIGNATURES["signed"].tolist() and signed[0] < 700
    if share == 0.1:
        counts = [np.bincount(draw_ids()[:, f])[: signed[f]] for f in range(3)]
        assert 0 < signed[0] < SIGNATURES["signed"][0]
        assert max(count.min() for count in counts[:2]) <= 1.5 * min(count.min() for count in counts[:2])


def test_bits_grow_with_the_memory_so_that_all_of_it_is_read() -> None:
    """Two keys of 8 bits have 2 ** 16 combinations: enough for 2 ** 15 cells per slot."""
    small = lma.derive(given(budget=6000))
    assert small.arrays["signatures"].dtype == np.uint8
    one = lma.derive(given(budget=6000), power=1)  # 187 cells per slot; 2 ** 8 combinations are not twice as many
    assert one.arrays["signatures"].dtype == np.int16
    large = Schema((Field("user", 60_000),))
    arrays = {"hashes": np.zeros((1, 4), np.int32), "support": np.ones(1), "signed": np.array([1])}
    kept = [
        lma.derive(evidence("lma", large, DIM, arrays=arrays, budget=budget)).arrays["signatures"].dtype
        for budget in (4 * DIM * 2**15, 4 * DIM * (2**15 + 100))
    ]
    assert kept == [np.uint8, np.int16]
    assert lma.derive(given(budget=6000), bits=32).arrays["signatures"].nbytes <= 1500


def test_keys_that_are_cut_to_fewer_bits_keep_their_lowest_bits() -> None:
    allocation = lma.derive(given(budget=FULL // 2), share=0.9)
    assert np.array_equal(allocation.arrays["signatures"], SIGNATURES["hashes"] & 255)


def test_values_that_always_occur_together_have_the_same_vector() -> None:
    schema = Schema((Field("item", 50), Field("twin", 50)))
    ids = np.repeat(np.random.default_rng(0).permutation(500)[:, None] % 50, 2, axis=1).astype(np.int32)
    twins = evidence("lma", schema, DIM, arrays=signatures(schema, ids), budget=2000)
    embedding = lma.build(schema, DIM, lma.derive(twins, share=0.5))
    keys = embedding.keys(torch.arange(100), torch.tensor([50, 100], dtype=torch.int32))
    assert torch.equal(keys[:50], keys[50:]) and len(torch.unique(keys[:50], dim=0)) == 50


def test_options_that_make_no_sense_are_refused() -> None:
    for options, message in (
        ({"share": 1.5}, "share must be a number of at least 0 and below 1, got 1.5"),
        ({"keys": 0}, "keys must be a whole number of at least 1, got 0"),
        ({"bits": 12}, "bits must be one of 8, 16, 32 or null, got 12"),
    ):
        with pytest.raises(ValueError, match=f"method.options.lma: {message}"):
            Method.named("lma", options)
    with pytest.raises(ValueError, match="lma: power must be 1 to the number of keys, 4, got 5"):
        lma.derive(given(), power=5)
    with pytest.raises(ValueError, match="lma needs the ids of the training rows, got none"):
        lma.find(problem("lma", SCHEMA, DIM, [[DIM]] * 3))
