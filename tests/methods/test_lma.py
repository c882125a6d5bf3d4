"""LMA's decisions: what is sampled, signed and paid for; its slots are tested in test_signatures.py."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import cost, full_tables, prices, spent
from pipeline.methods import lma
from stages import search
from tests.project import Project

SCHEMA = Schema((Field("user", 700), Field("item", 90), Field("age", 3)))
DIM = 8
FULL = full_tables(SCHEMA, DIM).bytes


def draw_ids(rows: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([(rng.random(rows) ** 3 * n).astype(np.int32) for n in SCHEMA.cardinalities.tolist()], 1)


FOUND = lma.observe(SCHEMA, draw_ids(), np.random.default_rng(0))


def given(**more) -> Evidence:
    rows = ((DIM,),) * 3
    priced = prices(lma.build, SCHEMA, rows, DIM)
    return Evidence(SCHEMA, DIM, rows, priced, FULL, **{"found": FOUND, **more})


def test_the_budget_holds_memory_signatures_and_how_many_ids_have_one() -> None:
    allocation = lma.derive(given(budget=6001))
    kinds = spent(lma.build, SCHEMA, DIM, allocation).bytes_by_kind
    signed = int(allocation.arrays["signed"].sum())
    assert kinds == {"table": 4 * allocation.settings["size"], "signature": 4 * signed, "index": 4 * 3}
    assert sum(kinds.values()) == 6000
    assert cost(lma.build(SCHEMA, DIM, allocation).packed()).bytes_by_kind == kinds


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.9])
def test_signatures_take_no_more_than_their_share_and_go_to_values_that_occur_most(share: float) -> None:
    allocation = lma.derive(given(budget=6000), share=share)
    signed = allocation.arrays["signed"]
    assert allocation.arrays["signatures"].nbytes <= share * 6000
    if share == 0.9:  # all that have enough support
        assert signed.tolist() == FOUND["signed"].tolist() and signed[0] < 700
    if share == 0.1:
        counts = [np.bincount(draw_ids()[:, f])[: signed[f]] for f in range(3)]
        assert 0 < signed[0] < FOUND["signed"][0]
        assert max(count.min() for count in counts[:2]) <= 1.5 * min(count.min() for count in counts[:2])


def test_bits_grow_with_the_memory_so_that_none_of_it_lies_idle() -> None:
    """Two keys have 2 ** 16 combinations at 8 bits: enough for 2 ** 15 cells of a slot."""
    small = lma.derive(given(budget=6000))
    assert small.arrays["signatures"].dtype == np.uint8
    one = lma.derive(given(budget=6000), power=1)  # 187 cells of a slot, of which 2 ** 8 is not the double
    assert one.arrays["signatures"].dtype == np.int16
    large = Schema((Field("user", 60_000),))
    rows = ((DIM,),)
    found = {"hashes": np.zeros((1, 4), np.int32), "support": np.ones(1), "signed": np.array([1])}
    priced, full = prices(lma.build, large, rows, DIM), full_tables(large, DIM).bytes
    kept = [
        lma.derive(Evidence(large, DIM, rows, priced, full, found=found, budget=budget)).arrays["signatures"].dtype
        for budget in (4 * DIM * 2**15, 4 * DIM * (2**15 + 100))
    ]
    assert kept == [np.uint8, np.int16]
    assert lma.derive(given(budget=6000), bits=32).arrays["signatures"].nbytes <= 1500


def test_keys_that_are_cut_to_fewer_bits_are_their_lowest_ones() -> None:
    allocation = lma.derive(given(budget=FULL // 2), share=0.9)
    assert np.array_equal(allocation.arrays["signatures"], FOUND["hashes"] & 255)


def test_values_that_always_occur_together_have_the_same_vector() -> None:
    schema = Schema((Field("item", 50), Field("twin", 50)))
    ids = np.repeat(np.random.default_rng(0).permutation(500)[:, None] % 50, 2, axis=1).astype(np.int32)
    rows = ((DIM,),) * 2
    found = lma.observe(schema, ids, np.random.default_rng(0))
    evidence = Evidence(schema, DIM, rows, prices(lma.build, schema, rows, DIM), 3200, found=found, budget=2000)
    embedding = lma.build(schema, DIM, lma.derive(evidence, share=0.5))
    keys = embedding.keys(torch.arange(100), torch.tensor([50, 100], dtype=torch.int32))
    assert torch.equal(keys[:50], keys[50:]) and len(torch.unique(keys[:50], dim=0)) == 50


def test_only_rows_of_training_are_seen(planted: Project, tmp_path: Path) -> None:
    params = yaml.safe_load((planted.folder / "params.yaml").read_text())
    params["method"] = {"name": "lma", "options": {}}
    encoded = tmp_path / "encoded"
    shutil.copytree(planted.folder / "artifacts/encoded", encoded)
    schema = Schema.load(encoded / "schema.json")

    def found() -> object:
        return search.find(params, schema, tmp_path / "work", lambda *_: None, encoded).record["found"]

    before = found()
    for part, seen in (("val", False), ("test", False), ("arch", True), ("train", True)):
        ids = np.load(encoded / part / "ids.npy")
        np.save(encoded / part / "ids.npy", np.where(ids > 0, 1, ids))
        assert (found() != before) == seen, part
        before = found()


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"signatures must be from 0 to below 1, however: share=1\.5"):
        lma.derive(given(), share=1.5)
    with pytest.raises(ValueError, match="power, the keys that a slot looks at, must be 1 to keys=4, however: power=5"):
        lma.derive(given(), power=5)
    with pytest.raises(ValueError, match="keys, rows and support must be at least 1, however: keys=0"):
        lma.observe(SCHEMA, draw_ids(), np.random.default_rng(0), keys=0)
