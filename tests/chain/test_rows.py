"""Transitions as the rows of a table, and the data set that is made of them."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from scipy.stats import chisquare

from pipeline.chain.logs import steps
from pipeline.chain.policies import anything
from pipeline.chain.rows import PAGES, SKIPS, rows
from pipeline.chain.world import NOTHING
from pipeline.datasets import sessions
from pipeline.sources.source import NotFound
from tests.chain.tiny import CHANCES, ITEMS, PATIENCE, Tiny

NOWHERE = Path("nowhere")


def table(**options: Any) -> pa.Table:
    return pa.Table.from_batches(list(sessions.read(options.pop("path", NOWHERE), **options).batches))


def test_the_rows_are_the_transitions_of_the_log() -> None:
    facts: dict[str, Any] = {}
    given = pa.Table.from_batches(list(rows(Tiny(), anything(ITEMS, 1), 9300, 5, 9, facts))).to_pylist()
    losses, expected = [], []
    for log in steps(Tiny(), anything(ITEMS, 1), 9300, 5, 9):
        state = log.state
        assert log.chances is not None
        for row in range(len(log)):
            shown, skips, item = (int(part[row]) for part in (state.shown, state.skips, log.actions))
            did = int(log.feedback[row])
            chance = float(log.chances[row, did])  # of one of the types of users
            assert chance == pytest.approx(
                min(CHANCES[:, shown, min(skips, PATIENCE), item, did].tolist(), key=lambda p: abs(p - chance))
            )
            losses.append(-math.log(chance))
            expected.append(
                {
                    "label": float(did),
                    "time": len(expected),
                    "item": item,
                    "shown": None if shown == NOTHING else shown,
                    "page": PAGES[int(state.page[row])],
                    "skips": min(skips, SKIPS),
                    "history": [str(taken) for taken in state.history[row].tolist() if taken != NOTHING],
                }
            )
    assert given == expected
    assert {row["page"] for row in given} == set(PAGES) and max(row["skips"] for row in given) == SKIPS
    assert facts["least_logloss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_seed_gives_the_same_sessions_of_a_world_that_its_options_make() -> None:
    options: dict[str, Any] = {"transitions": 15_000, "options": {"items": 12, "history": 5}}
    source = sessions.read(NOWHERE, seed=3, **options)
    assert source.facts["items"] == 12 and source.defaults == {"min_count": 1, "max_bag": 5}
    one = pa.Table.from_batches(list(source.batches))
    assert one.equals(table(seed=3, **options)) and not one.equals(table(seed=4, **options))
    assert set(one["item"].to_pylist()) == set(range(12))
    assert max(map(len, one["history"].to_pylist())) == 5
    assert 0 < source.facts["least_logloss"] < math.log(4)


def test_epsilon_is_the_share_of_random_items() -> None:
    """With 1, all items are as frequent; with 0, they are in proportion to how often random ones are taken."""
    counts = torch.bincount(torch.tensor(table(transitions=20_000)["item"].to_pylist()), minlength=20)
    assert chisquare(counts).pvalue > 1e-4
    popular = torch.bincount(torch.tensor(table(transitions=20_000, epsilon=0.0)["item"].to_pylist()), minlength=20)
    assert chisquare(popular).pvalue < 1e-20


def test_sessions_end_at_the_longest() -> None:
    """With one step each, all rows are first steps: on the entrance page, without skips."""
    only = table(transitions=2500, longest=1)
    assert set(only["page"].to_pylist()) == {"entrance"} and set(only["skips"].to_pylist()) == {0}


def test_a_world_of_real_users_takes_them_from_the_path(interactions: Path) -> None:
    options = {"world": "fitted", "options": {"half": "learn", "dim": 4, "known": 4, "history": 8}}
    given = table(path=interactions, transitions=1500, longest=20, **options)
    assert len(given) == 1500 and max(map(len, given["history"].to_pylist())) > 4
    with pytest.raises(NotFound, match=r"there is no nowhere/schema.json, and world fitted needs users; encode"):
        sessions.read(NOWHERE, **options)
    with pytest.raises(ValueError, match=r"there is no 'folder'; dataset.path names the folder"):
        sessions.read(interactions, world="fitted", options={"folder": "here"})


def test_wrong_worlds_and_options_are_refused() -> None:
    place = "params.yaml: dataset.options"
    with pytest.raises(
        ValueError, match=rf"{place}.world: there is no world 'tabula' \(did you mean 'tabular'\?\); there are"
    ):
        sessions.read(NOWHERE, world="tabula")
    with pytest.raises(ValueError, match=rf"{place}.options: there is no 'item' .*; valid are items, types"):
        sessions.read(NOWHERE, options={"item": 3})
    with pytest.raises(ValueError, match="items must be at least 10"):
        sessions.read(NOWHERE, options={"items": 3})
