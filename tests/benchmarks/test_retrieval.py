"""Recommenders take turns in processes of their own, train on the same pairs, and what is not there is named."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import recommenders, retrieval
from benchmarks.alone import ProcessFailed
from pipeline.data.encoded import Encoded
from pipeline.data.interactions import ITEM_COLUMN, USER_COLUMN
from tests.interactions import write_interactions

ECHO = "import sys\nprint('\"ready\"', flush=True)\nfor number, _ in enumerate(sys.stdin): print(number, flush=True)"


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 users with 12 items each in the layout of the benchmarks, in the folder of LastFM."""
    folder = tmp_path_factory.mktemp("data") / retrieval.LASTFM
    folder.mkdir()
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(30)[:12] for _ in range(40)]
    for name, part in (("train.txt", slice(0, 9)), ("test.txt", slice(9, 12))):
        lines = (" ".join(map(str, [user, *items[part]])) for user, items in enumerate(chosen))
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder.parent


def test_a_process_speaks_once_a_turn_and_one_that_ends_is_reported_with_what_it_printed() -> None:
    contestant = retrieval.Contestant("echo", [sys.executable, "-c", ECHO])
    assert contestant.said == "ready"
    assert [contestant.turn(), contestant.turn()] == [0, 1]
    contestant.close()
    with pytest.raises(ProcessFailed, match="a rival failed") as caught:
        retrieval.Contestant("a rival", [sys.executable, "-c", "import a_module_that_nobody_has"])
    assert caught.value.reason == "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"


def test_the_others_get_the_users_and_items_that_the_project_trains_on(tmp_path: Path) -> None:
    folder = write_interactions(tmp_path / "encoded", history=0)
    known = Encoded.load(folder).interactions.pairs("train", "arch")
    assert sorted(map(tuple, recommenders.pairs(str(folder)))) == sorted(zip(known.users, known.items, strict=True))
    assert (USER_COLUMN, ITEM_COLUMN) != (0, 1), "the first two columns would be wrong"


def test_an_epoch_sees_every_training_row_once_with_one_negative_and_the_softmax_all_items(tmp_path: Path) -> None:
    folder = str(write_interactions(tmp_path / "encoded", history=0))
    rows = len(recommenders.pairs(folder))
    for loss in recommenders.LOSSES:
        module, batches, _ = recommenders.prepared(folder, "mf", loss, 64, recommenders.Timed)
        taken = [batches.take() for _ in range(len(batches))]
        assert sum(len(batch.ids) for batch in taken) == rows
        for batch in taken:
            trained = np.unique(recommenders.pairs(folder)[:, 1])
            wanted = (len(batch.ids), 1) if loss == recommenders.BPR else (len(trained),)
            assert tuple(batch.drawn.numbers.shape) == wanted
        fresh, again, _ = recommenders.prepared(folder, "mf", loss, 64, recommenders.Timed)
        recommenders.train(fresh, again, 1)
        assert fresh.steps == len(batches) and fresh.history == []
        assert fresh.said["seconds"] > 0 and fresh.said["peak_mib"] > 1
        weights = [m.model.embedding.tables[str(recommenders.DIM)].weight for m in (fresh, module)]
        assert not torch.equal(*weights), "nothing was trained"


def test_data_and_libraries_that_are_not_there_are_named_in_one_line_each(
    lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "MODELS", {"MF": "mf"})  # each model takes seconds to start
    found = retrieval.run(lists, sys.executable, {retrieval.LASTFM: 2})  # the project's Python has no RecBole
    entries = found["epochs"]["LastFM"]
    assert [(e["model"], e["library"], e["loss"]) for e in entries] == [
        ("MF", "this project", loss) for loss in ("bpr", "softmax")
    ]
    assert all(len(e["seconds"]) == len(e["cpu_seconds"]) == 2 and min(e["seconds"]) > 0 for e in entries)
    assert [e["ratio"] for e in entries if e["loss"] == "bpr"] == [1.0]
    assert set(found["propagation"]) == {"LastFM"} and len(found["propagation"]["LastFM"]) == 3
    assert all(math.isfinite(entry["ratio"]) for entry in found["propagation"]["LastFM"].values())
    starts = [line.partition(":")[0] for line in found["left out"]]
    assert starts == ["recbole BPR", "implicit BPR", "implicit ALS", "MovieLens-1M", "Gowalla"]
    assert all("\n" not in line for line in found["left out"])
    assert "No module named 'recbole'; python -m venv" in found["left out"][0]
    assert all(entry["met"] is None for entry in found["targets"])
    said = retrieval.table(json.loads(json.dumps(found)))
    assert said.startswith("## ") and "\n| MF | this project | softmax | 2048 |" in said
    assert said.count("Left out: ") == 5


def test_without_an_environment_of_the_others_it_is_said_how_to_make_one(tmp_path: Path) -> None:
    found = retrieval.run(tmp_path, None)
    assert found["left out"][0].endswith(retrieval.HOW) and len(found["left out"]) == 4
    assert found["ranking"] is None and found["epoch"] is None
