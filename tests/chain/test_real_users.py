"""Worlds of real users: halves, likings, rates and levels."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from pipeline.chain.calibrated import Basis, Calibrated
from pipeline.chain.logs import Exploring
from pipeline.chain.people import People, encoded, normal_scores, people
from pipeline.chain.rates import Rates, measured
from pipeline.chain.sessions import play
from pipeline.chain.world import CLICK, DETAIL, ENTRANCE, LEAVE, NOTHING, ORDER, State, World
from pipeline.chain.worlds import fitted, shifted
from pipeline.chain.worlds.fitted import Fitted
from pipeline.chain.worlds.shifted import Shifted
from pipeline.workflow.validation import checked_options
from tests.chain.conftest import ITEMS, USERS

REAL_DATA = Path(__file__).parents[2] / "../shared/data"
REAL = ("fitted_learn", "fitted_test", "shifted")


def rows_of(folder: Path, *parts: str) -> np.ndarray:
    return np.concatenate([np.load(folder / part / "ids.npy")[:, 1:3] for part in parts])


def test_halves_have_no_user_in_common_and_do_not_depend_on_the_seed(interactions: Path) -> None:
    """The items that a world's users know are those that the users of its half have in the files."""
    known = rows_of(interactions, "train", "arch")
    last = [hashlib.sha256(f"u{user}".encode()).digest()[-1] % 2 for user in range(USERS)]
    for number, half in enumerate(("learn", "test")):
        users = [user for user in range(USERS) if last[user] == number and (known[:, 0] == user).any()]
        for seed in (0, 1):
            made = people(encoded(interactions), half, seed, dim=4)  # type: ignore[arg-type]
            items = [sorted(part.tolist()) for part in made.known.tensor_split(made.starts[1:-1])]
            assert items == [sorted({int(i) for u, i in known if u == user}) for user in users]
            assert made.popularity.tolist() == np.bincount(np.concatenate(items), minlength=ITEMS).tolist()
        few = people(encoded(interactions), half, 0, dim=4, most=30)  # type: ignore[arg-type]
        assert len(few.liking) == 30 and few.popularity.equal(made.popularity)


@pytest.mark.parametrize("half", ["learn", "test"])
def test_users_like_what_the_data_say(interactions: Path, half: str) -> None:
    """Nine of ten interactions are within a block; users, items and held-out items of a block have the same parity."""
    made = people(encoded(interactions), half, 0, dim=4)  # type: ignore[arg-type]
    held = rows_of(interactions, "val", "test")
    last = [hashlib.sha256(f"u{user}".encode()).digest()[-1] % 2 == (half == "test") for user in range(USERS)]
    users = np.array([user for user in range(USERS - 1) if last[user]])  # the last one has one item only
    liking = made.liking[: len(users)].numpy()
    own = (np.arange(ITEMS - 1) % 2) == (users % 2)[:, None]  # but the cold item
    assert liking[:, :-1][own].mean() > 0.3 > -0.3 > liking[:, :-1][~own].mean()
    of_held = [liking[np.searchsorted(users, u), i] for u, i in held if u in set(users.tolist()) and i < ITEMS - 1]
    assert np.mean(of_held) > 0.2
    assert made.slope > 0.3
    alike = made.alike[:-1, :-1].numpy()
    same = (np.arange(ITEMS - 1)[:, None] % 2) == (np.arange(ITEMS - 1) % 2)
    assert alike[same].mean() > alike[~same].mean() + 0.1
    assert np.allclose(made.alike.diagonal(), 1) and made.alike.min() >= 0 and made.alike.max() <= 1


def test_the_half_that_learns_is_a_projection_and_the_other_is_not(interactions: Path) -> None:
    """PureSVD of the half by numpy: the ranks of scores and the items' vectors, but for signs."""
    made, other = people(encoded(interactions), "learn", 0, dim=4), people(encoded(interactions), "test", 0, dim=4)
    matrix = np.zeros((len(made.liking), ITEMS))
    for user, items in enumerate(made.known.tensor_split(made.starts[1:-1])):
        matrix[user, items] = 1
    _, scales, factors = np.linalg.svd(matrix)
    projected = matrix @ factors[:4].T @ factors[:4]
    agreement = [np.corrcoef(a, b)[0, 1] for a, b in zip(normal_scores(projected), made.liking.numpy(), strict=True)]
    assert np.mean(agreement) > 0.999
    vectors = factors[:4].T * np.sqrt(scales[:4])
    vectors /= np.linalg.norm(vectors, axis=1).mean()
    assert np.allclose(vectors @ vectors.T, made.vectors.double().numpy() @ made.vectors.double().numpy().T, atol=1e-4)
    assert made.vectors.equal(other.vectors)
    assert not torch.allclose(made.alike, other.alike, atol=0.05)


def test_normal_scores_are_quantiles_of_ranks() -> None:
    scores = normal_scores(np.array([[0.3, -1.0, 7.0, 0.5], [1.0, 1.0, 1.0, 2.0]]))
    quantiles = norm.ppf([0.375, 0.125, 0.875, 0.625, 0.375, 0.375, 0.375, 0.875])
    assert scores.ravel().tolist() == pytest.approx(quantiles.tolist(), abs=1e-6)


@pytest.mark.parametrize("name", REAL)
def test_sessions_of_popular_items_have_the_given_rates(worlds: dict[str, World], name: str) -> None:
    """With seeds that the calibration did not use."""
    world = worlds[name]
    assert isinstance(world, Calibrated)
    played = play(world, Exploring(world.people.popularity, 0.0, 99), 6000, 98)
    shares = played.counts.double() / played.counts.sum(1, keepdim=True)
    rates = Rates()
    assert shares[:, CLICK].tolist() == pytest.approx(rates.click, abs=0.015)
    assert shares[:, LEAVE].tolist() == pytest.approx(rates.leave, abs=0.01)
    orders = played.counts[:, ORDER].sum() / played.counts[:, CLICK].sum()
    assert orders.item() == pytest.approx(rates.order, abs=0.006)


def made_up(kind: type[Calibrated], **options: float) -> Calibrated:
    """One user, four items: 2 and 3 are alike; no calibration."""
    world = kind.__new__(kind)
    alike = torch.eye(4)
    alike[2, 3] = alike[3, 2] = 0.5
    liking = torch.tensor([[-1.0, 0.0, 0.5, 1.0]])
    starts, known = torch.tensor([0, 2]), torch.tensor([1, 2])
    world.people = People(liking, 2.0, alike, torch.eye(4), starts, known, torch.ones(4).double())
    world.vectors = world.people.vectors
    world.taking, world.leaving, world.ordering = (
        torch.tensor([0.5, -0.5]),
        torch.tensor([-2.0, -1.0]),
        torch.tensor(-3.0),
    )
    for name, value in options.items():
        setattr(world, f"_{name}", value)
    return world


def states() -> State:
    """On the entrance page after an item 0 and 7 skips; the same without skips; on the detail page of item 2."""
    history = torch.tensor([[NOTHING, 0], [NOTHING, 0], [0, 2]])
    page, shown = torch.tensor([ENTRANCE, ENTRANCE, DETAIL]), torch.tensor([NOTHING, NOTHING, 2])
    return State(history, page, shown, torch.tensor([7, 0, 0]))


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def test_smooth_answers_are_those_of_the_docstring() -> None:
    world = made_up(Fitted, alike=2.0, repeated=10.0, impatience=0.3)
    users = torch.zeros(3, dtype=torch.int64)
    got = world.chances(users, states(), torch.tensor([3, 0, 3])).tolist()
    expected = []
    for left, taken, liking in (
        (sigmoid(-2 + 0.3 * 5), sigmoid(2 * 1 - 0.5), 1.0),
        (sigmoid(-2), sigmoid(2 * -1 - 10 - 0.5), -1.0),
        (sigmoid(-1), sigmoid(2 * 1 + 2 * 0.5 + 0.5), 1.0),
    ):
        ordered = sigmoid(0.5 * liking - 3)
        took = (1 - left) * taken
        expected.append([1 - left - took, took * (1 - ordered), took * ordered, left])
    assert np.allclose(got, expected, atol=1e-6)


def test_thresholds_are_those_of_the_docstring() -> None:
    world = made_up(Shifted, boredom=2.0, impatience=1.5)
    users = torch.zeros(3, dtype=torch.int64)
    got = world.chances(users, states(), torch.tensor([3, 0, 3]))
    assert got[:, LEAVE].tolist() == pytest.approx([sigmoid(-0.5), sigmoid(-2), sigmoid(-1)], abs=1e-6)
    taken = (got[:, CLICK] + got[:, ORDER]) / (1 - got[:, LEAVE])
    assert taken.tolist() == pytest.approx([0.9, 0.05, 0.9], abs=1e-6)
    appeal = world.appeal(users, states(), torch.tensor([3, 0, 3])).tolist()
    assert appeal == pytest.approx([2.0, -np.inf, 2.0 - 2 * (1 - np.exp(-0.5))], abs=1e-6)
    world.taking[DETAIL] = appeal[2] + 0.01  # the threshold is just missed
    missed = world.chances(users, states(), torch.tensor([3, 0, 3]))
    assert missed[2, CLICK] < 0.1 * got[2, CLICK]


def test_a_history_starts_with_items_that_the_user_has(worlds: dict[str, World]) -> None:
    world = worlds["fitted_test"]
    assert isinstance(world, Calibrated)
    state, users = world.start(300, torch.Generator().manual_seed(2))
    starts = world.people.starts
    for history, user in zip(state.history.tolist(), users.tolist(), strict=True):
        own = world.people.known[starts[user] : starts[user + 1]].tolist()
        there = [item for item in history if item != NOTHING]
        assert set(there) <= set(own) and len(set(there)) == len(there) == min(4, len(own))


def test_rates_of_views_are_counted_from_the_sixth_on(tmp_path: Path) -> None:
    """Worked by hand. From the 6th view on: 0, 3, 3 | 0 | 3, 0, 3, 0, 0. Of five on the entrance page, two go to a
    detail page and two are the last; of four on the detail page, one goes to a detail page and one is the last."""
    pages = [1] * 5 + [0, 3, 3] + [3] * 5 + [0] + [3] * 5 + [3, 0, 3, 0, 0]
    file = tmp_path / "sessions.npz"
    np.savez(file, page=np.array(pages, np.uint8), length=np.array([8, 6, 10], np.int32))
    rates = measured(file, 0.1)
    assert rates.click == pytest.approx((2 / 5, 1 / 4))
    assert rates.leave == pytest.approx((2 / 5, 1 / 4))
    assert rates.order == 0.1


def test_the_default_rates_are_those_of_the_published_sessions() -> None:
    file = REAL_DATA / "clickstream-pages/sessions.npz"
    if not file.is_file():
        pytest.skip(f"there is no {file}")
    rates = measured(file)
    assert rates.click == pytest.approx(Rates().click, abs=0.0005)
    assert rates.leave == pytest.approx(Rates().leave, abs=0.0005)


def test_broken_views_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sessions.npz"
    for arrays, message in (
        ({"page": np.zeros(8)}, "has no array 'length'"),
        ({"page": np.zeros(8), "length": np.array([7])}, "its lengths sum to 7, but there are 8 views"),
        ({"page": np.zeros(8), "length": np.array([8])}, "has no 6th views of sessions on both pages"),
    ):
        np.savez(file, **arrays)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            measured(file)


def test_rates_that_leave_nothing_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"rates on the detail page must be above 0 and leave something for skips, got 0.9"
    ):
        Rates(click=(0.3, 0.9), leave=(0.1, 0.08))
    with pytest.raises(ValueError, match="rates on the entrance page must be above 0"):
        Rates(leave=(0.0, 0.1))


def test_rates_that_a_world_cannot_have_are_told(interactions: Path) -> None:
    users = people(encoded(interactions), "test", 0, dim=4)
    rates = Rates(click=(0.02, 0.5))  # below the chance of a slip
    with pytest.raises(
        ValueError, match=r"no level gives a mean rate of 0.021 for clicks: this world has 0.04\d+ to 0.[67]\d+"
    ):
        Shifted(Basis(users, rates, 8, 4, 0, 100), 2.0, 1.5)
    with pytest.raises(ValueError, match="known must be at most the length of the history, 3, got 4"):
        Basis(users, Rates(), 3, 4, 0, 100)


def test_data_that_make_no_world_are_refused(interactions: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"the learn half has \d+ users of {ITEMS} items, too few for {ITEMS} dimensions"
    ):
        people(encoded(interactions), "learn", 0, dim=ITEMS)


@pytest.mark.parametrize("module", [fitted, shifted])
def test_the_options_of_a_world_are_checked_like_those_of_a_plug(module: object) -> None:
    make = module.make  # type: ignore[attr-defined]
    assert checked_options([make], {"folder": "x", "half": "learn", "clickstream": None}, "params.yaml: chain")
    with pytest.raises(ValueError, match="half must be one of learn, test, got 'both'"):
        checked_options([make], {"folder": "x", "half": "both"}, "params.yaml: chain")
