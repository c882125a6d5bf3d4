"""Outputs appear whole or not at all, and nothing of a killed process stays."""

import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.workflow.outputs import checksum, discard, read_json, whole, write_json, write_text


def pid_of_a_dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_file_or_folder_appears_only_if_all_of_it_was_written(tmp_path: Path) -> None:
    write_text(tmp_path / "deep/file", "old")
    with pytest.raises(RuntimeError, match="half-way"), whole(tmp_path / "deep/file") as draft:
        draft.write_text("new")
        raise RuntimeError("half-way")
    assert (tmp_path / "deep/file").read_text() == "old"
    for content in ("one", "two"):
        with whole(tmp_path / "folder") as draft:
            draft.mkdir()
            (draft / content).write_text(content)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["two"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "file", "folder", "two"]


def test_files_that_a_library_made_private_can_be_read_like_any_other_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    for path in (tmp_path / "file", tmp_path / "folder/file"):
        with whole(path if path.parent == tmp_path else path.parent) as draft:
            file = draft if path.parent == tmp_path else draft / "file"
            file.parent.mkdir(exist_ok=True)
            os.close(os.open(file, os.O_CREAT, 0o600))
        assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_the_system_refuses_a_library_is_an_error_of_the_system(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # bytes of a file
    try:
        with pytest.raises(OSError, match="File too large") as caught, whole(tmp_path / "t") as draft:
            save_file({"a": torch.zeros(10_000)}, draft)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / "t")
    with pytest.raises(ValueError, match="contiguous"), whole(tmp_path / "t") as draft:
        save_file({"a": torch.zeros(3, 4).t()}, draft)
    assert not list(tmp_path.iterdir())


def test_drafts_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead, alive = f".out.{pid_of_a_dead_process()}", f".out.{os.getppid()}"
    (tmp_path / dead).mkdir()
    (tmp_path / dead / "half").write_text("written")
    for name in (alive, ".out.txt", ".other.1"):
        (tmp_path / name).write_text("x")
    write_text(tmp_path / "out", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive, ".out.txt", ".other.1", "out"])


def test_a_folder_is_removed_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it removes leaves nothing under the name, and the next one clears up."""
    for name in ("kept", "work", ".work.txt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    discard(tmp_path / "absent")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **_: None)  # the kill
        patch.setattr(os, "getpid", pid_of_a_dead_process)
        discard(tmp_path / "work")
    assert not (tmp_path / "work").exists() and len(list(tmp_path.iterdir())) == 3
    (tmp_path / "work").mkdir()
    discard(tmp_path / "work")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".work.txt", "kept"]


def test_json_that_is_broken_is_named_with_the_remedy(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, None]}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"b": float("nan")})
    assert read_json(tmp_path / "a.json") == {"b": [1, None]}
    for text in ('{"b": [1', "[" * 100_000, '{"b": NaN}', '{"b": -1e999}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=r"a.json: is not JSON .*; delete it and run `dvc repro`, which makes it"):
            read_json(tmp_path / "a.json")


def test_what_is_no_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to(os.devnull)
    for name in ("pipe", "device", "."):
        for read in (read_json, checksum):
            with pytest.raises(ValueError, match=r"must be a file, not a folder, a pipe or a device; delete it"):
                read(tmp_path / name)
