"""What `make compare` prints of the experiments that DVC has."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from pipeline.reporting.experiments import WIDTH, compared
from pipeline.tracking.experiments import Run

NOW = datetime(2026, 11, 29, 12, 0)
PARAMS: dict[str, Any] = {
    "dataset": {"name": "synthetic", "options": {}},
    "method": {"name": "autodim", "options": {"autodim": {"dims_weight": 0.05}}},
    "search": {"lr": 0.01, "epochs": 12},
    "derive": {"budget": None},
    "retrain": {"lr": 0.01, "seeds": [0, 1]},
    "sweep": {"trials": 20},
}


def figures(form: str = "full, coded", size: int = 4249, auc: float = 0.781, sd: float | None = 0.0019) -> Any:
    spread = {} if sd is None else {"auc_sd": sd}
    deploy = {"form": form, "auc": auc, **spread, "bytes": size, "of_full": size / 170_112}
    return {"deploy": deploy, "searched": {"auc": 0.7826, **spread, "bytes": 56_616, "of_full": 0.333}}


def experiment(name: str, state: str = "", shown: Any = None, **changes: Any) -> Run:
    """A run whose ``changes`` replace parameters, e.g. ``method__name``."""
    params = {section: dict(values) for section, values in PARAMS.items()}
    for place, value in changes.items():
        section, key = place.split("__")
        params[section][key] = value
    when = None if name == "workspace" else datetime(2026, 11, 28, 9, 5)
    return Run(name, when, params, {} if state else shown or figures(), state)


def blocks(*runs: Run) -> list[list[str]]:
    """The lines of the head, of every run and of the last sentence."""
    text = compared(runs, NOW)
    assert all(len(line) <= WIDTH == 100 and line == line.rstrip() for line in text.splitlines())
    return [block.splitlines() for block in text.split("\n\n")]


def test_a_row_says_what_to_deploy_and_what_the_search_gave() -> None:
    head, one, _ = blocks(experiment("workspace"), experiment("slim-bole"))[0:3]
    named = re.split(" {2,}", head[0])
    assert named == ["experiment", "deploy", "bytes", "of full", "auc on test", "searched", "auc on test"]
    assert one == ["workspace     full, coded  4,249     2.5%  0.7810 ± 0.0019    56,616  0.7826 ± 0.0019"]


def test_only_the_settings_that_differ_are_shown_by_their_shortest_names() -> None:
    _, first, second, told = blocks(
        experiment("workspace"), experiment("slim-bole", derive__budget=0.1, search__lr=0.02, sweep__trials=5)
    )
    assert first[1].split() == ["search.lr=0.01", "budget=null"]
    assert second[1].split()[-2:] == ["search.lr=0.02", "budget=0.1"]
    assert told == ["The settings that differ, in full: search.lr, derive.budget"]


def test_a_plug_is_called_by_its_section_and_options_count_for_its_method_alone() -> None:
    coded = experiment("a", method__name="coded")
    _, first, second, told = blocks(experiment("workspace"), coded)
    assert first[1].strip() == "method=autodim" and second[1].split()[-1] == "method=coded"
    assert told[0].endswith(": method.name")
    heavier = experiment("b", method__options={"autodim": {"dims_weight": 0.1}, "pep": {"threshold": 1}})
    _, first, second, third, told = blocks(experiment("workspace"), coded, heavier)
    assert first[1].split() == ["method=autodim", "dims_weight=0.05"] and second[1].split()[-1] == "method=coded"
    assert third[1].split()[-2:] == ["method=autodim", "dims_weight=0.1"]
    assert told[0].endswith(": method.name, method.options.autodim.dims_weight")


def test_an_option_that_only_one_run_has_is_a_difference() -> None:
    _, first, second, _ = blocks(experiment("workspace"), experiment("a", dataset__options={"rows": 2000}))
    assert first == [first[0]] and second[1].split()[-1] == "rows=2000"


def test_equal_settings_are_said_to_be_equal() -> None:
    assert blocks(experiment("workspace"), experiment("a"))[-1] == ["No setting differs."]


def test_a_run_without_figures_shows_why() -> None:
    waiting = experiment("1a2b3c4", "queued", derive__budget=0.1)
    _, _, one, _ = blocks(experiment("workspace"), waiting)
    assert one[0].split() == ["1a2b3c4", "queued"] and one[1].endswith("budget=0.1")
    unread = Run("broken", None, {}, {}, "failed")
    _, first, last, told = blocks(experiment("workspace"), unread)
    assert last[0].split() == ["broken", "failed"] and told == ["No setting differs."] and len(first) == 1


def test_a_run_is_dated_with_its_day_unless_it_is_of_today() -> None:
    today = Run("b", datetime(2026, 11, 29, 9, 5), PARAMS, figures(), "")
    _, one, other, _ = blocks(experiment("a"), today)
    assert one[1] == "28 Nov 09:05" and other[1] == "09:05"


def test_one_seed_has_no_standard_deviation_and_an_old_run_has_no_form() -> None:
    old = experiment("old", shown={"searched": {"auc": 0.78, "bytes": 56_616}})
    _, one, other, _ = blocks(experiment("a", shown=figures("full", 170_112, 0.77934, None)), old)
    assert one[0].split() == ["a", "full", "170,112", "100.0%", "0.7793", "56,616", "0.7826"]
    assert other[0].split() == ["old", *["-"] * 6]


def test_many_settings_and_long_words_stay_within_the_line() -> None:
    many = {f"search__parameter_{n}": n for n in range(40)}
    wide = figures("searched in int8", 1_234_567_890)
    long = experiment("an-experiment-with-a-name-of-one-long-word", shown=wide, **many, derive__budget="x" * 200)
    _, _, block, told = blocks(experiment("workspace"), long)
    assert "parameter_39=39" in block[-1] and len(block) > 5 and "…" in block[0].split("  ")[0]
    assert f"budget={'x' * 29}…" in " ".join(block) and "search.parameter_39" in told[-1]
