"""What every world promises."""

import pytest
import torch
from torch import Tensor

from pipeline.chain.logs import Exploring
from pipeline.chain.sessions import Sessions
from pipeline.chain.world import CLICK, DETAIL, ENTRANCE, NOTHING, State, World
from pipeline.workflow.plug import ROOT
from tests.chain.conftest import WORLDS


def reached(world: World, seed: int = 0) -> tuple[Tensor, State, Tensor]:
    """Users and states on both pages, after some steps, and random items."""
    sessions, policy = Sessions(world, 300, seed), Exploring(torch.ones(world.items), 1.0, seed)
    for _ in range(4):
        sessions.step(policy(sessions.state))
    return sessions.users, sessions.state, policy(sessions.state)


def test_there_is_no_world_without_these_tests() -> None:
    files = {path.stem for path in (ROOT / "pipeline" / "chain" / "worlds").glob("[!_]*.py")}
    assert files == {name.split("_")[0] for name in WORLDS}


@pytest.mark.parametrize("name", WORLDS)
def test_chances_are_probabilities(worlds: dict[str, World], name: str) -> None:
    users, state, actions = reached(worlds[name])
    assert set(state.page.tolist()) == {ENTRANCE, DETAIL}
    chances = worlds[name].chances(users, state, actions)
    assert chances.shape == (300, 4)
    assert (chances >= 0).all()
    assert torch.allclose(chances.sum(1), torch.ones(300), atol=1e-6)
    assert (chances[:, -1] > 0.005).all()  # whatever is recommended, a session ends


@pytest.mark.parametrize("name", WORLDS)
def test_rows_have_no_effect_on_each_other(worlds: dict[str, World], name: str) -> None:
    users, state, actions = reached(worlds[name])
    together = worlds[name].chances(users, state, actions)
    for row in torch.arange(0, 300, 7).split(1):
        alone = worlds[name].chances(users[row], state[row], actions[row])
        assert torch.allclose(alone[0], together[row[0]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", WORLDS)
def test_sessions_start_on_the_entrance_page_with_a_history(worlds: dict[str, World], name: str) -> None:
    world = worlds[name]
    state, users = world.start(200, torch.Generator().manual_seed(0))
    assert (state.page == ENTRANCE).all() and (state.shown == NOTHING).all() and (state.skips == 0).all()
    assert (state.history[:, -1] >= 0).all() and state.history.max() < world.items
    filled = (state.history != NOTHING).int()
    assert (filled.diff(dim=1) >= 0).all()  # nothing comes first
    assert len(set(users.tolist())) > 1
    assert all(tensor.dtype == torch.int64 for tensor in (state.history, state.page, state.shown, state.skips, users))
    assert world.vectors.dtype == torch.float32 and world.vectors.isfinite().all()


@pytest.mark.parametrize("name", WORLDS)
def test_the_same_seed_gives_the_same_sessions(worlds: dict[str, World], name: str) -> None:
    (users, state, actions), (again, same, _) = reached(worlds[name]), reached(worlds[name])
    others, another, _ = reached(worlds[name], 1)
    assert users.equal(again) and state.history.equal(same.history)
    assert not (users.equal(others) and state.history.equal(another.history))
    assert len(actions) == 300


@pytest.mark.parametrize("name", WORLDS)
def test_what_users_do_depends_on_what_is_recommended(worlds: dict[str, World], name: str) -> None:
    users, state, _ = reached(worlds[name])
    row = torch.zeros(worlds[name].items, dtype=torch.int64)
    chances = worlds[name].chances(users[row], state[row], torch.arange(worlds[name].items))
    assert chances[:, CLICK].max() > 1.5 * chances[:, CLICK].quantile(0.1)
