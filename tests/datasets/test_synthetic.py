"""The planted data: what is known of them is true."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.datasets import synthetic

RANKS = {name: rank for name, (_, _, rank) in synthetic.FIELDS.items()}


def test_halving_any_rank_costs_the_same_share_of_the_logit() -> None:
    """All coordinates are standard normal, so a pair of fields has as much variance as coordinates in common."""

    def variance(ranks: dict[str, int]) -> int:
        values = list(ranks.values())
        return sum(min(a, b) for i, a in enumerate(values) for b in values[i + 1 :])

    lost = [1 - variance(RANKS | {name: r // 2}) / variance(RANKS) for name, r in RANKS.items() if r > 1]
    assert lost == pytest.approx([0.065] * len(lost), abs=0.0005)


def test_the_logit_is_the_sum_of_inner_products_of_vectors_of_the_planted_ranks() -> None:
    # No column shows the vectors, so the test looks into the module.
    world = synthetic._World(0, exponent=0.7, scale=2.0, click_rate=0.3)
    drawn = world._draw(50, np.random.default_rng(1))
    for name, rank in RANKS.items():
        assert np.linalg.matrix_rank(world.vectors[name]) == rank
    expected = np.empty(50)
    for row in range(50):
        vectors = []
        for name, values in drawn.items():
            numbers = np.atleast_1d(values[row])
            vectors.append(world.vectors[name][numbers[numbers >= 0]].mean(0))
        pairs = sum(a @ b for i, a in enumerate(vectors) for b in vectors[i + 1 :])
        expected[row] = pairs * world.factor + world.shift
    np.testing.assert_allclose(world._logits(drawn), expected, rtol=1e-10)


def test_what_is_read_is_what_is_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BATCH_ROWS", 4_000)
    source = synthetic.read(Path("nowhere"), rows=10_000, seed=3, click_rate=0.25)
    assert source.facts["ranks"] == RANKS and source.facts["copies"] == {"item_copy": "item"}
    batches = list(source.batches)
    table = pa.Table.from_batches(batches)
    assert [batch.num_rows for batch in batches] == [4_000, 4_000, 2_000]
    assert table["item"].equals(table["item_copy"])
    labels, chance = table["label"].to_numpy(), table["oracle"].to_numpy()
    assert labels.mean() == pytest.approx(chance.mean(), abs=5 * (0.25 / 10_000) ** 0.5)
    logits = np.log(chance / (1 - chance))
    assert logits.std() == pytest.approx(2, rel=0.05) and logits.mean() == pytest.approx(np.log(1 / 3), abs=0.1)
    for name, share in synthetic.MISSING.items():
        assert table[name].null_count / 10_000 == pytest.approx(share, abs=0.01)
    again = pa.Table.from_batches(synthetic.read(Path("nowhere"), rows=10_000, seed=3, click_rate=0.25).batches)
    assert table.equals(again)
