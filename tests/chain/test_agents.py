"""Actors choose as the equations say, and variants differ in what they say they differ in."""

import pytest
import torch

from pipeline.chain.agents import VARIANTS, Agents, Brain
from pipeline.chain.world import DETAIL, ENTRANCE, NOTHING, State
from pipeline.workflow.chain import Networks
from tests.chain.tiny import ITEMS, random_log

VECTORS = torch.randn(ITEMS, 3, generator=torch.Generator().manual_seed(1))
STATE = random_log(300, 1).state


def agents(variant: str = "deepchain", **options: object) -> Agents:
    torch.manual_seed(0)
    return Agents(VECTORS, variant, Networks(memory=4, hidden=8, skips=2, message=3, **options))  # type: ignore[arg-type]


def only_brain(made: Agents) -> Brain:
    (brain,) = made.brains
    assert isinstance(brain, Brain)
    return brain


@torch.no_grad()
def proto_items(brain: Brain, state: State) -> list[torch.Tensor]:
    """tanh(W_k p + b_k), state by state; the page of the state says k."""
    found = []
    for row in range(len(state)):
        one = state[torch.tensor([row])]
        p, page = brain.encoder.remember(one)[0], int(one.page)
        skips = torch.nn.functional.one_hot(one.skips.clamp(max=2), 3)[0]
        shown = torch.zeros(3) if page == ENTRANCE else VECTORS[int(one.shown)]
        if brain.messages:
            sender = brain.senders[1 - page]
            seen = torch.cat([p[page], torch.tanh(sender.weight @ p[1 - page] + sender.bias), skips, shown])
        else:
            seen = torch.cat([p[0], skips, shown])
        actor = brain.actors[page if len(brain.actors) > 1 else 0]
        found.append(torch.tanh(actor.weight @ seen + actor.bias))
    return found


@pytest.mark.parametrize("variant", ["deepchain", "deepchain_free", "single", "messages"])
def test_the_item_is_the_nearest_to_the_proto_item_of_the_page(variant: str) -> None:
    made = agents(variant, choose="nearest")
    nearness = [(VECTORS @ proto).tolist() for proto in proto_items(only_brain(made), STATE)]
    assert made(STATE).tolist() == [row.index(max(row)) for row in nearness]
    assert len(set(made(STATE).tolist())) > 1


def test_the_critic_chooses_among_the_nearest_items_or_all_of_them() -> None:
    made = agents(candidates=3, exact_items=0)
    brain = only_brain(made)
    _, features = brain.read(STATE)
    q = torch.stack([brain.score(features, VECTORS[[item] * len(STATE)]) for item in range(ITEMS)], 1)
    expected = []
    for proto, values in zip(proto_items(brain, STATE), q.tolist(), strict=True):
        near = sorted(range(ITEMS), key=lambda item: -float(VECTORS[item] @ proto))[:3]
        expected.append(max(near, key=lambda item: values[item]))
    assert made(STATE).tolist() == expected
    torch.testing.assert_close(brain.value(STATE), q.gather(1, torch.tensor(expected)[:, None])[:, 0])

    exact = agents(exact_items=ITEMS)
    assert torch.equal(exact(STATE), q.argmax(1)) and not torch.equal(exact(STATE), made(STATE))
    torch.testing.assert_close(only_brain(exact).value(STATE), q.max(1).values)
    assert torch.equal(agents(exact_items=0, candidates=100)(STATE), q.argmax(1))


def test_independent_agents_act_each_on_their_own_page() -> None:
    made = agents("independent", choose="nearest")
    assert [brain.pages for brain in made.brains] == [(ENTRANCE,), (DETAIL,)]
    chosen = made(STATE)
    for page, brain in enumerate(made.brains):
        here = STATE.page == page
        assert 0 < int(here.sum()) < len(STATE)
        assert torch.equal(chosen[here], brain.choose(STATE[here])[0])  # type: ignore[operator]
        assert torch.equal(made(STATE[here]), chosen[here])
    parameters = [set(map(id, brain.parameters())) for brain in made.brains]
    assert not parameters[0] & parameters[1]


@pytest.mark.parametrize(("variant", "knows"), [("deepchain", True), ("messages", True), ("single", False)])
def test_only_a_critic_with_heads_knows_the_page(variant: str, knows: bool) -> None:
    """Nothing else of the state differs here."""
    brain = only_brain(agents(variant))
    pages = [torch.full((len(STATE),), page) for page in (ENTRANCE, DETAIL)]
    nothing = torch.full((len(STATE),), NOTHING)
    here, there = (brain.read(State(STATE.history, page, nothing, STATE.skips))[1] for page in pages)
    assert torch.equal(here, there) != knows
    assert len(brain.actors) == 1 + knows


def test_exploration_draws_a_share_of_the_items_and_disturbs_the_proto_items() -> None:
    made = agents(choose="nearest")
    many = STATE[torch.arange(len(STATE)).repeat(20)]

    def explored(noise: float, random: float, seed: int = 0) -> torch.Tensor:
        return made.explore(many, torch.Generator().manual_seed(seed), noise, random)

    assert torch.equal(explored(0.0, 0.0), made(many))
    assert torch.equal(explored(0.1, 0.1), explored(0.1, 0.1))
    assert not torch.equal(explored(0.1, 0.1), explored(0.1, 0.1, seed=1))
    changed = float((explored(0.0, 0.3) != made(many)).double().mean())
    assert changed == pytest.approx(0.3 * (1 - 1 / ITEMS), abs=0.02)
    little, much = (float((explored(noise, 0.0) != made(many)).double().mean()) for noise in (0.01, 1.0))
    assert 0 < little < 0.1 < 0.3 < much


def test_agents_own_no_item_vectors() -> None:
    for variant in VARIANTS:
        made = agents(variant)
        assert all(parameter.shape != VECTORS.shape for parameter in made.parameters())
        assert not any("table" in name for name in made.state_dict())


def test_unknown_agents_are_refused() -> None:
    message = r"no agents 'deepchian' \(did you mean 'deepchain'\?\); valid are deepchain, "
    with pytest.raises(ValueError, match=message):
        agents("deepchian")
