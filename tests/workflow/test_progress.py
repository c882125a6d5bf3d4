"""Progress in a log, where there is no terminal."""

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
