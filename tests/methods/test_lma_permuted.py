"""The null control of LMA is equal to it in everything but which values share numbers."""

import numpy as np

from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.cost import full_tables, spent
from pipeline.experiment.method import Method
from pipeline.methods import lma, lma_permuted
from pipeline.workflow.validation import keywords
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 300), Field("item", 300), Field("age", 3)))
DIM = 8


def draw_ids(rows: int = 4000) -> np.ndarray:
    """Users and items come in pairs: they share nearly all of their rows."""
    rng = np.random.default_rng(0)
    users = (rng.random(rows) ** 2 * 300).astype(np.int32)
    items = np.where(rng.random(rows) < 0.9, users, rng.integers(0, 300, rows)).astype(np.int32)
    return np.stack([users, items, rng.integers(0, 3, rows).astype(np.int32)], 1)


def given(name: str) -> Evidence:
    arrays = lma.find(problem(name, SCHEMA, DIM, [[DIM]] * 3, training_ids=draw_ids))
    return evidence(name, SCHEMA, DIM, arrays=arrays, budget=full_tables(SCHEMA, DIM).bytes // 2)


def test_it_costs_the_same_signs_the_same_values_and_keeps_each_field_s_signatures() -> None:
    a, b = (Method.named(name, {"share": 0.5}).derive(given(name)) for name in ("lma", "lma_permuted"))
    assert (a.method, b.method) == ("lma", "lma_permuted")
    assert spent(lma.build, SCHEMA, DIM, a) == spent(lma_permuted.build, SCHEMA, DIM, b)
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


def test_under_a_small_budget_only_the_kept_signatures_are_permuted() -> None:
    """Otherwise kept values would have signatures whose partners are gone, and the control would share less."""
    a, b = (
        Method.named(name, {"share": 0.1}).derive(given(name)).arrays["signatures"] for name in ("lma", "lma_permuted")
    )
    assert len(a) < len(given("lma").arrays["hashes"]) / 2
    assert sorted(a.tolist()) == sorted(b.tolist()) and (a != b).any()


def test_it_takes_the_same_options_with_the_same_defaults() -> None:
    for one, two in ((lma.find, lma_permuted.find), (lma.derive, lma_permuted.derive)):
        assert {key: p.default for key, p in keywords(one).items()} == {
            key: p.default for key, p in keywords(two).items()
        }
