"""Sessions, and their face for Gymnasium."""

from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor

from pipeline.chain.environment import SessionsEnv
from pipeline.chain.logs import Exploring
from pipeline.chain.sessions import Sessions, play
from pipeline.chain.world import CLICK, DETAIL, ENTRANCE, LEAVE, NOTHING, ORDER, SKIP, World
from tests.chain.conftest import WORLDS


def anything(world: World, steps: int, number: int, seed: int = 5) -> Tensor:
    return torch.randint(world.items, (steps, number), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", WORLDS)
def test_sessions_are_those_of_a_plain_loop(worlds: dict[str, World], name: str) -> None:
    """One session after the other, in Python, with the same luck: where feedback leads is written out again."""
    world, number, steps = worlds[name], 25, 12
    sessions = Sessions(world, number, 3, longest=10, rewards=(-1, 2, 7, -4), renew=False)
    generator = torch.Generator().manual_seed(3)
    first, users = world.start(number, generator)
    luck = torch.stack([torch.rand(number, generator=generator) for _ in range(steps)])
    actions = anything(world, steps, number)
    expected: list[list[tuple[int, float, bool]]] = []
    ends = []
    for row in torch.arange(number).split(1):
        state, over, seen = first[row], False, []
        history, page, shown, skips = state.history[0].tolist(), ENTRANCE, NOTHING, 0
        for step in range(steps):
            if over:
                seen.append((LEAVE, 0.0, True))
                continue
            state.history[0], state.page[0], state.shown[0], state.skips[0] = torch.tensor(history), page, shown, skips
            item = int(actions[step, row])
            rest, feedback = float(luck[step, row]), 0
            for chance in world.chances(users[row], state, actions[step, row])[0].tolist()[:3]:
                rest -= chance
                feedback += rest >= 0
                if rest < 0:
                    break
            if feedback in (CLICK, ORDER):
                history = [*history[1:], item]
            if feedback != LEAVE:
                page, shown = (DETAIL, item) if feedback == CLICK else (ENTRANCE, NOTHING)
                skips = skips + 1 if feedback == SKIP else 0
            over = feedback == LEAVE or step == 9
            seen.append((feedback, (-1.0, 2.0, 7.0, -4.0)[feedback], over))
        expected.append(seen)
        ends.append((history, page, shown, skips))
    steps_of = []
    for step in range(steps):
        steps_of.append(tuple(part.tolist() for part in sessions.step(actions[step])))
    got = [[(f[row], r[row], e[row]) for f, r, e in steps_of] for row in range(number)]
    assert got == expected
    state = sessions.state
    got_ends = zip(state.history.tolist(), state.page.tolist(), state.shown.tolist(), state.skips.tolist(), strict=True)
    assert list(got_ends) == ends
    assert sessions.steps.tolist() == [sum(not end for _, _, end in seen) + 1 for seen in expected]


def test_a_new_session_takes_the_place_of_one_that_ended(worlds: dict[str, World]) -> None:
    world = worlds["tabular"]
    sessions = Sessions(world, 400, 0, longest=6)
    lengths, left, cut = torch.zeros(400), 0, 0
    for actions in anything(world, 30, 400):
        before = sessions.state
        feedback, _, ended = sessions.step(actions)
        lengths += 1
        after = before.after(actions, feedback)
        assert sessions.state.history[~ended].equal(after.history[~ended])
        assert (ended == ((feedback == LEAVE) | (lengths == 6))).all()
        left, cut = left + int((feedback == LEAVE).sum()), cut + int((ended & (feedback != LEAVE)).sum())
        lengths[ended] = 0
        new = sessions.state[ended]
        assert (new.page == ENTRANCE).all() and (new.history[:, :-1] == NOTHING).all() and (new.skips == 0).all()
        assert new.history[:, -1].equal(world.markers[sessions.users[ended]])  # type: ignore[attr-defined]
        assert sessions.steps.equal(lengths.long()) and not sessions.over.any()
    assert left > 100 and cut > 100


def test_a_step_leaves_the_state_before_it_as_it_was(worlds: dict[str, World]) -> None:
    sessions = Sessions(worlds["tabular"], 50, 0, longest=2)
    for actions in anything(worlds["tabular"], 5, 50):
        before = sessions.state
        copies = before.history.clone(), before.page.clone(), before.shown.clone(), before.skips.clone()
        sessions.step(actions)
        assert all(map(torch.equal, copies, (before.history, before.page, before.shown, before.skips)))


@pytest.mark.parametrize("renew", [True, False])
def test_sessions_go_on_to_the_bit_from_what_was_saved(worlds: dict[str, World], renew: bool) -> None:
    def follow(sessions: Sessions, rows: Tensor) -> list[list[float]]:
        return [part.tolist() for actions in rows for part in sessions.step(actions)]

    world = worlds["fitted_test"]
    actions = anything(world, 12, 40)
    whole = Sessions(world, 40, 7, longest=5, renew=renew)
    follow(whole, actions[:6])
    saved = whole.state_dict()
    expected = follow(whole, actions[6:])
    other = Sessions(world, 40, 8, longest=5, renew=renew)
    other.load_state_dict(saved)
    assert follow(other, actions[6:]) == expected
    assert other.state.history.equal(whole.state.history) and other.users.equal(whole.users)
    with pytest.raises(ValueError, match="the saved sessions are 40, and these are 3"):
        Sessions(world, 3, 0).load_state_dict(saved)


def test_policies_are_compared_with_the_same_users(worlds: dict[str, World]) -> None:
    """Two policies that differ in one session only have the same rewards in all others."""
    world = worlds["tabular"]
    one, two = Sessions(world, 60, 0, renew=False), Sessions(world, 60, 0, renew=False)
    for actions in anything(world, 20, 60):
        changed = actions.clone()
        changed[0] = (changed[0] + 1) % world.items
        for left, right in zip(one.step(actions), two.step(changed), strict=True):
            assert left[1:].equal(right[1:])


def test_play_adds_up_whole_sessions(worlds: dict[str, World]) -> None:
    world = worlds["tabular"]
    played = play(world, Exploring(torch.ones(world.items), 1.0, 0), 500, 1, longest=50, rewards=(0, 1, 5, -2))
    of_feedback = played.counts.sum(0)
    assert played.counts.sum() == played.steps.sum()
    assert played.reward.sum() == of_feedback[CLICK] + 5 * of_feedback[ORDER] - 2 * of_feedback[LEAVE]
    assert 490 <= of_feedback[LEAVE] <= 500 and played.steps.min() >= 1
    assert played.counts[DETAIL].sum() <= of_feedback[CLICK]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0}, "number of sessions must be at least 1, got 0"),
        ({"longest": 0}, "longest of sessions must be at least 1, got 0"),
        (
            {"rewards": (0, 1, 5)},
            r"rewards must be four finite numbers, of skip, click, order and leave, got \[0, 1, 5\]",
        ),
        ({"rewards": (0, 1, float("nan"), 0)}, "rewards must be four finite numbers"),
    ],
)
def test_wrong_arguments_are_refused(worlds: dict[str, World], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sessions(worlds["tabular"], **{"number": 2, "seed": 0, **options})  # type: ignore[arg-type]


def test_items_that_do_not_exist_are_refused(worlds: dict[str, World]) -> None:
    sessions = Sessions(worlds["tabular"], 2, 0)
    for wrong, message in (
        (torch.tensor([0, 20]), "items from 0 to 19, got 0 to 20"),
        (torch.tensor([-1, 3]), "items from 0 to 19, got -1 to 3"),
        (torch.tensor([0]), r"one int64 for each of 2 sessions, got torch.int64 of shape \(1,\)"),
        (torch.tensor([0.0, 1.0]), "got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            sessions.step(wrong)


@pytest.mark.parametrize("name", WORLDS)
def test_the_environment_is_the_sessions_as_gymnasium_has_them(worlds: dict[str, World], name: str) -> None:
    env = SessionsEnv(worlds[name], 30, longest=5)
    sessions = Sessions(worlds[name], 30, 4, longest=5)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observed, info = env.reset(seed=4)
    assert env.np_random_seed == 4 and info == {}
    env.action_space.seed(0)
    for _ in range(12):
        assert env.observation_space.contains(observed)
        assert all(np.array_equal(observed[part], getattr(sessions.state, part)) for part in observed)
        actions = env.action_space.sample()
        before = sessions.state
        feedback, reward, ended = sessions.step(torch.from_numpy(actions))
        observed, rewards, terminated, truncated, info = env.step(actions)
        assert np.array_equal(rewards, reward) and rewards.dtype == np.float64
        assert np.array_equal(terminated, feedback == LEAVE) and np.array_equal(terminated | truncated, ended)
        assert terminated.dtype == truncated.dtype == bool and not (terminated & truncated).any()
        assert np.array_equal(info["feedback"], feedback)
        after = before.after(torch.from_numpy(actions), feedback)
        assert np.array_equal(info.get("_final_obs", np.zeros(30, bool)), ended)
        for place in ended.nonzero()[:, 0].tolist():
            last = info["final_obs"][place]
            assert env.single_observation_space.contains(last)
            assert last["history"].tolist() == after.history[place].tolist() and last["skips"] == after.skips[place]
    env.close()


def test_gymnasiums_own_checks_and_wrappers_take_the_environment(worlds: dict[str, World]) -> None:
    """`check_env` is for single environments; its checks of resets and steps are made here on the vector."""
    env = RecordEpisodeStatistics(SessionsEnv(worlds["tabular"], 8, longest=5))
    runs = []
    for seed in (1, 1, 2):
        observed, _ = env.reset(seed=seed)
        env.action_space.seed(3)
        run = [observed["history"].tolist()]
        lengths = []
        for _ in range(20):
            observed, reward, terminated, truncated, info = env.step(env.action_space.sample())
            run.append([reward.tolist(), terminated.tolist(), truncated.tolist()])
            if "episode" in info:
                ended = terminated | truncated
                assert np.array_equal(info["_episode"], ended)
                lengths += info["episode"]["l"][ended].tolist()
        assert set(lengths) <= {1, 2, 3, 4, 5} and len(set(lengths)) > 2
        runs.append(run)
    assert runs[0] == runs[1] != runs[2]
    fresh = SessionsEnv(worlds["tabular"], 8)
    histories = [fresh.reset()[0]["history"].tolist() for _ in range(4)]
    assert all(one != two for one, two in pairwise(histories))
    held = fresh.reset(seed=0)[0]["history"]
    kept = held.copy()
    fresh.step(np.zeros(8, np.int64))
    assert np.array_equal(held, kept)  # what was returned is not used again
    for space in (fresh.single_observation_space, fresh.observation_space, fresh.action_space):
        assert isinstance(space, gymnasium.Space)
    with pytest.raises(ValueError, match="sessions have no options to reset, got reset_mask"):
        fresh.reset(options={"reset_mask": np.ones(8, bool)})
