"""The behaviour model learns the chances of a world, keeps its best epoch and is calibrated."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy

from pipeline.chain.behaviour import Behaviour, Quality, fit, measure, temperature
from pipeline.chain.policies import anything, greedy, most_popular
from pipeline.chain.sessions import Sessions
from pipeline.chain.world import DETAIL
from pipeline.training.weights import Diverged
from pipeline.workflow.chain import Modelling
from tests.chain.tiny import CHANCES, HISTORY, ITEMS, PATIENCE, REWARDS, Tiny, random_log


def fresh(seed: int = 0) -> Behaviour:
    torch.manual_seed(seed)
    return Behaviour(Tiny.vectors, memory=8, hidden=32, skips=PATIENCE)


@pytest.fixture(scope="module")
def fitted() -> tuple[Behaviour, Quality, list[float]]:
    model, losses = fresh(), []

    def record(epoch: int, names: tuple[str, ...], values: object) -> None:
        assert names == ("behaviour/logloss",) and epoch == len(losses) + 1
        losses.extend(values)  # type: ignore[call-overload]

    quality = fit(
        model, random_log(10_000, 1), random_log(2_000, 2), seed=0, settings=Modelling(epochs=6), record=record
    )
    return model, quality, losses


def test_it_learns_the_chances_of_the_world(fitted: tuple[Behaviour, Quality, list[float]]) -> None:
    """Its log-loss on new sessions is near that of the world's own chances, the least that is possible."""
    model, _, _ = fitted
    sessions, policy = Sessions(Tiny(), 500, 3), anything(ITEMS, 3)
    losses: list[tuple[float, float]] = []
    for _ in range(8):
        state, users = sessions.state, sessions.users
        actions = policy(state)
        feedback = sessions.step(actions)[0][:, None]
        own = Tiny().chances(users, state, actions)
        told = model.chances(state, actions)
        losses.append(tuple(-float(p.gather(1, feedback).log().mean()) for p in (own, told)))  # type: ignore[arg-type]
    least, found = torch.tensor(losses).mean(0).tolist()
    assert found < least + 0.03
    constant = torch.bincount(random_log(10_000, 1).feedback, minlength=4).double() / 10_000
    assert float(torch.special.entr(constant).sum()) > least + 0.15  # which a model of no features has


def test_its_quality_is_the_logloss_and_the_calibration_after_the_best_epoch(
    fitted: tuple[Behaviour, Quality, list[float]],
) -> None:
    model, quality, losses = fitted
    held_out = random_log(2_000, 2)
    chances = model.chances(held_out.state, held_out.actions)
    plain = -sum(math.log(row[did]) for row, did in zip(chances.tolist(), held_out.feedback.tolist(), strict=True))
    assert quality.logloss == pytest.approx(plain / 2_000, rel=1e-5)
    assert quality.logloss <= min(losses) + 1e-6
    assert quality.calibration_error < 0.05
    off = fresh()
    off.load_state_dict(model.state_dict())
    off.temperature.mul_(0.3)
    assert measure(off, held_out).calibration_error > 2 * quality.calibration_error


def test_training_goes_back_to_its_best_epoch() -> None:
    """A large model that sees few transitions again and again gets worse on others."""
    model, losses = fresh(), []
    held_out = random_log(1_000, 2)
    settings = Modelling(epochs=20, batch_size=20, lr=0.03)
    fit(model, random_log(100, 1), held_out, seed=0, settings=settings, record=lambda *of: losses.append(of[2][0]))
    best = losses.index(min(losses))
    assert len(losses) == 20 > best + 3
    assert float(cross_entropy(model.logits(held_out.state, held_out.actions), held_out.feedback)) == losses[best]
    assert float(model.temperature) > 1  # it was too sure


def test_the_temperature_is_that_of_the_least_crossentropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5_000, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    for factor in (0.25, 1.0, 3.0):
        plain = minimize_scalar(lambda t: float(cross_entropy(factor * logits / t, labels)), bounds=(0.05, 20))  # noqa: B023
        found = float(temperature(factor * logits, labels))
        assert found == pytest.approx(plain.x, rel=1e-3)
        assert found == pytest.approx(factor, rel=0.1)


def test_greedy_takes_the_best_next_reward_and_the_most_popular_is_taken_most(
    fitted: tuple[Behaviour, Quality, list[float]],
) -> None:
    model, _, _ = fitted
    log = random_log(1_000, 4)
    state = log.state
    assert 0 < int((state.page == DETAIL).sum()) < len(state)
    each = [model.chances(state, torch.full((len(state),), item)) @ REWARDS for item in range(ITEMS)]
    torch.testing.assert_close(model.immediate(state, REWARDS), torch.stack(each, 1))
    assert torch.equal(greedy(model, REWARDS)(state), torch.stack(each, 1).argmax(1))
    users = torch.tensor([0, 1])
    start = Tiny().start(2, torch.Generator().manual_seed(0))[0]
    start.history[:, -1] = 4 + users
    assert start.history.shape[1] == HISTORY
    assert greedy(model, REWARDS)(start).tolist() == (CHANCES[users, -1, 0] @ REWARDS.double()).argmax(1).tolist()
    counts = [int(((log.actions == item) & ((log.feedback == 1) | (log.feedback == 2))).sum()) for item in range(ITEMS)]
    assert set(most_popular(log, ITEMS)(state).tolist()) == {counts.index(max(counts))}


def test_bad_input_is_refused() -> None:
    log, none = random_log(500, 1), random_log(500, 1)[torch.arange(0)]
    with pytest.raises(ValueError, match="needs transitions to train on, got 0; collect more"):
        fit(fresh(), none, log, seed=0)
    with pytest.raises(ValueError, match="needs transitions to hold out, got 0"):
        fit(fresh(), log, none, seed=0)
    with pytest.raises(Diverged, match="log-loss is nan in epoch 1; lower the learning rate: lr is 1e"):
        fit(fresh(), log, log, seed=0, settings=Modelling(lr=1e30))
