"""Learners solve a tiny world, take the steps of DDPG, and go on after a kill to the bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from pipeline.chain import train
from pipeline.chain.agents import VARIANTS, Agents, Brain
from pipeline.chain.logs import Log
from pipeline.chain.replay import Replay
from pipeline.chain.sessions import Sessions, play
from pipeline.chain.targets import expected_target, observed_target
from pipeline.chain.train import FILE, Learner, logged
from pipeline.chain.world import DETAIL, ENTRANCE, State
from pipeline.training.weights import Diverged
from pipeline.workflow.chain import Learning, Networks
from tests.chain.tiny import CHANCES, HISTORY, ITEMS, PATIENCE, REWARDS, TYPES, Tiny, optimum, random_log

FAST = Learning(gamma=1.0, lr=0.005, actor_lr=0.003, tau=0.03, batch_size=128)


class Killed(Exception):
    pass


def truth(state: State, actions: Tensor) -> Tensor:
    """The chances of the world, as far as the history tells the type of the user: the mean where it does not."""
    kinds = state.history.gather(1, (state.history >= 0).int().argmax(1, keepdim=True))[:, 0] - 4
    each = torch.stack([CHANCES[kind, state.shown, state.skips.clamp(max=PATIENCE), actions] for kind in range(TYPES)])
    known = kinds >= 0
    return torch.where(known[:, None], each[kinds.clamp(min=0), torch.arange(len(kinds))], each.mean(0)).float()


def agents(variant: str = "deepchain", **options: Any) -> Agents:
    torch.manual_seed(0)
    return Agents(Tiny.vectors, variant, Networks(memory=8, hidden=32, skips=PATIENCE, **options))


def known(log: Log) -> Replay:
    return logged(log, truth(log.state, log.actions))


def reward(policy: Agents) -> float:
    return float(play(Tiny(), policy, 10_000, 5).reward.mean())


def test_agents_with_a_shared_critic_reach_the_optimum_and_independent_ones_take_the_bait() -> None:
    """Each of two independent agents does best on its own page with the bait: 0.65 clicks against 0.45."""
    log, best, found = random_log(20_000, 1), optimum(), {}
    for variant in ("deepchain", "independent"):
        learner = Learner(agents(variant), known(log), REWARDS, FAST, 0)
        learner.learn(250)
        found[variant] = reward(learner.agents)
    assert found["deepchain"] > 0.97 * best
    assert 0.5 < found["independent"] < 0.4 * best


def test_actors_learn_in_a_world() -> None:
    """With the nearest item only, from sessions of their own."""
    sessions = Sessions(Tiny(), 64, 1)
    made = agents(choose="best_of", exact_items=0, candidates=2)
    before = reward(made)
    training = FAST.model_copy(update={"noise": 0.5, "random": 0.3})
    learner = Learner(made, Replay(20_000, HISTORY), REWARDS, training, 0, chances=truth, sessions=sessions)
    learner.learn(500)
    assert len(learner.replay) == 20_000
    assert reward(made) > 0.8 * optimum() > before


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_one_of_the_critic_the_actors_and_the_target_networks(variant: str) -> None:
    """Against a plain step with the loss over the batch, Adam, and target + tau (network - target)."""
    log = random_log(500, 1)
    training = Learning(gamma=0.9, lr=0.01, actor_lr=0.02, tau=0.3, batch_size=64)
    learner = Learner(agents(variant, choose="nearest"), known(log), REWARDS, training, 7)
    plain: list[Brain] = [copy.deepcopy(brain) for brain in learner.agents.brains]  # type: ignore[misc]
    targets = copy.deepcopy(plain)
    learner.learn(1)

    batch, chances = learner.replay.sample(64, torch.Generator().manual_seed(7))
    for brain, target, found in zip(plain, targets, learner.agents.brains, strict=True):
        here = torch.isin(batch.state.page, torch.tensor(brain.pages))
        rows, p = batch[here], chances[here]
        with torch.no_grad():
            if variant in ("deepchain_free", "messages"):
                by = (rows.feedback, REWARDS, 0.9, target.value, brain.pages)
                y = observed_target(rows.state, rows.actions, *by)
            else:
                y = expected_target(rows.state, rows.actions, p, REWARDS, 0.9, target.value, brain.pages)
        memories, features = brain.read(rows.state)
        critic = torch.optim.Adam([*brain.critic.parameters(), *brain.encoder.parameters()], lr=0.01)
        mse_loss(brain.score(features, Tiny.vectors[rows.actions]), y).backward()
        critic.step()
        actors = torch.optim.Adam([*brain.actors.parameters(), *brain.senders.parameters()], lr=0.02)
        (-brain.score(features.detach(), brain.proto(rows.state, memories.detach())).mean()).backward()
        actors.step()
        for name, value in found.state_dict().items():
            torch.testing.assert_close(value, brain.state_dict()[name], rtol=1e-3, atol=1e-5, msg=name)
    for target, brain, trained in zip(targets, learner.agents.brains, learner._trained, strict=True):
        for name, value in trained.target.state_dict().items():
            old, new = target.state_dict()[name], brain.state_dict()[name]
            torch.testing.assert_close(value, old + 0.3 * (new - old))


@pytest.mark.parametrize("variant", ["deepchain", "independent"])
def test_a_killed_training_goes_on_to_the_bit(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LOSS_STEPS", 10)

    def learner(record: Any = lambda *_: None) -> Learner:
        made = agents(variant, exact_items=0, candidates=2)
        sessions = Sessions(Tiny(), 8, 1, longest=5)
        training = Learning(every=2, batch_size=16)
        replay = Replay(150, HISTORY)  # which is full before the end
        return Learner(made, replay, REWARDS, training, 3, chances=truth, sessions=sessions, record=record)

    def kill(step: int, names: object, values: object) -> None:
        if step == 30:
            raise Killed

    undisturbed = learner()
    undisturbed.learn(50)
    with pytest.raises(Killed):
        learner(kill).learn(50, tmp_path / "work", seconds=0)
    assert torch.load(tmp_path / "work" / FILE)["steps"] == 29
    resumed = learner()
    resumed.learn(50, tmp_path / "work", seconds=1000)
    undisturbed.save(tmp_path / "undisturbed")
    resumed.save(tmp_path / "resumed")
    assert_same(*(torch.load(tmp_path / name / FILE) for name in ("undisturbed", "resumed")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed", "undisturbed", "work"]


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_a_replay_keeps_the_latest_transitions() -> None:
    log = random_log(50, 1)
    log = Log(log.state, torch.arange(50), log.feedback)
    replay = Replay(20, HISTORY)
    for start in range(0, 50, 10):
        part = log[torch.arange(start, start + 10)]
        replay.add(part, truth(part.state, part.actions % ITEMS))
    drawn, chances = replay.sample(2_000, torch.Generator().manual_seed(0))
    assert set(drawn.actions.tolist()) == set(range(30, 50)) and len(replay) == 20
    same = log[drawn.actions]
    assert torch.equal(drawn.feedback, same.feedback)
    for name in ("history", "page", "shown", "skips"):
        assert torch.equal(getattr(drawn.state, name), getattr(same.state, name))
    assert torch.equal(chances, truth(same.state, same.actions % ITEMS))
    with pytest.raises(ValueError, match="50 transitions do not fit into a replay of 20; raise its capacity"):
        replay.add(log)
    with pytest.raises(ValueError, match="capacity of a replay must be at least 1, got 0"):
        Replay(0, HISTORY)


def test_records_name_the_page_of_a_critic_of_its_own() -> None:
    log, recorded = random_log(500, 1), []
    for variant in ("independent", "single"):
        learner = Learner(
            agents(variant),
            known(log),
            REWARDS,
            FAST,
            0,
            record=lambda *record: recorded.append(record),
        )
        learner.learn(100)
    names = [names for _, names, _ in recorded]
    assert names == [(f"critic{page}/loss", f"critic{page}/value") for page in ("/entrance", "/detail", "")]
    assert (ENTRANCE, DETAIL) == (0, 1) and all(step == 100 and values[0] > 0 for step, _, values in recorded)


def test_what_cannot_be_learned_is_refused() -> None:
    log = random_log(500, 1)
    with pytest.raises(
        ValueError, match="the replay is empty and there are no sessions: nothing to learn from; give a log"
    ):
        Learner(agents(), Replay(10, HISTORY), REWARDS, FAST, 0)
    with pytest.raises(ValueError, match="take expectations over the feedback; give the behaviour model"):
        Learner(agents(), logged(log), REWARDS, FAST, 0)
    with pytest.raises(ValueError, match="take expectations over the feedback; give the behaviour model"):
        Learner(agents(), Replay(10, HISTORY), REWARDS, FAST, 0, sessions=Sessions(Tiny(), 2, 0))
    wild = FAST.model_copy(update={"lr": 1e30})
    with pytest.raises(Diverged, match=r"not finite in the 100 steps before 100, .* lr is 1e"):
        Learner(agents("deepchain_free"), logged(log), REWARDS, wild, 0).learn(100)
