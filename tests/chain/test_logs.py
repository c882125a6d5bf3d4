"""Logs of sessions, and the policy that writes them."""

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.chain.logs import Exploring, Log, collect, exploring, popularity
from pipeline.chain.sessions import Sessions
from pipeline.chain.world import CLICK, DETAIL, ENTRANCE, LEAVE, ORDER, SKIP, World


def same(one: Log, two: Log) -> bool:
    parts = [(one.actions, two.actions), (one.feedback, two.feedback)]
    parts += [(getattr(one.state, name), getattr(two.state, name)) for name in ("history", "page", "shown", "skips")]
    return all(left.equal(right) for left, right in parts)


def test_a_log_is_what_happened_in_sessions(worlds: dict[str, World]) -> None:
    world = worlds["tabular"]
    log = collect(world, Exploring(torch.ones(20), 1.0, 0), 2500, 4, longest=7)
    sessions, policy = Sessions(world, 1000, 4, longest=7), Exploring(torch.ones(20), 1.0, 0)
    for start in range(0, 2500, 1000):
        rows = slice(start, min(start + 1000, 2500))
        kept = rows.stop - rows.start
        before, actions = sessions.state, policy(sessions.state)
        feedback, _, _ = sessions.step(actions)
        assert log.actions[rows].equal(actions[:kept]) and log.feedback[rows].equal(feedback[:kept])
        assert log.state.history[rows].equal(before.history[:kept]) and log.state.page[rows].equal(before.page[:kept])
    assert len(log) == 2500
    after = log.after
    assert (after.page[log.feedback == CLICK] == DETAIL).all()
    assert (after.page[(log.feedback == SKIP) | (log.feedback == ORDER)] == ENTRANCE).all()
    assert after.history[log.feedback == LEAVE].equal(log.state.history[log.feedback == LEAVE])


def test_chances_in_a_log_are_those_of_the_world(worlds: dict[str, World]) -> None:
    """The feedback of many transitions against the mean of the table, over all states of the log."""
    world = worlds["tabular"]
    log = collect(world, Exploring(torch.ones(20), 1.0, 0), 60_000, 1)
    first = log.state.history.gather(1, (log.state.history >= 0).int().argmax(1, keepdim=True))[:, 0]
    types = torch.full((20,), -1)
    types[world.markers] = torch.arange(4)  # type: ignore[attr-defined]
    told = types[first] >= 0
    kept = log[told.nonzero()[:, 0]]
    chances = world.chances(types[first[told]], kept.state, kept.actions).double()
    for feedback in range(4):
        seen = (kept.feedback == feedback).double().mean()
        error = (chances[:, feedback] * (1 - chances[:, feedback])).mean().sqrt() / len(kept) ** 0.5
        assert abs(seen - chances[:, feedback].mean()) < 4 * error


def test_a_policy_explores_with_known_chances(worlds: dict[str, World]) -> None:
    policy = Exploring(torch.tensor([0.0, 3.0, 1.0, 0.0]), 0.2, 0)
    assert policy.probabilities.tolist() == pytest.approx([0.05, 0.65, 0.25, 0.05])
    state, _ = worlds["tabular"].start(40_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(policy(state), minlength=4) / 40_000
    assert shares.tolist() == pytest.approx(policy.probabilities.tolist(), abs=0.01)


def test_popularity_is_the_share_of_recommendations_that_were_taken(worlds: dict[str, World]) -> None:
    state, _ = worlds["tabular"].start(5, torch.Generator().manual_seed(0))
    log = Log(state, torch.tensor([1, 1, 1, 1, 2]), torch.tensor([CLICK, ORDER, SKIP, LEAVE, SKIP]))
    assert popularity(log, 4).tolist() == [0, 0.5, 0, 0]
    policy = exploring(worlds["tabular"], 0.5, 0)
    assert policy.probabilities.min() >= 0.5 / 20 and policy.probabilities.max() > 1.3 / 20


def test_a_log_is_read_as_it_was_saved(worlds: dict[str, World], tmp_path: Path) -> None:
    log = collect(worlds["shifted"], Exploring(torch.ones(40), 1.0, 0), 300, 0)
    log.save(tmp_path / "log.safetensors")
    assert same(Log.load(tmp_path / "log.safetensors"), log)
    assert (tmp_path / "log.safetensors").stat().st_size < 300 * (8 + 5) * 4 + 1000


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.safetensors"
    with pytest.raises(FileNotFoundError):
        Log.load(file)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"log\.safetensors: is no log of sessions"):
        Log.load(file)
    save_file({"actions": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"log\.safetensors: is no log of sessions"):
        Log.load(file)
    rows = {name: torch.zeros(3) for name in ("page", "shown", "skips", "actions", "feedback")}
    save_file({"history": torch.zeros(2, 4), **rows}, file)
    with pytest.raises(ValueError, match="its tensors differ in their numbers of rows"):
        Log.load(file)


def test_wrong_arguments_are_refused(worlds: dict[str, World]) -> None:
    with pytest.raises(ValueError, match=r"epsilon must be from 0 to 1, got 1\.5"):
        Exploring(torch.ones(3), 1.5, 0)
    for wrong in (torch.zeros(3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, float("inf")])):
        with pytest.raises(ValueError, match="the popularity of items must be at least 0, and above"):
            Exploring(wrong, 0.5, 0)
    with pytest.raises(ValueError, match="transitions of a log must be at least 1, got 0"):
        collect(worlds["tabular"], Exploring(torch.ones(20), 1.0, 0), 0, 0)


def test_a_hundred_thousand_transitions_take_a_second(worlds: dict[str, World]) -> None:
    start = time.process_time()
    collect(worlds["tabular"], Exploring(torch.ones(20), 1.0, 0), 100_000, 0)
    assert time.process_time() - start < 3  # measured: 0.2
