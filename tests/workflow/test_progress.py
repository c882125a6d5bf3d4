"""Progress in a log, where there is no terminal."""

import io
import sys
import time

import pytest

from pipeline.workflow import progress


def test_a_log_gets_lines_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress.progress(total=4, desc="encode", unit=" rows") as bar:
        bar.update(1)
        bar.update(3)
    written = capsys.readouterr().err
    first, *_, last = written.splitlines()
    assert first.startswith("encode:   0%") and last.startswith("encode: 100%")
    assert "4/4 [" in last and "rows/s]" in last and "\r" not in written


def test_short_work_leaves_no_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress(range(3), desc="curve", mininterval=0)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal on which every bar is shown at once; no fixture, since pytest sets stderr anew for the test itself."""
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    return shown


def test_the_time_of_a_ticking_bar_goes_on_between_its_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    with progress.ticking(progress.progress(total=2, desc="study", mininterval=0.02)) as bar:
        bar.update(1)
        before = shown.getvalue().count("study:  50%")
        time.sleep(0.3)
        assert shown.getvalue().count("study:  50%") >= before + 2
    assert shown.getvalue().endswith("\n") and bar.n == 1


def test_an_inner_bar_vanishes_and_the_outer_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    with progress.progress(total=1, desc="outer") as outer:
        with progress.progress(total=1, desc="inner") as inner:
            inner.update(1)
        last = shown.getvalue().rpartition("inner")[2]
        assert last.rstrip("\x1b[A\r").endswith(" ") and "outer" not in last
        outer.update(1)
    assert shown.getvalue().rpartition("\r")[2].startswith("outer: 100%")


def test_a_process_can_leave_the_bars_to_its_parent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_hidden", False)
    progress.hide()
    with progress.ticking(progress.progress(total=1, desc="trial")) as bar:
        bar.update(1)
    assert capsys.readouterr().err == ""
