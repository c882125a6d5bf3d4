"""Journals that a full disk, a kill or an old version has left, and what must not stand in them."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tracking import journal as journal_module
from pipeline.tracking.journal import Journal, Reader
from pipeline.tracking.place import masked, refusal
from pipeline.tracking.sync import synchronise
from pipeline.tracking.tracker import Tracker
from tests.tracking.stores import CONFIGURATION, REPOSITORY, history, journals, runs, search

FULL_DISK = """
import resource
from pathlib import Path
from pipeline.tracking.tracker import Tracker
with Tracker(Path.cwd(), "search", "k1", {"dim": 8}) as tracker:
    run = tracker.run(seed=0)
    run.metrics(0, {"loss": 0.5})
    size = Path(".pipeline/tracking/search-k1.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200, resource.RLIM_INFINITY))
    try:
        for step in range(1, 100):
            run.metrics(step, {"loss": 0.5})
    except OSError as error:
        print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        run.metrics(100, {"loss": 0.25})
        raise
"""


def steps(journal: Path) -> list[int]:
    return [line[1] for line in map(json.loads, journal.read_text().splitlines()) if isinstance(line, list)]


def test_a_full_disk_stops_the_stage_and_leaves_a_journal_of_whole_lines(journal_only: Path) -> None:
    root, journal = journal_only, journal_only / ".pipeline/tracking/search-k1.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and f"File too large: '{journal}'" in done.stdout
    recorded = steps(journal)
    assert 5 < len(recorded) < 50 and recorded == [*range(len(recorded) - 1), 100]
    with Tracker(root, "search", "k1", {"dim": 8}) as tracker:  # the stage can start again
        tracker.run(seed=0).metrics(101, {"loss": 0.5})
    synchronise(root)
    [run] = runs(root, pipeline_stage="search")
    assert [step for step, _ in history(root, run, "loss")] == [*recorded, 101]
    assert run.info.status == "FINISHED"


def test_what_a_kill_has_torn_is_removed_before_anything_is_added(journal_only: Path) -> None:
    root, journal = journal_only, journal_only / ".pipeline/tracking/search-k1.jsonl"
    with pytest.raises(SystemExit), Tracker(root, "search", "k1", CONFIGURATION) as tracker:
        tracker.run(seed=0).metrics(0, {"loss": 0.5})
        raise SystemExit(143)
    for _ in range(2):
        with journal.open("a") as file:
            file.write("[0,1,[0.")
        synchronise(root)  # writes a mark at the end of the journal
        assert all(map(json.loads, journal.read_text().splitlines()))
    with journal.open("a") as file:
        file.write("[0,1,[0.")
    with Tracker(root, "search", "k1", CONFIGURATION) as tracker:
        tracker.run(seed=0).metrics(1, {"loss": 0.25})
    assert steps(journal) == [0, 1]


def test_a_reader_never_joins_what_a_kill_has_torn_with_what_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "search-k1.jsonl"
    for size in (1, 20, 1 << 22):
        monkeypatch.setattr(journal_module, "READ_BYTES", size)
        path.write_text('{"k": "close", "status": "KILLED", "time": 1}\n[0,5,[0.1')
        reader = Reader(path)
        records = iter(reader)
        first = next(records)
        writer = Journal(path)  # the stage starts again, and replaces the torn line while somebody reads
        writer.append({"k": "close", "status": "FINISHED", "time": 2})
        writer.close()
        assert isinstance(first, dict) and first["time"] == 1
        assert [record["time"] for record in [*records, *reader] if isinstance(record, dict)] == [2]
        assert list(reader) == [] and reader.offset == path.stat().st_size


BAD = [
    '[0,1,[0.5[0,2,[0.5]]\n{"k": "close"}',  # a line on which the next one was glued
    "[7,1,[0.5]]",  # values without names
    "[0,1,[0.5,0.5]]",  # more values than names
    '{"k": "end", "run": "seed-0", "time": 1}',  # no status
    '{"k": "tags", "run": "seed-9", "tags": {}}',  # of a run that was not opened
    '{"k": "unheard of"}',
    '"text"',
    "[" * 100_000,
]


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_journal_that_cannot_be_read_is_named_set_aside_and_begun_anew(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "search-k1.jsonl"
    for number in (1, 2):
        good = Journal(path)
        good.append({"k": "run", "run": "seed-0", "params": {}, "tags": {}, "time": 1})
        good.points(good.declare("seed-0", ("loss",)), 0, [0.5], exact=True)
        good.close()
        with path.open("a") as file:
            file.write(f"{line}\n")
        content = path.read_bytes()
        journal = Journal(path)
        assert path.read_bytes() == b"" and journal.marks == {}
        journal.close()
        assert content in [kept.read_bytes() for kept in tmp_path.glob("*.bad")]
        assert len(list(tmp_path.iterdir())) == 1 + number
        assert f"{path}, line 4 is not a record" in caplog.messages[-1]
        assert "search-k1.jsonl.bad" in caplog.messages[0]


def test_a_bad_journal_keeps_no_other_from_arriving(journal_only: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, bad = journal_only, journal_only / ".pipeline/tracking/derive-k0.jsonl"
    with pytest.raises(SystemExit), Tracker(root, "derive", "k0", CONFIGURATION) as tracker:
        tracker.run()
        raise SystemExit(143)
    records = bad.read_text().splitlines()
    bad.write_text("\n".join([*records[:2], "glued" + records[2], *records[3:], ""]))
    search(root)
    synchronise(root)
    assert journals(root) == ["derive-k0.jsonl.bad"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{bad}, line 3 is not a record" in caplog.text and "kept as derive-k0.jsonl.bad" in caplog.text
    assert [run.info.status for run in runs(root, pipeline_stage="search")] == ["FINISHED"]
    assert [run.info.status for run in runs(root, pipeline_stage="derive")] == ["KILLED"]  # it ends nowhere
    caplog.clear()
    assert synchronise(root) == [] and not caplog.records


def test_a_published_journal_that_cannot_be_read_is_left_out_and_its_parent_is_not_finished(
    journal_only: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = journal_only
    search(root)
    (root / ".pipeline/tracking/search-k1.jsonl").unlink()
    Path("bad.jsonl").write_text("bad\n")
    caplog.set_level(logging.WARNING)
    synchronise(root, CONFIGURATION, ["artifacts/runs/search.jsonl", "bad.jsonl"])
    assert "bad.jsonl, line 1 is not a record" in caplog.text
    statuses = {run.data.tags.get("pipeline.stage"): run.info.status for run in runs(root)}
    assert statuses == {"search": "FINISHED", None: "SCHEDULED"}


@pytest.mark.parametrize("lines", [0, 1, -1])
def test_a_published_journal_that_ends_too_early_is_left_out(
    journal_only: Path, caplog: pytest.LogCaptureFixture, lines: int
) -> None:
    root = journal_only
    search(root)
    (root / ".pipeline/tracking/search-k1.jsonl").unlink()
    published = Path("artifacts/runs/search.jsonl")
    published.write_text("".join(published.read_text().splitlines(keepends=True)[:lines]))
    caplog.set_level(logging.WARNING)
    assert synchronise(root, CONFIGURATION, [published]) == []
    assert f"{published} ends before its stage does; it is skipped: delete it and run `dvc checkout`" in caplog.text
    assert runs(root) == []


SECRET = "p@ss:w/rd"
LOCATOR = f"postgresql://user:{SECRET}@host:5432/optuna"


def test_a_password_is_masked_wherever_it_stands() -> None:
    assert masked(LOCATOR) == "postgresql://***@host:5432/optuna"
    text = f"cannot reach '{LOCATOR}' or http://token@host/path or s3://bucket/a@b or http://host:80/path"
    assert masked(text) == (
        "cannot reach 'postgresql://***@host:5432/optuna' or http://***@host/path or s3://bucket/a@b or http://host:80/path"
    )
    assert masked("postgresql://host/db?user=a&password=secret&sslmode=off") == (
        "postgresql://host/db?user=a&password=***&sslmode=off"
    )
    nested = {"storage": LOCATOR, "list": [LOCATOR, 3, None, {"deep": (LOCATOR,)}]}
    assert SECRET not in json.dumps(masked(nested)) and masked(masked(nested)) == masked(nested)
    assert masked(nested)["list"][1:3] == [3, None]


def test_no_password_reaches_a_file_a_param_a_tag_or_a_message(
    journal_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = journal_only
    dataset = {"name": "planted", "digest": "1", "source": LOCATOR}
    with (
        pytest.raises(ValueError),
        Tracker(root, "sweep", "k1", {"sweep": {"storage": LOCATOR}}, {"store": LOCATOR}, dataset) as tracker,
    ):
        run = tracker.run(params={"storage": LOCATOR}, tags={"storage": LOCATOR})
        run.tag("storage-2", LOCATOR)
        tracker.parent(tags={"storage-3": LOCATOR})
        raise ValueError(f"cannot open {LOCATOR}")
    content = (root / ".pipeline/tracking/sweep-k1.jsonl").read_text()
    assert SECRET not in content and content.count("***@host:5432") == 8
    # a journal of an earlier version, which holds the password
    (root / ".pipeline/tracking/sweep-k1.jsonl").write_text(content.replace("***@host", f"user:{SECRET}@host"))
    synchronise(root)
    for run in runs(root):
        assert SECRET not in str(run.to_dictionary())
        assert "***@host:5432" in str(run.data.params) and "***@host:5432" in str(run.data.tags)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", LOCATOR)
    message = refusal(root, ValueError(f"no driver for {'x' * 150} {LOCATOR}"))
    assert SECRET not in message and "***@host:5432" in message
