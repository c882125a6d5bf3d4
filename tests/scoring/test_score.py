"""Raw rows get the probabilities that `evaluate` gives them, from any file and in any folder, or one clear line."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.encoded import Encoded
from pipeline.datasets.table import unlabelled
from pipeline.encoding.encoding import Encoding
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.saved import ABOUT, load
from pipeline.scoring import files, scorer
from pipeline.scoring.export import export
from pipeline.scoring.files import Scored, score_file
from pipeline.scoring.pyfunc import Rows
from pipeline.scoring.scorer import Scorer
from pipeline.serving.served import Served
from pipeline.sources.source import BadData
from pipeline.workflow.params import Params
from stages import score
from tests.project import Project
from tests.scoring.conftest import OPTIONS, ROWS, lines, searched, trained


def without(*columns: str) -> list[str]:
    """The lines of the click log without some columns."""
    header = lines()[0].split(";")
    places = [place for place, name in enumerate(header) if name not in columns]
    return [";".join(line.split(";")[place] for place in places) for line in lines()]


def written(file: Path, text: Sequence[str]) -> Path:
    file.write_text("\n".join(text) + "\n")
    return file


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """All rows of the click log, without label and time."""
    return written(tmp_path / "rows.csv", without("clicked", "at"))


def as_parquet(file: Path) -> Path:
    """The rows of a text file with the types that a database would give them."""
    table = pd.read_csv(file, sep=";", na_values=["", "?"], keep_default_na=False)
    assert table["item"].dtype == table["price"].dtype == float  # whole numbers with gaps
    tags = [None if pd.isna(text) else text.split("/") for text in table["tags"]]
    columns = {name: pa.Array.from_pandas(table[name]) for name in table if name != "tags"}
    pq.write_table(pa.table({**columns, "tags": pa.array(tags, pa.list_(pa.string()))}), file.with_suffix(".parquet"))
    return file.with_suffix(".parquet")


def scored(model: Path, rows: Path, keep: Sequence[str] = ()) -> tuple[pd.DataFrame, Scored]:
    out = rows.with_name("out.parquet")
    result = score_file(Scorer.load(model), rows, out, keep)
    return pd.read_parquet(out), result


def evaluated(project: Project, int8: bool = False) -> np.ndarray:
    """The probabilities of the test rows, as `evaluate` predicts them."""
    with project.inside():
        here = Experiment(Params.load(), Encoded.load("artifacts/encoded"))
        model, _ = load(Path("artifacts/models/searched/seed-0"), here)
        predictions = here.task.predict(Served.of(model, int8=True) if int8 else model, here.data.split("test"))
    probabilities: np.ndarray = 1 / (1 + np.exp(-predictions.astype(np.float64)))
    return probabilities


def test_rows_of_csv_and_of_parquet_have_the_probabilities_of_the_evaluation(project: Project, rows: Path) -> None:
    expected = evaluated(project)
    assert len(expected) == 90 and np.ptp(expected) > 0.001
    for file in (rows, as_parquet(rows)):
        table, result = scored(searched(project), file, ["event", "user"])
        assert list(table) == ["event", "user", "probability"]
        assert list(table["event"]) == [f"e{row}" for row in range(ROWS)] and result.rows == ROWS
        np.testing.assert_allclose(table["probability"][-len(expected) :], expected, rtol=0, atol=1e-6)


def test_exported_models_answer_alike_in_another_folder(project: Project, rows: Path, tmp_path: Path) -> None:
    for form in ("trained", "served"):
        export(searched(project), tmp_path / "made" / form, form)
        moved = (tmp_path / "made" / form).rename(tmp_path / form)
        table, _ = scored(moved, rows)
        np.testing.assert_allclose(table["probability"][-90:], evaluated(project), rtol=0, atol=1e-6)


def test_int8_tables_answer_as_those_that_evaluate_reports(mixed: Project, rows: Path, tmp_path: Path) -> None:
    export(searched(mixed), tmp_path / "int8", "served", int8=True)
    table, _ = scored(tmp_path / "int8", rows)
    np.testing.assert_allclose(table["probability"][-90:], evaluated(mixed, int8=True), rtol=0, atol=1e-6)


def test_the_raw_table_of_any_data_set_gives_the_ids_of_its_encoded_rows(finished: Project, tmp_path: Path) -> None:
    raw, encoding = (
        finished.folder / "artifacts/raw/table.parquet",
        Encoding.load(finished.folder / "artifacts/encoded"),
    )
    ids = np.concatenate([encoding.ids(batch)[0] for batch in pq.ParquetFile(raw).iter_batches()])
    data = Encoded.load(finished.folder / "artifacts/encoded")
    expected = np.concatenate([*data.split("train", "arch", "val", "test").ids])
    assert np.array_equal(
        np.unique(ids, axis=0, return_counts=True)[1], np.unique(expected, axis=0, return_counts=True)[1]
    )
    assert np.array_equal(np.unique(ids, axis=0), np.unique(expected, axis=0))
    shutil.copy(raw, tmp_path / "rows.parquet")
    by_parquet, _ = scored(finished.folder / "artifacts/models/full/seed-1", tmp_path / "rows.parquet")
    table = pq.read_table(raw).to_pandas().drop(columns=["label", "oracle"])
    table["tags"] = ["|".join(tags) for tags in table["tags"]]
    table.to_csv(tmp_path / "rows.csv", index=False)
    by_text, _ = scored(finished.folder / "artifacts/models/full/seed-1", tmp_path / "rows.csv")
    assert len(by_text) == len(table) and by_text.equals(by_parquet)


def test_the_size_of_a_batch_changes_no_answer(mixed: Project, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, counts = scored(searched(mixed), rows)
    monkeypatch.setattr(scorer, "TOGETHER", 37)
    pieces, counts_of_pieces = scored(searched(mixed), rows)
    np.testing.assert_allclose(pieces["probability"], whole["probability"], rtol=0, atol=1e-6)
    assert counts_of_pieces.counts == counts.counts


def test_unknown_values_are_counted_by_field_and_missing_ones_are_known(mixed: Project, tmp_path: Path) -> None:
    text = ["event;tags;share;price;item;user", "a;t1/t2/new;0.5;7;101;u1", "b;;;?;;nobody", "c;new/newer;.1;1e9;x;"]
    _, result = scored(searched(mixed), written(tmp_path / "rows.csv", text))
    known = {"user": 3, "item": 3, "price": 3, "share": 3}
    assert {name: counts.values for name, counts in result.counts.items()} == {**known, "tags": 5}
    unknown = {name: counts.unknown for name, counts in result.counts.items()}
    assert unknown == {"user": 2, "item": 1, "price": 0, "share": 0, "tags": 3}  # no training row lacks its user
    assert next(iter(files.told(result))) == "user  2 of 3 values are unknown (66.7%)"


def test_part_files_of_a_folder_are_scored_in_the_order_of_their_names(
    mixed: Project, rows: Path, tmp_path: Path
) -> None:
    whole, counts = scored(searched(mixed), rows, ["event"])
    header, *text = without("clicked", "at")
    (tmp_path / "parts").mkdir()
    written(tmp_path / "parts" / "b.csv", [header, *text[500:]])
    written(tmp_path / "parts" / "a.csv", [header, *text[:500]])
    out = tmp_path / "out.parquet"
    result = score_file(Scorer.load(searched(mixed)), tmp_path / "parts", out, ["event"])
    pieces = pd.read_parquet(out)
    assert list(pieces["event"]) == list(whole["event"]) and result.counts == counts.counts
    np.testing.assert_allclose(pieces["probability"], whole["probability"], rtol=0, atol=1e-6)
    assert next(iter(files.told(result))).startswith("read 2 files, from ")


def test_fields_of_dates_are_made_of_the_column_of_the_file(tmp_path: Path) -> None:
    header, *text = lines()
    times = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(ROWS), "h")
    dated = [f"{header};seen", *(f"{line};{time.isoformat()}" for line, time in zip(text, times, strict=True))]
    options = {**OPTIONS, "dates": {"seen": ["hour", "weekday"]}}
    project = trained(tmp_path, dataset={"name": "table", "path": "clicks.csv", "options": options}, text=dated)
    rows = written(tmp_path / "rows.csv", [line.split(";", 2)[2] for line in dated])
    table, _ = scored(searched(project), rows, ["seen", "event"])
    np.testing.assert_allclose(table["probability"][-90:], evaluated(project), rtol=0, atol=1e-6)
    assert table["seen"][0] == "2024-01-01T00:00:00"
    model = Scorer.load(searched(project))
    frame = pd.read_csv(rows, sep=";", na_values=["?"], dtype={"item": str}).head(3)
    answers = Rows(model).predict(pd.concat([model.example(), frame]))
    np.testing.assert_allclose(answers["probability"][1:], table["probability"][:3], rtol=0, atol=1e-6)


def test_values_that_find_no_slot_in_a_bag_are_told(mixed: Project, tmp_path: Path) -> None:
    text = ["user;item;price;share;tags", "u1;101;3;.5;t0/t1/t2/t3/t4", "u1;101;3;.5;t0"]
    _, result = scored(searched(mixed), written(tmp_path / "rows.csv", text))
    assert list(files.told(result))[-1].startswith("bag 'tags': cut 2 values of 1 rows")


def test_a_file_without_rows_gives_a_file_without_answers(mixed: Project, rows: Path) -> None:
    written(rows, without("clicked", "at")[:1])
    table, result = scored(searched(mixed), rows, ["event"])
    assert list(table) == ["event", "probability"] and len(table) == result.rows == 0


def test_a_file_without_a_header_has_the_columns_of_the_training_file_with_or_without_the_label(tmp_path: Path) -> None:
    options = {name: value for name, value in OPTIONS.items() if name not in ("positive", "time")}
    expected = list(unlabelled(written(tmp_path / "rows.csv", lines()), **options).batches)
    for text in (lines()[1:], without("clicked")[1:], without("clicked"), without("clicked", "event", "at")):
        source = unlabelled(written(tmp_path / "rows.csv", text), names=lines()[0].split(";"), **options)
        assert list(source.batches) == expected
    with pytest.raises(BadData, match="line 1: must have 8 values, has 6"):
        text = without("clicked", "at")[1:]
        list(unlabelled(written(tmp_path / "rows.csv", text), names=lines()[0].split(";"), **options).batches)


REFUSED = [
    (
        ["user;item;price;share", "u1;101;3;.5"],
        "line 1: no column 'tags'; there are ['user', 'item', 'price', 'share']",
    ),
    (["user;item;price;share;tags", "u1;101;much;.5;"], "line 2: column 'price' must be a number, got 'much'"),
    (["user;item;price;share;tags", "u1;101;3;.5"], "line 2: must have 5 values, has 4"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_rows_that_do_not_fit_leave_the_earlier_answers(
    mixed: Project, tmp_path: Path, text: list[str], message: str
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("earlier")
    with pytest.raises(ValueError) as error:
        score_file(Scorer.load(searched(mixed)), written(tmp_path / "rows.csv", text), out)
    assert message in str(error.value) and out.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "rows.csv"]


def test_a_parquet_file_without_a_column_is_refused_by_its_name(mixed: Project, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": ["u1"]}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows.parquet: no column 'item', 'price', 'share', 'tags'; there are"):
        scored(searched(mixed), tmp_path / "rows.parquet")


def test_what_cannot_be_kept_or_written_is_refused_before_rows_are_read(mixed: Project, rows: Path) -> None:
    model = Scorer.load(searched(mixed))
    for out, keep, message in (
        ("out.txt", [], r"the name must end in .csv or .parquet, got '.txt'"),
        ("rows.csv", [], "must not replace the rows"),
        ("out.csv", ["tags"], r"CSV cannot hold the lists of the bags \['tags'\]"),
        ("out.csv", ["probability"], "is the name of the answers"),
        ("out.csv", ["user", "user"], "named twice"),
        ("out.csv", ["nothing"], "no column 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message):
            score_file(model, rows, rows.with_name(out), keep)
    with pytest.raises(ValueError, match="must not be among the rows of"):
        score_file(model, rows.parent, rows.with_name("part.csv"))
    with pytest.raises(ValueError, match="must be a file of rows"):
        score_file(model, rows.with_name("nowhere"), rows.with_name("out.csv"))


def spoil(folder: Path, **changes: object) -> None:
    record = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps({**record, **changes}))


def test_old_foreign_and_incomplete_folders_are_refused_in_one_line(
    mixed: Project, coded: Project, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    for number, (change, message) in enumerate(
        (
            (
                lambda: spoil(model, format=0, version="0.0.9"),
                "version 0.0.9 wrote it, in a form that version .* cannot read",
            ),
            (lambda: (model / ABOUT).write_text("[]"), "version unknown wrote it"),
            (lambda: (model / ABOUT).unlink(), "has no model.json: a version before"),
            (lambda: shutil.rmtree(model) or model.mkdir(), "has no model.json: it holds no model"),
            (lambda: spoil(model, form="onnx"), "the form must be trained or served to score rows, got onnx"),
            (lambda: spoil(model, dim=4), "model.safetensors: does not hold the model"),
            (lambda: shutil.rmtree(model / "encoding"), "has no encoding/, which `retrain` writes beside"),
            (
                lambda: shutil.copytree(
                    coded.folder / "artifacts/models/encoding", model / "encoding", dirs_exist_ok=True
                ),
                "is not the encoding with which",
            ),
            (
                lambda: shutil.copy(coded.folder / "artifacts/encoded/vocabulary.parquet", model / "encoding"),
                "vocabulary.parquet: is not the vocabulary that schema.json beside it names",
            ),
        )
    ):
        shutil.rmtree(model, ignore_errors=True)
        export(searched(mixed), model, "trained")
        change()
        with pytest.raises(ValueError, match=message) as error:
            Scorer.load(model)
        assert "\n" not in str(error.value), number
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Scorer.load(tmp_path / "nowhere")


def test_the_command_reads_stdin_and_writes_stdout_without_a_word_between_the_rows(
    mixed: Project, rows: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(rows.parent)  # which has no params.yaml
    monkeypatch.setattr(sys, "argv", ["score", str(searched(mixed)), "rows.csv", "out.csv", "--keep", "event, user"])
    score.run()
    assert not capsysbinary.readouterr().out
    monkeypatch.setattr(sys, "argv", ["score", str(searched(mixed)), "-", "-", "--keep", "event,user"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.read_bytes())))
    score.run()
    printed = capsysbinary.readouterr()
    assert printed.out == Path("out.csv").read_bytes() and printed.out.startswith(b'"event","user","probability"\n')
    assert b"score: 900 rows, " in printed.err and b"rows/s)" in printed.err
