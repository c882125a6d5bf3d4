"""Figures come out alike every time, and numbers are short."""

from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from pipeline.reporting.style import STYLE, attempt, new_figure, save, short


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        with matplotlib.rc_context(STYLE):
            figure = new_figure(3, 2)
            axes = figure.subplots()
            axes.plot([1, 2], [3, 4], label="a line")
            axes.set_title("a title")
            axes.legend()
        save(figure, tmp_path / name)
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_figure_that_fails_costs_a_warning_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attempt(lambda: new_figure(3, 2), tmp_path / "good.png")
    assert not attempt(lambda: new_figure(1 // 0, 2), tmp_path / "bad.png")
    assert {path.name for path in tmp_path.iterdir()} == {"good.png", "good.svg"}
    assert capsys.readouterr().out == (
        "warning: the figure bad is left out: ZeroDivisionError: integer division or modulo by zero\n"
    )


def test_a_name_in_a_script_that_the_font_lacks_is_kept_for_the_browser(tmp_path: Path) -> None:
    def draw() -> Figure:
        figure = new_figure(3, 2)
        figure.suptitle("字段")
        return figure

    assert attempt(draw, tmp_path / "name.png") and "字段" in (tmp_path / "name.svg").read_text()


def test_numbers_are_short() -> None:
    values = (0, 0.5, 999, 1500, 2_000_000, 3.456e9, -1500)
    assert [short(v) for v in values] == ["0", "0.5", "999", "1.5k", "2M", "3.46G", "-1.5k"]
    assert short(1.5e6, space=" ") == "1.5 M"
