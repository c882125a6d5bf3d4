"""From a table of one's own to its settings."""

import contextlib
import io
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets import table
from pipeline.workflow.overlay import laid_over
from pipeline.workflow.validation import keywords
from pipeline.workflow.yaml_values import read_yaml
from stages import describe
from tests.project import SMALL, Project

HEAD = "row,user,kind,tags,price,ts,day,copy,told,click\n"


def lines(rows: int = 900, first_time: int = 1_600_000_000_000) -> str:
    """A log whose times are in milliseconds, unless another first one is given."""
    rng = random.Random(0)
    made = []
    for row in range(rows):
        click, kind = int(rng.random() < 0.3), rng.choice("abc")
        tags = "|".join(rng.sample(["sport", "news", "art", "film"], rng.randrange(1, 4)))
        price = rng.choice(["?", f"{rng.random() * 90:.2f}"])
        user, told = f"u{rng.randrange(30)}", "bought" if click else "left"
        made.append(f"{row},{user},{kind},{tags},{price},{first_time + 991 * row},12/31/2020,{kind},{told},{click}")
    return HEAD + "\n".join(made) + "\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path, **SMALL)
    (tmp_path / "data/log.csv").write_text(lines())
    return made


def call(project: Project, *words: str) -> tuple[Any, str]:
    """The status and all that is printed."""
    with project.inside() as patch, contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        patch.setattr(sys, "argv", ["describe", *words])
        try:
            describe.main()
        except SystemExit as end:
            return end.code, out.getvalue()
    return 0, out.getvalue()


def use(project: Project) -> dict[str, Any]:
    """Lay the settings over those of the project; the settings."""
    settings: dict[str, Any] = read_yaml(project.folder / "params/log.yaml")
    base = project.folder / "params.yaml"
    base.write_text(laid_over(base.read_text(), project.folder / "params/log.yaml"))
    return settings


def test_the_settings_pass_check_ingest_and_encode(project: Project) -> None:
    status, printed = call(project, "data/log.csv")
    assert status == 0 and printed.endswith("then: make repro PARAMS=log\n")
    settings = use(project)
    assert settings["dataset"] == {
        "name": "table",
        "path": "data/log.csv",
        "options": {
            "label": "click",
            "time": "ts",
            "delimiter": ",",
            "missing": ["?"],
            "categorical": ["user", "kind"],
            "numeric": ["price"],
            "bag": ["tags"],
            "separator": "|",
        },
    }
    assert settings["encode"]["split"]["by"] == "time"
    project.run("check", "ingest", "encode")
    fields = {field["name"]: field for field in project.read("encoded/schema.json")["fields"]}
    assert list(fields) == ["user", "kind", "price", "tags"]
    assert fields["user"]["cardinality"] == 31 and fields["kind"]["cardinality"] == 4 and fields["tags"]["width"] > 1
    text = (project.folder / "params/log.yaml").read_text()
    for left_out in ("row: is different", "day: has only", "copy: is a copy of 'kind'", "told: tells the label"):
        assert f"#   {left_out}" in text


@pytest.mark.skipif("dates" not in keywords(table.read), reason="the data set table has no option dates")
def test_parts_of_a_time_become_fields(project: Project) -> None:
    (project.folder / "data/log.csv").write_text(lines(first_time=1_600_000_000))
    assert call(project, "data/log.csv")[0] == 0
    assert use(project)["dataset"]["options"]["dates"] == {"ts": ["hour", "weekday"]}
    project.run("check", "ingest", "encode")
    names = [field["name"] for field in project.read("encoded/schema.json")["fields"]]
    assert names[-2:] == ["ts_hour", "ts_weekday"]


def test_settings_that_are_there_are_replaced_only_on_demand(project: Project) -> None:
    out = project.folder / "params/log.yaml"
    call(project, "data/log.csv")
    first = out.read_text()
    out.write_text("mine")
    status, printed = call(project, "data/log.csv")
    assert status == 1 and "params/log.yaml is there already; replace it with --force" in printed
    assert out.read_text() == "mine"
    assert call(project, "data/log.csv", "--force")[0] == 0
    assert out.read_text() == first


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("", (), "log.csv: is empty"),
        (HEAD, (), "has no rows"),
        (lines() + "1,2\n", (), "line 902: must have 10 values, has 2"),
        (lines().replace(",1\n", ",\n", 1), (), "column 'click'"),
        (lines(), ("--label", "clck"), "there is no column 'clck' (did you mean 'click'?)"),
        (
            lines(),
            ("--time", "user"),
            "--time must be a column of dates, times or Unix times, got 'user'; there are 'ts'",
        ),
        ("a,click\n" + "x,0\nx,1\n" * 50, (), "no column can be a field: 'a' has only one value"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(
    project: Project, text: str, words: tuple[str, ...], message: str
) -> None:
    (project.folder / "data/log.csv").write_text(text)
    status, printed = call(project, "data/log.csv", *words)
    assert status == 1 and printed.startswith("error: ") and message in printed.splitlines()[0]
    assert not list(project.folder.glob("params/*"))
