"""What the matrix of faults would notice: a file or a run that is missing, left behind or different."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.faults.oracle import Left, stored_badly
from tests.project import Project


def differences(project: Project, folder: Path) -> list[str]:
    return list(Left.of(project.folder).differences(Left.of(folder)))


def test_a_draft_a_changed_file_and_a_missing_one_are_differences(recorded: Project, tmp_path: Path) -> None:
    copy = recorded.copy(tmp_path)
    assert differences(recorded, tmp_path) == []
    (tmp_path / "artifacts/.encoded.123").touch()
    (copy.folder / "artifacts/allocation.json").unlink()
    with (tmp_path / "artifacts/report.md").open("a") as file:
        file.write(" ")
    missing, left, other = differences(recorded, tmp_path)
    assert missing == "1 files missing: artifacts/allocation.json"
    assert left == "1 files left behind: artifacts/.encoded.123"
    assert other.startswith("1 files different: artifacts/report.md (")


def test_a_step_that_is_recorded_twice_is_a_difference(recorded: Project, tmp_path: Path) -> None:
    """In a journal, and in MLflow."""
    recorded.copy(tmp_path)
    journal = tmp_path / "artifacts/runs/search.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    step = next(number for number, line in enumerate(lines) if line.startswith("["))
    journal.write_text("".join([*lines[: step + 1], *lines[step:]]))
    assert differences(recorded, tmp_path)[0].startswith("1 files different: artifacts/runs/search.jsonl")
    shutil.copy(recorded.folder / "artifacts/runs/search.jsonl", journal)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store, store:
        (run,) = store.execute("select run_uuid from tags where value like 'search/%:%'").fetchone()
        first = (
            f"select key, value, timestamp + 1, run_uuid, step, is_nan from metrics where run_uuid = '{run}' limit 1"
        )
        store.execute(f"insert into metrics (key, value, timestamp, run_uuid, step, is_nan) {first}")
    (found,) = differences(recorded, tmp_path)
    assert found.startswith("1 runs different: search/")


def test_a_run_that_is_still_open_and_one_that_is_there_twice_are_differences(
    recorded: Project, tmp_path: Path
) -> None:
    recorded.copy(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store, store:
        keys = "select run_uuid from tags where key = 'pipeline.key' and value like '{}/%' limit 1"
        store.execute(f"update runs set status = 'RUNNING' where run_uuid = ({keys.format('encode')})")
        (key,) = store.execute("select value from tags where key = 'pipeline.key' and value like 'ingest/%'").fetchone()
        (other,) = store.execute(keys.format("derive")).fetchone()
        store.execute("update tags set value = ? where key = 'pipeline.key' and run_uuid = ?", (key, other))
    missing, more, changed = differences(recorded, tmp_path)
    assert missing.startswith("1 runs missing: derive/") and more == f"1 runs too many: {key} again"
    assert changed.startswith("1 runs different: encode/") and "status: FINISHED, RUNNING" in changed


def test_a_file_in_the_cache_that_is_not_what_its_name_says_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "files/md5/5d"
    folder.mkdir(parents=True)
    (folder / "41402abc4b2a76b9719d911017c592").write_text("hello")
    assert list(stored_badly(tmp_path)) == []
    (folder / "41402abc4b2a76b9719d911017c592").write_text("hullo")
    assert list(stored_badly(tmp_path)) == ["5d41402abc4b2a76b9719d911017c592 in DVC's cache has another content"]
