"""Two processes with divided tables take the steps of one that has them all, and go on to the bit after a kill."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.backbones import fm
from pipeline.data.share import LOST, Share
from pipeline.embeddings.shards import Piece, Shards, pieces
from pipeline.training.loop import fit
from pipeline.training.weights import LitWeights
from tests.training import sharded
from tests.training.cases import started
from tests.training.clicks import CTR, SCHEMA, clicks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

needs_torchrec = pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason="TorchRec is no dependency")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, forks: None) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    processes = started(sharded.run, folder)
    for process in processes:
        process.join(300)
    printed = "\n".join((folder / f"printed-{rank}.txt").read_text() for rank in range(2))
    assert [process.exitcode for process in processes] == [0, 0], printed
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """To the bit."""
    assert one["history"] == other["history"] and len(one["history"]) == sharded.EPOCHS
    assert one["state"].keys() == other["state"].keys()
    for name, value in one["state"].items():
        assert torch.equal(value, other["state"][name]), name


@needs_torchrec
def test_two_processes_take_the_steps_of_one_with_adagrad(two: list[dict[str, Any]], tmp_path: Path) -> None:
    """Bags, first-order weights, padded columns and a table in two pieces, against Adagrad on whole ones."""
    found, model = two[0]["fm"], sharded.whole(fm)
    model.load_state_dict(found["begun"])
    torch.set_rng_state(found["drawn"])
    alone = LitWeights(model, CTR, clicks(201, 2), sharded.EPOCHS * sharded.STEPS, **sharded.OPTIONS)
    fit(alone, sharded.batches(), sharded.EPOCHS, None, tmp_path / "last.ckpt")
    expected = alone.trained().state_dict()
    assert found["state"].keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found["state"][name], value, rtol=0, atol=1e-5)
        assert not torch.allclose(found["begun"][name], value, atol=1e-3), name
    aucs = [[entry["auc"] for entry in history] for history in (found["history"], alone.history)]
    assert aucs[0] == pytest.approx(aucs[1], abs=1e-4) and two[1]["fm"]["history"] == found["history"]


@needs_torchrec
def test_the_first_weights_are_drawn_as_those_of_whole_tables(two: list[dict[str, Any]]) -> None:
    begun = two[0]["deepfm"]["begun"]
    tables = torch.cat([value.flatten() for name, value in begun.items() if "embedding.tables" in name])
    assert float(tables.std()) == pytest.approx(0.01, rel=0.15) and float(tables.mean().abs()) < 0.002
    assert not bool(begun["backbone.first_order.table.weight"].any())
    assert two[1]["deepfm"]["begun"].keys() < begun.keys()  # the other process has no tables


@needs_torchrec
def test_each_process_holds_its_pieces_only(two: list[dict[str, Any]]) -> None:
    rows, widths = SCHEMA.cardinalities.tolist(), [12, 4, 8]  # with a column for first-order weights, and zeros
    for rank, results in enumerate(two):
        own = [piece for piece in results["fm"]["pieces"] if piece["rank"] == rank]
        shapes = [(rows[piece["table"]], piece["stop"] - piece["start"]) for piece in own]
        assert [tuple(weight.shape) for weight in results["fm"]["weights"]] == shapes
    held = [sum(weight.numel() for weight in results["fm"]["weights"]) for results in two]
    assert sum(held) == sum(count * width for count, width in zip(rows, widths, strict=True))
    assert max(held) < 0.6 * sum(held)


@needs_torchrec
def test_a_killed_training_goes_on_to_the_bit(two: list[dict[str, Any]]) -> None:
    for results in two:
        assert 0 < len(results["killed"]["history"]) < sharded.EPOCHS
        assert_same(results["resumed"], results["deepfm"])


@needs_torchrec
def test_a_checkpoint_has_a_file_for_each_process_and_none_of_earlier_steps(two: list[dict[str, Any]]) -> None:
    assert two[0]["killed"]["files"] == ["last.ckpt", "last.ckpt.0-4", "last.ckpt.1-4"]


@needs_torchrec
def test_another_number_of_processes_is_refused(two: list[dict[str, Any]]) -> None:
    for results in two:
        assert "three.ckpt: 3 processes have begun this training" in results["of three"]
        assert "and there are 2; start 3 (retrain.devices), or remove the file to begin anew" in results["of three"]


@needs_torchrec
def test_a_damaged_file_of_one_process_makes_all_begin_anew(two: list[dict[str, Any]]) -> None:
    for results in two:
        assert_same(results["damaged"], results["deepfm"])


@needs_torchrec
def test_the_end_of_another_process_is_told(tmp_path: Path, forks: None) -> None:
    processes = started(sharded.dies, tmp_path)
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [1, -signal.SIGKILL]
    assert f"error: {LOST}\n" in (tmp_path / "printed-0.txt").read_text()


@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize(("rows", "widths"), [([100] * 6, [4, 8, 16, 4, 32, 8]), ([1, 10, 10_000], [4, 8, 12])])
def test_pieces_are_all_columns_once_and_balance_the_processes(
    rows: Sequence[int], widths: Sequence[int], number: int
) -> None:
    made = pieces(rows, widths, number)
    for table, width in enumerate(widths):
        own = [piece for piece in made if piece.table == table]
        assert [column for piece in own for column in range(piece.start, piece.stop)] == list(range(width))
        assert len({piece.rank for piece in own}) == len(own)
        assert all(piece.start % 4 == piece.stop % 4 == 0 for piece in own)
    load = [0] * number
    for piece in made:
        load[piece.rank] += rows[piece.table] * (piece.stop - piece.start)
    largest = max(rows[piece.table] * (piece.stop - piece.start) for piece in made)
    assert max(load) - min(load) <= largest


def test_a_table_above_the_fair_share_is_cut_by_columns() -> None:
    assert pieces([1000, 10], [12, 4], 2) == [Piece(0, 0, 4, 1), Piece(0, 4, 12, 0), Piece(1, 0, 4, 1)]
    assert pieces([1000, 10], [4, 4], 2) == [Piece(0, 0, 4, 0), Piece(1, 0, 4, 1)]  # four columns stay together


def test_without_torchrec_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchrec", None)
    with pytest.raises(ValueError, match=r"needs TorchRec and FBGEMM, which do not load .* -r requirements-torchrec"):
        Shards([4], [4], Share(0, 2))
