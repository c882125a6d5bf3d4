"""Two processes that train together take the steps of one, and end together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.batches import Batches
from pipeline.data.encoded import Encoded
from pipeline.data.share import Share, divide
from pipeline.embeddings.batch import Lookup, divided
from pipeline.experiment.experiment import suitable
from pipeline.training.loop import fit
from tests.contracts import METHODS, TRAINED, built, draw_ids, make_backbone
from tests.contracts import SCHEMA as WIDE
from tests.interactions import retriever, write_interactions
from tests.training import cases
from tests.training.clicks import CTR, clicks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
NAMES = [name for name in METHODS if name not in cases.NOT_DIVIDED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves of trainings that two go on with."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in cases.CASES:
        (folder / name).mkdir()
    for name, of in (("resumed", cases.weights), ("search resumed", cases.searching)):
        cases.killed(of(), folder / name)
    return folder


@pytest.fixture(scope="module")
def two(folder: Path, forks: None) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    processes = cases.started(cases.run, folder)
    for process in processes:
        process.join(120)
    printed = "\n".join((folder / f"printed-{rank}.txt").read_text() for rank in range(2))
    assert [process.exitcode for process in processes] == [0, 0], printed
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    return lambda name: cases.CASES[name](tmp_path_factory.mktemp("alone"))


def assert_equal(one: Any, other: Any, **tolerance: float) -> None:
    torch.testing.assert_close(one, other, **{"rtol": 0, "atol": 1e-10, **tolerance})


@pytest.mark.parametrize("name", ["weights", "another backbone", "first order", "second order", "single level"])
def test_two_processes_take_the_steps_of_one(two: list[dict[str, Any]], alone: Callable[[str], Any], name: str) -> None:
    """With bags, BatchNorm, dropout, Gumbel noise and batches of odd sizes; in float64, to 1e-10."""
    expected = alone(name)
    for rank in range(2):
        found = two[rank][name]
        assert torch.equal(found["rng"], expected["rng"])
        assert [entry["auc"] for entry in found["history"]] == [entry["auc"] for entry in expected["history"]]
        for part in ("state", "losses", "trajectory"):
            if part in expected:
                assert_equal(found[part], expected[part])


def test_in_float32_the_auc_is_that_of_one_process(two: list[dict[str, Any]], alone: Callable[[str], Any]) -> None:
    """In a backbone without BatchNorm: Adam makes steps of the rounding of a bias that has no other gradient."""
    expected = [entry["auc"] for entry in alone("float32")]
    for results in two:
        assert [entry["auc"] for entry in results["float32"]] == pytest.approx(expected, abs=1e-4)


def test_in_bfloat16_the_auc_is_about_that_of_one_process(
    two: list[dict[str, Any]], alone: Callable[[str], Any]
) -> None:
    """Parts of a batch are rounded otherwise than the batch."""
    expected = [entry["auc"] for entry in alone("bfloat16")]
    for results in two:
        assert [entry["auc"] for entry in results["bfloat16"]] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}, search" for name in TRAINED)])
def test_the_gradients_of_every_method_are_those_of_the_whole_batch(two: list[dict[str, Any]], name: str) -> None:
    of = name.removesuffix(", search")
    expected = cases.gradients(cases.supernet(of), WIDE) if name != of else cases.gradients(*built(of)[:2])
    for rank in range(2):
        found = two[rank]["methods"][name]
        assert found.keys() == expected.keys() and torch.equal(found["rng"], expected["rng"])
        for key, value in expected.items():
            largest = float(value.abs().max()) if value.numel() else 0.0
            assert_equal(found[key], value, atol=1e-6 + 1e-5 * largest)


@pytest.mark.parametrize(
    ("two_did", "one_does", "name"), [("killed", "weights", "weights"), ("search killed", "search", "first order")]
)
def test_one_process_goes_on_with_what_two_have_begun(
    two: list[dict[str, Any]], folder: Path, alone: Callable[[str], Any], two_did: str, one_does: str, name: str
) -> None:
    assert (folder / two_did / "last.ckpt").exists() and 0 < len(two[0][two_did]["history"]) < cases.EPOCHS
    module = cases.weights() if one_does == "weights" else cases.searching()
    found, expected = cases.trained(module, folder / two_did), alone(name)
    assert len(found["history"]) == cases.EPOCHS and torch.equal(found["rng"], expected["rng"])
    assert_equal(found["state"], expected["state"])


@pytest.mark.parametrize(("name", "as_in"), [("resumed", "weights"), ("search resumed", "first order")])
def test_two_processes_go_on_with_what_one_has_begun(
    two: list[dict[str, Any]], alone: Callable[[str], Any], name: str, as_in: str
) -> None:
    expected = alone(as_in)
    for results in two:
        assert len(results[name]["history"]) == cases.EPOCHS
        assert_equal(results[name]["state"], expected["state"])


def test_the_first_process_alone_writes_checkpoints(two: list[dict[str, Any]], folder: Path) -> None:
    assert [path.name for path in (folder / "killed").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_occurrences_of_a_process_are_those_of_its_rows(rank: int) -> None:
    """The rows are found in the whole batch, and looked up as in the rows alone."""
    lookup, ids = Lookup(WIDE), draw_ids()[:100]
    share = Share(rank, 3)
    own, alone = divided(lookup(ids), share).own, lookup(ids[share.rows(100)])
    assert own is not None and own.shape == alone.shape
    assert torch.equal(own.rows[own.inverse], alone.rows[alone.inverse])
    for name in ("bags", "bag_starts", "weights"):
        assert torch.equal(getattr(own, name), getattr(alone, name))
    counted = torch.bincount(own.inverse, minlength=len(own.rows))
    assert torch.equal(torch.diff(own.starts, append=torch.tensor([len(own.order)])), counted)
    assert torch.equal(own.inverse[own.order], own.inverse.sort().values)


def test_shares_are_all_rows_and_differ_by_at_most_one() -> None:
    for total in (3, 10, 2001):
        shares = [Share(rank, 3).rows(total) for rank in range(3)]
        assert [row for rows in shares for row in range(total)[rows]] == list(range(total))
        sizes = [len(range(total)[rows]) for rows in shares]
        assert max(sizes) - min(sizes) <= 1


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    module = cases.weights()
    with pytest.raises(ValueError, match="there are 3 and 201 rows for 4 processes; raise the batch size"):
        module.divide(Share(0, 4), 3)
    cafe = cases.Model(WIDE, built("cafe")[0], cases.deepfm.Backbone)
    with pytest.raises(ValueError, match="AdaptiveRows learns from the gradients of all rows"):
        cases.LitWeights(cafe, CTR, clicks(50, 0), 1).divide(Share(0, 2), 10)
    pairs = Encoded.load(write_interactions(tmp_path, users=6, items=8))
    with pytest.raises(ValueError, match="compares the rows of a batch with each other, so 2 processes cannot share"):
        cases.LitWeights(retriever(pairs, "mf"), CTR, clicks(50, 0), 1).divide(Share(0, 2), 10)
    with pytest.raises(ValueError, match="layer Dropout of torch does not know of the rows of other processes"):
        divide([torch.nn.Dropout(0.1)], Share(0, 2))
    for name in suitable(interactions=False):
        divide(make_backbone(name).modules(), Share(0, 2))


def test_one_process_has_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    module = cases.weights()
    fit(module, Batches(clicks(335, 1), 50, seed=0), 1, None, tmp_path / "last.ckpt")
    assert module.share is None and not torch.distributed.is_initialized()
