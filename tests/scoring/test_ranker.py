"""A model for retrieval answers with the items that its task ranks first, wherever its folder is, or with one line."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data.encoded import Encoded
from pipeline.data.interactions import SHARED_FILES
from pipeline.data.split import PARTS
from pipeline.encoding.vocabulary import read_vocabulary
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.saved import load
from pipeline.scoring.export import FORMS, export
from pipeline.scoring.ranker import Ranker, rank_file, sentences
from pipeline.scoring.scorer import Scorer
from pipeline.sources.source import BadData
from pipeline.workflow.params import Params
from stages import export as export_stage
from stages import score
from tests.project import Project
from tests.scoring.conftest import searched
from tests.scoring.shop import USERS, trained


@pytest.fixture(scope="session")
def alone(graph: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The searched model, exported and moved: only read from it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    export(searched(graph), folder / "made", "trained")
    return Path(shutil.move(folder / "made", folder / "moved"))


def known(project: Project, *parts: str) -> dict[str, set[str]]:
    """The items of each user in some parts, by keys, from the rows of `encode`."""
    encoded = project.folder / "artifacts/encoded"
    users, items = (pd.read_parquet(encoded / f"{name}.parquet")["key"] for name in ("users", "items"))
    found: dict[str, set[str]] = {}
    for part in parts:
        for user, item in np.load(encoded / part / "ids.npy")[:, 1:3]:
            found.setdefault(users[user], set()).add(items[item])
    return found


def ranked(model: Path, out: Path, users: Path | None = None, k: int = 20) -> pd.DataFrame:
    rank_file(Ranker.load(model), users, out, k)
    return pd.read_csv(out, dtype={"user": str, "item": str})


def test_the_items_are_those_that_the_task_predicts_in_their_order(graph: Project, alone: Path, tmp_path: Path) -> None:
    with graph.inside():
        here = Experiment(Params.load(), Encoded.load("artifacts/encoded"))
        rows = here.data.split("val")
        model, _ = load(Path("artifacts/models/searched/seed-0"), here)
        predicted = here.task.predict(model, rows)  # which masks the items of train and arch
        items = pd.read_parquet("artifacts/encoded/items.parquet")["key"].to_numpy()
        users = pd.read_parquet("artifacts/encoded/users.parquet")["key"].to_numpy()
    ids = np.concatenate(rows.ids)
    _, firsts = np.unique(ids[:, 0], return_index=True)
    had = known(graph, *PARTS)
    lists = dict(iter(ranked(alone, tmp_path / "best.csv", k=7).groupby("user")))
    compared = 0
    for row, best in zip(ids[firsts], predicted, strict=True):
        if users[row[1]] in lists:
            mine = lists[users[row[1]]]
            later = had[users[row[1]]]  # items of val and test, too, are known once the model serves
            assert mine["item"].tolist() == [item for item in items[best[best >= 0]] if item not in later][:7]
            assert mine["rank"].tolist() == list(range(1, len(mine) + 1))
            assert (mine["score"].diff().dropna() <= 0).all() and mine["score"].between(-1.0001, 1.0001).all()
            compared += 1
    assert compared > 50


def test_all_users_of_the_training_data_are_ranked_without_the_items_that_they_know(
    graph: Project, alone: Path, tmp_path: Path
) -> None:
    table = ranked(alone, tmp_path / "best.csv", k=1000)
    had, of_train = known(graph, *PARTS), known(graph, "train")
    every = set(pd.read_parquet(graph.folder / "artifacts/encoded/items.parquet")["key"])
    assert set(table["user"]) == set(of_train) and len(of_train) >= USERS - 3
    for user, items in table.groupby("user")["item"]:
        assert set(items) == every - had[str(user)] and len(items) == len(set(items))


def test_known_items_are_ranked_where_people_buy_again(tmp_path: Path) -> None:
    options = {"negatives": 20, "mask_seen": False, "score": "dot"}
    project = trained(tmp_path, task={"name": "retrieval", "options": options}, backbone={"name": "mf", "options": {}})
    table = ranked(searched(project), tmp_path / "best.csv", k=1000)
    items = len(pd.read_parquet(project.folder / "artifacts/encoded/items.parquet"))
    assert (table.groupby("user").size() == items).all()


def test_users_of_a_file_are_ranked_once_each_in_its_order_and_unknown_ones_are_named(
    alone: Path, tmp_path: Path
) -> None:
    for name, text in {
        "users.csv": "who;other\nu5;1\nnobody;2\nu3;3\nu5;4\n?;5\n",
        "users.parquet": "",
    }.items():
        file = tmp_path / name
        if text:
            file.write_text(text)
        else:
            pd.DataFrame({"who": ["u5", "nobody", "u3", "u5", None]}).to_parquet(file)
        done = rank_file(Ranker.load(alone), file, tmp_path / "best.csv", 4)
        table = pd.read_csv(tmp_path / "best.csv")
        assert table["user"].tolist() == ["u5"] * 4 + ["u3"] * 4
        assert done.users == 2 and list(done.unknown) == ["nobody", None]
        (said,) = [line for line in sentences(done) if "left out" in line]
        assert said.startswith("left out 2 users of whom the model knows nothing")
        everyone = ranked(alone, tmp_path / "all.csv", k=4)
        expected = everyone[everyone["user"].isin(["u5", "u3"])].sort_values(["user", "rank"], ascending=[False, True])
        assert table["item"].astype(str).tolist() == expected["item"].tolist()


def test_a_user_without_training_rows_is_left_out(graph: Project, alone: Path, tmp_path: Path) -> None:
    late = sorted(set(known(graph, "val", "test")) - set(known(graph, "train")))
    assert late  # the log has users that come late
    file = tmp_path / "users.csv"
    file.write_text("who\nu5\n" + "\n".join(late) + "\n")
    assert list(rank_file(Ranker.load(alone), file, tmp_path / "best.csv", 4).unknown) == late


@pytest.mark.parametrize(
    ("text", "settings", "why"),
    [
        ("who\nnobody\n\n", {}, "must name a user that the model knows, e.g. u"),
        ("who\n", {}, "and there are no rows"),
        ("name\nu5\n", {}, "who"),
        ("who\nu5\n", {"column": "customer"}, "customer"),
        ("who\nu5\n", {"k": 0}, "--top: must be at least 1, got 0"),
        ("who\nu5\n", {"out": "best.txt"}, "must end in .csv or .parquet, got '.txt'"),
        ("who\nu5\n", {"out": "users.csv"}, "must not replace the rows"),
        (None, {}, "there is none"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line_and_nothing_is_written(
    alone: Path, tmp_path: Path, text: str | None, settings: dict[str, object], why: str
) -> None:
    file = tmp_path / "users.csv"
    if text is not None:
        file.write_text(text)
    arguments = {"k": 3, "column": None, "out": "best.csv"} | settings
    out = tmp_path / str(arguments.pop("out"))
    with pytest.raises((ValueError, BadData)) as error:
        rank_file(Ranker.load(alone), file, out, **arguments)  # type: ignore[arg-type]
    assert why in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == (["users.csv"] if text is not None else [])
    assert text is None or file.read_text() == text


def test_a_changed_file_of_an_exported_model_is_named(alone: Path, tmp_path: Path) -> None:
    for name in SHARED_FILES:
        folder = tmp_path / name
        shutil.copytree(alone, folder)
        file = folder / "encoding" / name
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        with pytest.raises(ValueError, match=f"{name}: is not as encode wrote it"):
            Ranker.load(folder)
        file.unlink()
        with pytest.raises(FileNotFoundError, match=name):
            Ranker.load(folder)


def test_a_model_for_retrieval_is_exported_as_trained_only(
    graph: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form in FORMS.keys() - {"trained"}:
        with pytest.raises(ValueError, match=f"exported only as trained, got {form}; use --format trained"):
            export(searched(graph), tmp_path / "out", form)
    monkeypatch.setattr(sys, "argv", ["export", str(searched(graph)), str(tmp_path / "out"), "--format", "trained"])
    export_stage.run()
    names = {file.name for file in (tmp_path / "out/encoding").iterdir()}
    assert names == {*SHARED_FILES, "schema.json", "vocabulary.parquet"}
    with pytest.raises(ValueError, match="ranks items and does not score rows"):
        Scorer.load(tmp_path / "out")


def oldest(log: pd.DataFrame) -> int:
    """The largest age of an event in the histories, of three, of training rows."""
    train = log.iloc[: int(0.7 * len(log))].assign(at=lambda rows: rows["at"].astype(int))
    return int(max(train.groupby("who")["at"].diff(places).max() for places in (1, 2, 3)))


@pytest.mark.parametrize("use", [True, False])
def test_two_towers_rank_by_the_history_at_the_end_of_the_log(tmp_path: Path, use: bool) -> None:
    backbone = {"name": "two_tower", "options": {"ids": "only", "user_id": use, "width": 8}}
    project = trained(tmp_path, encode__history=3, backbone=backbone)
    encoded, model = tmp_path / "artifacts/encoded", Ranker.load(searched(project)).model
    items = pd.read_parquet(encoded / "items.parquet")["key"].tolist()
    users = pd.read_parquet(encoded / "users.parquet")["key"].tolist()
    table = ranked(searched(project), tmp_path / "best.csv", k=3)
    log = pd.read_csv(tmp_path / "shop.csv", sep=";", dtype=str)
    learned = set(known(project, "train"))
    assert set(table["user"]) == (learned if use else set(log["who"]))
    ages = read_vocabulary(encoded / "vocabulary.parquet")["event_age"].to_pylist()
    for user, best in table.groupby("user"):
        events = log[log["who"] == user].iloc[::-1][:3]
        row = np.full((1, 10), -1, np.int32)
        row[0, :4] = 0, users.index(user), 0, 0
        for place, (item, at) in enumerate(zip(events["what"], events["at"], strict=True)):
            age = str(int(np.log2(1 + min(1500 - int(at), oldest(log)))))
            row[0, 4 + place], row[0, 7 + place] = items.index(item), 1 + ages.index(age)
        with torch.no_grad():
            query, vectors = model(torch.from_numpy(row))
        scores = (vectors @ query[0]).numpy()
        scores[[items.index(item) for item in known(project, *PARTS).get(str(user), ())]] = -np.inf
        assert best["item"].tolist() == [items[place] for place in np.argsort(-scores)[:3]]


def test_a_model_that_knows_no_user_says_so(tmp_path: Path) -> None:
    project = trained(tmp_path, backbone={"name": "two_tower", "options": {"ids": "only", "width": 8}})
    with pytest.raises(ValueError, match="knows no user, because it uses neither the field 'who' nor histories"):
        Ranker.load(searched(project))


def test_the_command_writes_a_file_or_stdout_and_says_what_it_did(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def said(*words: str) -> tuple[str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["score", str(alone), *words])
        score.run()
        printed = capsys.readouterr()
        return printed.out, printed.err.splitlines()

    out, lines = said("all", "best.csv", "--top", "3")
    assert not out and len(lines) == 1 and lines[0].startswith("score: ") and " users, " in lines[0]
    assert (pd.read_csv("best.csv").groupby("user").size() == 3).all()
    Path("users.tsv").write_text("customer;x\nu1;1\nnobody;2\n")
    said("users.tsv", "best.parquet", "--user", "customer")
    assert len(pd.read_parquet("best.parquet")) == len(pd.read_parquet("best.parquet").drop_duplicates("item")) <= 20
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"who\nu1\nnobody\n")))
    out, lines = said("-", "-", "--top", "2")
    assert len(out.splitlines()) == 3 and "'nobody'" in lines[0] and lines[1].startswith("score: 1 users, ")
    with pytest.raises(ValueError, match="--keep is for models that score rows"):
        said("all", "best.csv", "--keep", "who")


def test_without_faiss_an_index_is_refused_with_the_remedy(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(sys, "argv", ["score", str(alone), "all", str(tmp_path / "best.csv"), "--index", "hnsw"])
    with pytest.raises(ValueError, match=r"hnsw needs the package faiss-cpu; install it, e\.g\. with pip install"):
        score.run()
    assert not list(tmp_path.iterdir())


def test_top_is_refused_for_a_model_that_scores_rows(
    mixed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, option in ((("--top", "3"), "--top"), (("--user", "user"), "--user")):
        monkeypatch.setattr(sys, "argv", ["score", str(searched(mixed)), "rows.csv", str(tmp_path / "o.csv"), *words])
        with pytest.raises(ValueError, match=f"{option} is for models for retrieval"):
            score.run()
