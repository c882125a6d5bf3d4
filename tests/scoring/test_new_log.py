"""The users of a new log are ranked by what they did there."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.data.encoded import Encoded
from pipeline.encoding.encoding import Encoding
from pipeline.encoding.new_log import read_log
from pipeline.scoring.export import export
from pipeline.scoring.ranker import Ranker
from pipeline.sources.source import BadData
from pipeline.workflow.outputs import checksum
from stages import score
from tests.project import SMALL, Project
from tests.scoring.conftest import searched
from tests.scoring.shop import USERS, described, shop, trained

ALIKE = "does this log write them as the training data do?"


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with a model that knows users by their histories alone: only read from it."""
    folder = tmp_path_factory.mktemp("towers")
    backbone = {"name": "two_tower", "options": {"ids": "only", "width": 8}}
    trained(folder, encode__history=3, backbone=backbone)
    return folder


def model_of(folder: Path) -> Path:
    return folder / "artifacts/models/searched/seed-0"


def write_log(file: Path, *events: tuple[str, str], kind: bool = False) -> Path:
    """A log of users and the rest of each line."""
    head = "who;what;at;kind" if kind else "who;what;at"
    file.write_text("\n".join([head, *(f"{user};{rest}" for user, rest in events)]) + "\n")
    return file


def best_of(ranker: Ranker, user: str, k: int = 5) -> list[tuple[str, float]]:
    """The items of a user with their scores."""
    (number,) = ranker.numbers(pa.array([user]))
    (batch,) = ranker.best(np.array([number]), k)
    return list(zip(batch["item"].to_pylist(), batch["score"].to_pylist(), strict=True))


def test_the_log_of_the_training_data_gives_the_histories_that_the_model_has(towers: Path) -> None:
    before = Ranker.load(model_of(towers))
    after, notes = before.after(towers / "shop.csv")
    assert not notes and len(after.answered) == len(before.answered) == USERS
    for user in before.users.to_pylist():
        assert best_of(after, user) == [(item, pytest.approx(score)) for item, score in best_of(before, user)]


def test_a_new_user_is_ranked_by_what_the_new_log_says_as_anybody_with_this_history(
    towers: Path, tmp_path: Path
) -> None:
    """Who did the same at the same time has the same scores; what a user had in the training data stays left out."""
    log = pd.read_csv(towers / "shop.csv", sep=";")
    past = log[log["who"] == "u5"].tail(3)
    events = [(user, f"{row.what};{row.at}") for row in past.itertuples() for user in ("u5", "stranger")]
    before = Ranker.load(model_of(towers))
    after, notes = before.after(write_log(tmp_path / "new.csv", *events, ("late", "100;1499")))
    assert not notes and after.users.to_pylist() == ["u5", "stranger", "late"]
    own, others = dict(best_of(after, "u5", k=99)), dict(best_of(after, "stranger", k=99))
    assert own == dict(best_of(before, "u5", k=99))
    had = {str(item) for item in log.loc[log["who"] == "u5", "what"]}
    assert set(others) - set(own) == had - {str(item) for item in past["what"]}
    assert {item: score for item, score in others.items() if item in own} == own


def test_a_new_item_is_ranked_by_its_content_and_stands_in_histories(tmp_path: Path) -> None:
    backbone = {"name": "two_tower", "options": {"width": 8}}
    trained(tmp_path, content=True, encode__history=3, backbone=backbone)
    before = Ranker.load(model_of(tmp_path))
    log = write_log(
        tmp_path / "new.csv", ("u1", "novelty;5;k2"), ("stranger", "101;7;k1"), ("u1", "100;8;k0"), kind=True
    )
    after, notes = before.after(log)
    assert notes == ["new items, which the model knows by their content alone: 1"]
    assert after.items.to_pylist() == [*before.items.to_pylist(), "novelty"]
    assert len(after.interactions.counts) == len(after.items)
    columns, number = after.interactions.columns, {item: n for n, item in enumerate(after.items.to_pylist())}
    latest = [[number["100"], number["novelty"], -1], [number["101"], -1, -1]]
    assert columns.of_history(after.rows).tolist() == latest
    scores = dict(best_of(after, "stranger", k=99))
    assert scores["novelty"] == pytest.approx(scores["102"]) != pytest.approx(scores["103"])  # 102 is of kind 2, too
    assert "novelty" not in dict(best_of(after, "u1", k=99))  # who has it
    assert "novelty" not in before.items.to_pylist()  # the model that was loaded stays as it is


def test_a_new_item_of_which_the_model_would_know_nothing_is_left_out(towers: Path, tmp_path: Path) -> None:
    """All such items would have the same score."""
    before = Ranker.load(model_of(towers))
    log = write_log(tmp_path / "new.csv", ("u1", "novelty;5"), ("u2", "101;7"), ("u1", "100;8"), ("u3", "novelty;9"))
    after, notes = before.after(log)
    assert notes == ["left out 2 rows of items that the model does not know"]
    assert after.items.to_pylist() == before.items.to_pylist() and after.users.to_pylist() == ["u2", "u1"]
    with pytest.raises(BadData, match=r"new.csv: must have an item that the model knows; write items as the training"):
        before.after(write_log(tmp_path / "new.csv", ("u1", "novelty;5")))


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("2024-01-01T00:00:{}", "must have times in the form of the training data, whole numbers without a unit, got"),
        ("{}", None),
    ],
)
def test_times_must_have_the_unit_of_the_training_data(
    towers: Path, tmp_path: Path, form: str, why: str | None
) -> None:
    """Ages in another unit would be those of other events."""
    log = write_log(tmp_path / "new.csv", *(("u1", f"100;{form.format(10 + second)}") for second in range(9)))
    with pytest.raises(BadData, match=why) if why else contextlib.nullcontext():
        Ranker.load(model_of(towers)).after(log)


def test_unknown_types_of_events_are_told(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    options = {"interactions": {"user": "who", "item": "what", "event": "kind"}, "time": "at", "delimiter": ";"}
    project = Project(tmp_path / "project", **SMALL)
    project.give(
        dataset={"name": "table", "path": "shop.csv", "options": options},
        encode__split={"by": "time", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1},
        encode__history=3,
    )
    (project.folder / "shop.csv").write_text(described(shop()))
    project.run("ingest", "encode")
    with project.inside():
        encoding, known = Encoding.load("artifacts/encoded"), Encoded.load("artifacts/encoded").interactions
    items = pd.read_parquet(project.folder / "artifacts/encoded/items.parquet")["key"]
    assert known is not None
    for kind, note in {
        "k1": [],
        "gift": [
            "3 of 3 events in histories are of an unknown type; does this log write them as the training data do?"
        ],
    }.items():
        events = [("u1", "100;5;k1"), ("u1", "101;6;k1"), ("u2", "101;7;k1")]
        log = write_log(tmp_path / "new.csv", *((u, rest.replace("k1", kind)) for u, rest in events), kind=True)
        assert read_log(log, encoding, known, pa.array(items.tolist())).notes == note


def test_a_model_that_uses_identities_leaves_out_users_without_one(tmp_path: Path) -> None:
    options = {"ids": "only", "user_id": True, "width": 8}
    trained(tmp_path, encode__history=3, backbone={"name": "two_tower", "options": options})
    ranker = Ranker.load(model_of(tmp_path))
    after, notes = ranker.after(write_log(tmp_path / "new.csv", ("u5", "100;1"), ("nobody", "101;2")))
    assert after.users.take(pa.array(after.answered)).to_pylist() == ["u5"]
    assert notes[0].startswith("left out 1 users of whom the model knows nothing") and "'nobody'" in notes[0]
    with pytest.raises(ValueError, match=r"new.csv: must have events of a user that the model knows, e.g. u"):
        ranker.after(write_log(tmp_path / "new.csv", ("nobody", "101;2")))


@pytest.mark.parametrize(
    ("text", "why"),
    [("who;what;at\n", "there are no rows"), ("who;what\nu1;100\n", "at"), ("who;what;at\nu1;100;soon\n", "soon")],
)
def test_a_log_that_cannot_be_read_is_refused(towers: Path, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(BadData, match=f"new.csv.*{why}"):
        Ranker.load(model_of(towers)).after(tmp_path / "new.csv")


def test_models_without_histories_refuse_a_new_log(graph: Project, towers: Path, tmp_path: Path) -> None:
    log = write_log(tmp_path / "new.csv", ("u5", "100;1"))
    with pytest.raises(ValueError, match="a graph model reads no histories; train it again, with the new events"):
        Ranker.load(searched(graph)).after(log)
    export(model_of(towers), tmp_path / "old", "trained")
    about = tmp_path / "old/encoding/schema.json"
    record = json.loads(about.read_text())
    del record["interactions"]["oldest"]
    about.write_text(json.dumps(record))
    model = json.loads((tmp_path / "old/model.json").read_text())
    (tmp_path / "old/model.json").write_text(json.dumps(model | {"encoding": checksum(about)}))
    with pytest.raises(ValueError, match=r"an earlier version encoded the training data.*run `dvc repro`"):
        Ranker.load(tmp_path / "old").after(log)


def test_the_command_ranks_the_users_of_a_new_log(
    towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def said(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["score", str(model_of(towers)), *words])
        score.run()
        return capsys.readouterr().err.splitlines()

    write_log(Path("new.csv"), ("a", "100;1"), ("a", "new;2"), ("b", "103;2"), ("", "103;2"))
    lines = said("new.csv", "best.csv", "--histories", "--top", "3")
    assert lines[0] == "score: left out 1 rows without a value in 'who'" and "left out 1 rows of items" in lines[1]
    assert lines[2].startswith("score: 2 users, ") and len(lines) == 3
    assert pd.read_csv("best.csv").groupby("user").size().to_dict() == {"a": 3, "b": 3}
    kept = Path("best.csv").read_bytes()
    for words, why in {
        ("new.csv", "best.csv", "--histories", "--user", "who"): "--user is for a file of users, and --histories for a",
        ("new.csv", "new.csv", "--histories"): "must not replace the rows",
        ("nothing.csv", "best.csv", "--histories"): "there is none",
        ("all", "best.csv", "--histories"): "all: must be a file of rows",
    }.items():
        with pytest.raises(ValueError, match=why):
            said(*words)
    assert Path("best.csv").read_bytes() == kept
