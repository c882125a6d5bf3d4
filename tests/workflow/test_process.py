"""The process of a command: its log on the console, errors in one line, its end, and whose code it runs."""

import errno
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.workflow import process
from tests.processes import awaited
from tests.project import ROOT

LOG = logging.getLogger("pipeline.some.room")


@pytest.fixture(autouse=True)
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command without arguments in an empty folder, started by nobody in particular."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command"])
    for name in ("PIPELINE_TRACEBACK", "DVC_STAGE", process.WATCHED):
        monkeypatch.delenv(name, raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def refused(run: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints to stderr before it ends with status 1."""
    with pytest.raises(SystemExit) as end:
        process.main(run)
    assert end.value.code == 1
    return capsys.readouterr().err


def test_progress_is_printed_bare_and_once_and_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        process.show_log()  # a second time
        LOG.debug("nothing")
        LOG.info("sweep: %s is done", "trial-1")
        LOG.warning("the disk is full")
        LOG.error("the store is gone")
        logging.getLogger("elsewhere").info("no affair of ours")

    process.main(run)
    printed = capsys.readouterr()
    assert printed.out == "sweep: trial-1 is done\n" and printed.err == "the disk is full\nthe store is gone\n"


def test_a_library_prints_nothing_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    LOG.info("sweep: trial-1 is done")
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger("pipeline").handlers == []


def test_bad_input_is_told_in_one_line_and_on_demand_with_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> None:
        raise ValueError("params.yaml: dim must be at least 1, got 0")

    told = "error: params.yaml: dim must be at least 1, got 0\n(PIPELINE_TRACEBACK=1 shows the traceback)\n"
    assert refused(run, capsys) == told
    monkeypatch.setenv("PIPELINE_TRACEBACK", "1")
    traced = refused(run, capsys)
    assert traced.startswith("Traceback (most recent call last):") and traced.endswith(told)


def test_a_long_message_keeps_its_place_and_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise ValueError(f"t.csv, line 1: no column 'user'; there are {['x' * 9000]}; name another")

    told = refused(run, capsys).splitlines()[0]
    assert told.startswith("error: t.csv, line 1: no column 'user'; there are ['xx") and len(told) < 1100
    assert "xx ... xx" in told and told.endswith("xx']; name another")


def test_a_file_that_cannot_be_opened_is_named_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = refused(Path("artifacts/raw/raw.json").read_text, capsys)
    assert missing.startswith("error: there is no artifacts/raw/raw.json; run `dvc repro`, which makes it\n")
    assert refused(tmp_path.read_text, capsys).startswith(f"error: {tmp_path}: is a directory\n")
    elsewhere = refused(Path("params.yaml").read_text, capsys)
    assert elsewhere.startswith(f"error: there is no params.yaml in {Path.cwd()}; run the command in the folder")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device; free some space, and run the sa"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "out: permission denied; give this user the right"),
        (MemoryError(), "there is too little memory (MemoryError); docs/faults.md says what takes less"),
        (RuntimeError("can't allocate memory: 9 bytes"), "there is too little memory (can't allocate memory: 9 bytes)"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9 vs 8"),
            "a file of tensors cannot be written or read",
        ),
        (ValueError("one\ntwo"), "one two"),
    ],
)
def test_what_the_machine_lacks_is_told_in_one_line_with_a_remedy(
    capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def run() -> None:
        raise error

    assert refused(run, capsys).startswith(f"error: {said}")


def test_other_errors_keep_their_traceback() -> None:
    def run() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        process.main(run)


def test_a_terminated_command_ends_in_order() -> None:
    cleaned: list[bool] = []

    def run() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as end:
        process.main(run)
    assert end.value.code == 128 + signal.SIGTERM and cleaned == [True]


def test_a_stage_does_not_begin_if_dvc_ended_while_it_was_starting(tmp_path: Path) -> None:
    """It would go on, and nobody would record what it makes."""
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from pipeline.workflow import process\n"
        "dvc = int(sys.argv.pop())\n"
        "while os.getppid() == dvc:\n"
        "    time.sleep(0.01)\n"
        "try:\n"
        "    process.main(lambda: None)\n"
        "except SystemExit as end:\n"
        "    Path('ended').write_text(str(end.code))\n"
        "else:\n"
        "    Path('ended').write_text('it ran')\n"
    )
    dvc = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} $$ &"
    variables = {**os.environ, "DVC_STAGE": "search", "PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "-c", dvc], env=variables, start_new_session=True, check=True)
    file = tmp_path / "ended"
    ended = awaited(lambda: (file.read_text() if file.exists() else "") or None)
    assert ended == str(128 + signal.SIGTERM)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT interrupts, also in a process of pytest-xdist, which ignores it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("caught", [False, True])
def test_ctrl_c_says_what_is_kept(caught: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if caught:  # as Lightning does
                sys.exit(1)
            raise

    with pytest.raises(SystemExit) as end:
        process.main(run, kept="the last checkpoint is kept")
    assert end.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "interrupted: the last checkpoint is kept\n"


def test_an_end_that_a_command_chooses_is_not_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no rows"):
        process.main(lambda: sys.exit("no rows"))
    assert "interrupted" not in capsys.readouterr().err


def test_the_code_of_one_checkout_does_not_run_in_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []
    (tmp_path / "pipeline/workflow").mkdir(parents=True)
    inside = tmp_path / "studies/overall"
    inside.mkdir(parents=True)
    process.main(lambda: ran.append(tmp_path))  # a folder without dvc.yaml is no checkout
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    for folder in (tmp_path, inside):
        monkeypatch.chdir(folder)
        told = refused(lambda: ran.append(folder), capsys)  # noqa: B023
        assert told.startswith(f"error: the code of {ROOT} is about to run in {tmp_path}, which has its own; ")
        assert f"set PYTHONPATH={tmp_path}, or install that checkout" in told
    shutil.rmtree(tmp_path / "pipeline")
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    process.main(lambda: ran.append(inside))
    assert ran == [tmp_path, inside]
