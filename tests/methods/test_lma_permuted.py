"""The null control of LMA stands beside it with all things equal but who shares with whom."""

import numpy as np

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, prices, spent
from pipeline.methods import lma, lma_permuted
from pipeline.workflow.plug import keywords

SCHEMA = Schema((Field("user", 300), Field("item", 300), Field("age", 3)))
DIM = 8


def draw_ids(rows: int = 4000) -> np.ndarray:
    """Users and items come in pairs: they share nearly all of their rows."""
    rng = np.random.default_rng(0)
    users = (rng.random(rows) ** 2 * 300).astype(np.int32)
    items = np.where(rng.random(rows) < 0.9, users, rng.integers(0, 300, rows)).astype(np.int32)
    return np.stack([users, items, rng.integers(0, 3, rows).astype(np.int32)], 1)


def given(found: dict[str, np.ndarray]) -> Evidence:
    rows = ((DIM,),) * 3
    full = full_tables(SCHEMA, DIM).bytes
    return Evidence(SCHEMA, DIM, rows, prices(lma.build, SCHEMA, rows, DIM), full, found=found, budget=full // 2)


def test_it_costs_the_same_signs_the_same_values_and_has_each_field_s_signatures() -> None:
    (one, a), (two, b) = (
        (method, method.derive(given(method.observe(SCHEMA, draw_ids(), np.random.default_rng(0))), share=0.5))
        for method in (lma, lma_permuted)
    )
    assert spent(one.build, SCHEMA, DIM, a) == spent(two.build, SCHEMA, DIM, b)
    assert a.settings == b.settings and np.array_equal(a.arrays["signed"], b.arrays["signed"])
    start = 0
    for signed in a.arrays["signed"].tolist():
        mine, null = (x.arrays["signatures"][start : start + signed] for x in (a, b))
        assert sorted(mine.tolist()) == sorted(null.tolist())
        start += signed
    users = min(a.arrays["signed"][:2])
    first = a.arrays["signed"][0]
    shared = [
        (x.arrays["signatures"][1:users] == x.arrays["signatures"][first + 1 : first + users]).mean() for x in (a, b)
    ]
    assert shared[0] > 0.4 and shared[1] < 0.1


def test_what_is_kept_of_a_small_budget_is_permuted_and_not_what_was_cut() -> None:
    """Otherwise kept values would hold signatures whose partners are gone, and the control would share less."""
    found = lma.observe(SCHEMA, draw_ids(), np.random.default_rng(0))
    a, b = (method.derive(given(found), share=0.1).arrays["signatures"] for method in (lma, lma_permuted))
    assert len(a) < len(found["hashes"]) / 2  # of what there is
    assert sorted(a.tolist()) == sorted(b.tolist()) and (a != b).any()


def test_it_takes_the_same_options_with_the_same_defaults() -> None:
    for one, two in ((lma.observe, lma_permuted.observe), (lma.derive, lma_permuted.derive)):
        assert {key: p.default for key, p in keywords(one).items()} == {
            key: p.default for key, p in keywords(two).items()
        }
