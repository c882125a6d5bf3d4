"""The tabular world and its exact values."""

import pytest
import torch
from torch import Tensor

from pipeline.chain.logs import Exploring
from pipeline.chain.optimum import Exact
from pipeline.chain.sessions import play
from pipeline.chain.world import CLICK, ENTRANCE, LEAVE, NOTHING, ORDER, SKIP
from pipeline.chain.worlds import tabular
from pipeline.chain.worlds.tabular import Tabular

LONG = 120  # steps; hardly any session reaches it


@pytest.fixture(scope="module")
def world() -> Tabular:
    return tabular.make(0, history=LONG)


def tiny() -> Tabular:
    """One type, two items; skips do not count. Item 0 is clicked more; it leads to a page where all leave. Item 1 leads
    to one where it is clicked again, and item 0 is ordered."""
    table = torch.zeros(1, 3, 1, 2, 4, dtype=torch.float64)
    table[0, 0, 0] = torch.tensor([[0.0, 0.8, 0.0, 0.2], [0.2, 0.5, 0.0, 0.3]])
    table[0, 1, 0, :, LEAVE] = 1
    table[0, 2, 0] = torch.tensor([[0.0, 0.0, 0.2, 0.8], [0.25, 0.5, 0.0, 0.25]])
    return Tabular(table, torch.tensor([0]), torch.eye(2), 3)


def test_a_tiny_world_has_the_values_that_are_worked_by_hand() -> None:
    """E, on the entrance page, D, on the detail page of item 1. Showing 1 on both: E = 0.2 E + 0.5 (1 + D) and
    D = 0.25 E + 0.5 (1 + D), so D = 0.5 E + 1 and E = (0.5 + 0.5) / (0.8 - 0.25) = 20 / 11. Showing 0 on the entrance
    page gives 0.8; showing 1 and then 0, with D = 0.2 (5 + E), gives E = 1 / 0.7 = 10 / 7, because a single page, where
    D = 1 either way, cannot tell them apart."""
    exact = Exact(tiny())
    always = torch.tensor([1, 1, 1])
    assert exact.value(always) == pytest.approx(20 / 11, abs=1e-6)
    assert exact.values(always).tolist() == pytest.approx([20 / 11, 0, 21 / 11])
    assert exact.value(torch.tensor([1, 1, 0])) == pytest.approx(10 / 7)
    assert exact.optimal()[[0, 2]].tolist() == [1, 1]
    assert exact.myopic()[[0, 2]].tolist() == [0, 0]
    assert exact.value(exact.myopic()) == pytest.approx(0.8)
    assert exact.independent()[0] == 0
    assert exact.value(exact.independent()) == pytest.approx(0.8)
    assert exact.popular()[[0, 2]].tolist() == [0, 1]
    half = torch.full((3, 2), 0.5)  # E = (0.8 + 0.2 E + 0.5 (1 + D)) / 2, D = (0.2 (5 + E) + 0.25 E + 0.5 (1 + D)) / 2
    entrance = (0.65 + 0.25) / (1 - 0.1 - 0.25 * 0.3)
    assert exact.value(half) == pytest.approx(entrance)
    assert exact.values(half)[2].item() == pytest.approx(1 + 0.3 * entrance)


def test_the_best_policy_is_that_of_value_iteration(world: Tabular) -> None:
    """A plain loop over states, which reads the table and knows where feedback leads by itself."""
    types, contexts, skips, items, _ = world.table.shape
    values = torch.zeros(types, contexts, skips, dtype=torch.float64)
    for _ in range(400):
        known = values
        click = known[:, 1:, 0][:, None, None, :]  # (T, 1, 1, I): the detail page of the item
        order = known[:, 0, 0][:, None, None, None]
        more = torch.arange(skips).add(1).clamp(max=skips - 1)
        skip = known[:, 0, more][:, None, :, None].expand(types, contexts, skips, 1).clone()
        skip[:, 1:] = skip[:, 1:, :1]
        chances = world.table
        gain = chances[..., SKIP] * skip + chances[..., CLICK] * (1 + click) + chances[..., ORDER] * (5 + order)
        values = gain.max(-1).values
    exact = Exact(world)
    assert exact.value(exact.optimal()) == pytest.approx(values[:, 0, 0].mean().item(), abs=1e-9)
    reached = exact.states.skips.eq(0) | exact.states.page.eq(ENTRANCE)  # there are no skips on a detail page
    assert torch.allclose(exact.values(exact.optimal())[reached], values.flatten()[reached], atol=1e-8)
    assert items == 20


@pytest.mark.parametrize("name", ["optimal", "myopic", "independent", "popular", "random"])
def test_values_are_those_of_many_sessions(world: Tabular, name: str) -> None:
    exact = Exact(world)
    policy: Tensor = getattr(exact, name)()
    act = Exploring(torch.ones(world.items), 1.0, 3) if name == "random" else exact.as_function(policy)
    reward = play(world, act, 6000, 1, longest=LONG).reward
    error = reward.std().item() / len(reward) ** 0.5
    assert abs(reward.mean().item() - exact.value(policy)) < 4 * error
    assert error < 0.1


def test_a_function_of_states_has_the_value_of_its_table(world: Tabular) -> None:
    exact = Exact(world)
    best = exact.optimal()
    assert exact.value(exact.as_function(best)) == exact.value(best)
    assert exact.action_values(exact.values(best)).max(1).values.allclose(exact.values(best), atol=1e-8)


@pytest.mark.parametrize("order", [1.0, 5.0, 50.0])
@pytest.mark.parametrize("seed", range(5))
def test_it_costs_more_than_half_to_look_at_a_step_or_a_page_only(seed: int, order: float) -> None:
    exact = Exact(tabular.make(seed), (0, 1, order, 0))
    best = exact.value(exact.optimal())
    assert exact.value(exact.myopic()) < 0.45 * best
    assert exact.value(exact.independent()) < 0.45 * best
    assert exact.value(exact.random()) < 0.25 * best


def test_the_history_starts_with_the_marker_of_the_type(world: Tabular) -> None:
    state, users = world.start(50, torch.Generator().manual_seed(0))
    assert state.history[:, -1].equal(world.markers[users])
    assert (state.history[:, :-1] == NOTHING).all()
    assert len(set(world.markers.tolist())) == world.types == len(set(users.tolist()))


@pytest.mark.parametrize("kind", ["one_hot", "orthogonal"])
def test_each_item_is_the_nearest_to_its_vector(kind: str) -> None:
    vectors = tabular.make(0, vectors=kind, noise=0.3).vectors  # type: ignore[arg-type]
    assert (vectors @ vectors.T).argmax(1).equal(torch.arange(20))
    clean = tabular.make(0, vectors=kind).vectors  # type: ignore[arg-type]
    assert torch.allclose(clean @ clean.T, torch.eye(20), atol=1e-5)
    assert clean.equal(torch.eye(20)) == (kind == "one_hot")


def test_skips_in_a_row_make_users_leave_and_stop_to_count(world: Tabular) -> None:
    entrance = world.table[:, 0]
    assert (entrance[:, 1:, :, LEAVE] > entrance[:, :-1, :, LEAVE]).all()
    assert (entrance[:, 1:, :, CLICK] < entrance[:, :-1, :, CLICK]).all()
    state, users = world.start(3, torch.Generator().manual_seed(0))
    state.skips[:] = torch.tensor([3, 4, 99])
    users[:] = 0
    assert world.chances(users, state, torch.tensor([5, 5, 5])).unique(dim=0).shape[0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 9}, "items must be at least 10, so that all roles exist, got 9"),
        (
            {"items": 10, "types": 11},
            "types must be at most the number of items, 10, because each has a marker, got 11",
        ),
    ],
)
def test_too_few_items_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tabular.make(0, **options)


def test_a_table_that_holds_no_chances_is_refused() -> None:
    world = tiny()
    rest = world.markers, world.vectors, 3
    for change, message in ((0.1, "sum to 1"), (-0.9, "at least 0")):
        table = world.table.clone()
        table[0, 0, 0, 0, 1] += change
        with pytest.raises(ValueError, match=message):
            Tabular(table, *rest)
    staying = world.table.clone()
    staying[0, 0, 0, 1] = torch.tensor([0.5, 0.5, 0.0, 0.0])
    with pytest.raises(ValueError, match="the chance to leave must be above 0"):
        Tabular(staying, *rest)
    with pytest.raises(ValueError, match="2 vectors, got 3"):
        Tabular(world.table, world.markers, torch.eye(3), 3)


def test_a_history_that_lost_its_marker_is_told() -> None:
    exact = Exact(tabular.make(0))
    state = exact.states[torch.tensor([0])]
    state.history[:] = int(next(iter(set(range(20)) - set(exact.world.markers.tolist()))))
    with pytest.raises(ValueError, match="make the world's history longer"):
        exact.as_function(exact.optimal())(state)
