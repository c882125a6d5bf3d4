"""What a report says of a study's results, which are computed here from models with known scores."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from pipeline.metrics.auc import auc, auc_influence
from pipeline.metrics.difference import Difference, difference, encoded, row_variance, sketch
from pipeline.reporting import page
from pipeline.reporting.text import Table, mean_sd, p_value, read_tables, with_interval
from pipeline.studies import comparisons, contests, frames, report, tables
from pipeline.studies.frames import Frames
from pipeline.studies.grid import STUDIES, Study
from pipeline.studies.results import Results
from pipeline.studies.sections import conclusion, section
from pipeline.tracking.place import StoreError
from pipeline.workflow.plug import names
from stages.study import html

METRICS = {"order": "rank agreement", "cost": "mean cost"}  # no click: the code must take names and titles from here
ROWS = 500
RNG = np.random.default_rng(0)
LABELS = RNG.random(ROWS) < 0.4
SIGNAL = LABELS + RNG.normal(size=ROWS)


@pytest.fixture(autouse=True)
def ids(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    """What the store knows of runs."""
    known: dict[tuple[str, str], str] = {}
    monkeypatch.setattr(frames, "run_ids", lambda root, stage, keys: known)
    return known


# --- results


def scores(method: int, seed: int, quality: float) -> np.ndarray:
    """Of all test rows, by a model: what the method gets wrong, and what its seed does."""
    of_method = np.random.default_rng(method).normal(size=ROWS)
    rng = np.random.default_rng([method, seed])
    return (quality + 0.03 * rng.normal()) * SIGNAL + 0.3 * of_method + 0.2 * rng.normal(size=ROWS)


def row(method: int, seed: int, quality: float, size: int, **changes: Any) -> dict[str, Any]:
    """A trained model, as `pipeline.studies.cell` describes it."""
    predicted = scores(method, seed, quality)
    value = auc(LABELS, predicted)
    made = {
        **{"seed": seed, "arm": "searched", "budget": None, "dims": {"user": 2, "item": 4}, "setting": 0},
        **{"metrics": {"order": value, "cost": 1 - value}, "validation": value - 0.01, "bytes": size, "built": "x"},
        **{"of_full": size / 1000, "table_params": size // 4, "training_bytes": 2**20, "epochs": 3, "seconds": 2.0},
        **{"search_seconds": None, "run": f"retrain/seed-{seed}", "rows": ROWS},
        "sketch": encoded(sketch(auc_influence(LABELS, predicted))),
    }
    return made | changes


def search(seed: int, **changes: Any) -> dict[str, Any]:
    made = {
        **{"seed": seed, "seconds": 8.0, "peak_mib": 100.0, "dims": {"user": 2, "item": 4}, "bytes": 120 + seed},
        **{"undecided": ["user"], "training_bytes": 2**20, "run": f"search/seed-{seed}"},
    }
    return made | changes


def result(keys: Mapping[str, str], rows: Sequence[Mapping[str, Any]] = (), **changes: Any) -> dict[str, Any]:
    made = {
        **{"study": "s", "profile": "quick", "keys": dict(keys), "key": "-".join(keys.values()), "commit": "c0ffee"},
        **{"seconds": 9.0, "fields": ["user", "item"], "metrics": METRICS, "objective": "order"},
        **{"searches": [], "tried": [], "rows": list(rows)},
    }
    return made | changes


def study_of(place: Path, name: str = "overall", **grid: Sequence[Any]) -> Study:
    folder = place / "studies" / name
    folder.mkdir(parents=True, exist_ok=True)
    values = {"quick": {**grid, "seeds": grid.get("seeds", [0, 1, 2])}}
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder.parent / "datasets.yaml").write_text("{}")
    return Study(name, "quick", folder)


def by_name(table: Table, column: int = 0) -> dict[str, dict[str, str]]:
    """The rows of a table by one of their cells, each by the names of the columns."""
    return {line[column]: dict(zip(table.head, line, strict=True)) for line in table.rows}


# --- a whole report

GIVEN = {
    "quick": {"dataset": ["tiny"], "backbone": ["fm"], "method": ["autodim", "full"], "seeds": [0, 1, 2]},
    "backbone": {"fm": {"params": {"backbone": {"name": "fm"}}}},
    "method": {
        "autodim": {"arms": ["searched", "uniform", "random"]},
        "full": {"params": {"method": {"name": "full"}}, "arms": ["full"]},
    },
}
TINY = {"quick": {"tiny": {"params": {"dataset": {"name": "synthetic"}}}}}
ARMS = {"searched": (1, 1.0, 200), "uniform": (2, 0.8, 190), "random": (3, 0.7, 200)}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of two cells whose data are here, in its folder."""
    folder = tmp_path / "studies/overall"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(GIVEN, sort_keys=False))
    (folder.parent / "datasets.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(folder)
    data = Path("artifacts/data/quick/tiny")
    data.mkdir(parents=True)
    (data / "schema.json").write_text("{}")
    return Study("overall", "quick", folder)


def measured(small: Study, method: str, seeds: Sequence[int] = (0, 1, 2), **changes: Any) -> dict[str, Any]:
    """Put the result of a cell where the report looks for it."""
    arms = {"full": (4, 1.0, 1000)} if method == "full" else ARMS
    rows = [
        row(number, seed, quality, size, arm=arm) for arm, (number, quality, size) in arms.items() for seed in seeds
    ]
    cell = small.cell({"dataset": "tiny", "backbone": "fm", "method": method})
    searches = [] if method == "full" else [search(seed) for seed in seeds]
    made = result(cell.keys, rows, key=Results(small).key(cell), searches=searches) | changes
    path = Results(small).own(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made))
    return made


def test_a_report_is_a_folder_of_tables_figures_and_the_results_themselves(
    small: Study, ids: dict[tuple[str, str], str]
) -> None:
    found, full = measured(small, "autodim"), measured(small, "full")
    ids[found["key"], "retrain/seed-1"] = "f00d"
    text = report.write(small)
    folder = Path("results/quick")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("cells", "minus_uniform.png", "minus_uniform.svg", "table.csv", "table.md")
    ]
    kept = {path.stem: json.loads(path.read_text()) for path in (folder / "cells").iterdir()}
    assert kept == {"tiny-fm-autodim": found, "tiny-fm-full": full}
    assert (folder / "table.md").read_text() == text + "\n"
    rows = pd.read_csv(folder / "table.csv", keep_default_na=False)
    assert list(rows)[:9] == ["dataset", "backbone", "method", "cell", "budget", "arm", "seed", "order", "cost"]
    assert {"val_order", "bytes", "dims", "run", "commit", "test_rows"} <= set(rows) and "sketch" not in rows
    assert rows["order"].tolist() == [each["metrics"]["order"] for each in (*found["rows"], *full["rows"])]
    assert rows[rows["mlflow_run"] == "f00d"]["run"].tolist() == ["retrain/seed-1"] * 3
    assert "AUC" not in text and "logloss" not in text


def test_the_tables_say_what_the_rows_say(small: Study) -> None:
    found = measured(small, "autodim")
    measured(small, "full")
    text = report.write(small)
    assert "Profile quick, seeds 0, 1, 2; written on" in text and "from results of commit c0ffee." in text
    head = next(line for line in text.splitlines() if line.startswith("| dataset"))
    assert "| arm | rank agreement | mean cost | bytes |" in head
    assert "| rank agreement minus the nearest uniform | bytes / its bytes | p |" in head
    figures = {arm: [one["metrics"]["order"] for one in found["rows"] if one["arm"] == arm] for arm in ARMS}
    assert f"| tiny | fm | autodim | random | {mean_sd(figures['random'])} |" in text
    influences = [
        np.mean([auc_influence(LABELS, scores(number, seed, quality)) for seed in range(3)], axis=0)
        for number, quality, _ in (ARMS["searched"], ARMS["uniform"])
    ]
    exact = difference(figures["searched"], figures["uniform"], row_variance(np.subtract(*influences)), ROWS)
    line = next(line for line in text.splitlines() if "| searched |" in line)
    said = re.search(r"\| (\S+) \((\S+) to (\S+)\) \| 1\.05 \| (\S+) \|$", line)
    assert said is not None and float(said[1]) == pytest.approx(exact.mean, abs=5.1e-5)
    assert [float(said[2]), float(said[3])] == pytest.approx(exact.interval, abs=0.1 * exact.row_se)  # of 500 rows
    assert said[4] == "<.001" or float(said[4]) == pytest.approx(exact.p_value, rel=0.3)  # the only test of the table
    assert "95% intervals cover seeds and test rows." in text


def test_an_interval_over_seeds_alone_says_so_and_why(small: Study) -> None:
    found = measured(small, "autodim")
    for one in found["rows"]:
        del one["sketch"]
    measured(small, "autodim", rows=found["rows"])
    text = report.write(small, partial=True)
    figures = [
        [one["metrics"]["order"] for one in found["rows"] if one["arm"] == arm] for arm in ("searched", "uniform")
    ]
    by_hand = difference(*figures)
    low, high = by_hand.interval
    assert f"| {by_hand.mean:+.4f} ({low:+.4f} to {high:+.4f}, seeds alone) |" in text
    assert "cover seeds alone: the results keep nothing about single test rows." in text
    assert "seeds and test rows" not in text


def test_one_seed_has_no_interval_and_the_table_says_why(small: Study) -> None:
    found = measured(small, "autodim", seeds=[1])
    text = report.write(small, partial=True)
    one, other, _ = (each["metrics"]["order"] for each in found["rows"])
    assert f"| {one - other:+.4f} | 1.05 |  |" in text and f"| searched | {one:.4f} |" in text
    assert "There is no interval: it takes two seeds or more." in text and "95%" not in text


def test_a_report_waits_for_all_cells_unless_it_is_a_partial_one(small: Study) -> None:
    with pytest.raises(ValueError, match="study overall, profile quick, has no results yet; run it"):
        report.write(small, partial=True)
    measured(small, "autodim")
    with pytest.raises(ValueError, match="quick: cells tiny-fm-full have no results yet; run the study, or report"):
        report.write(small)
    assert not Path("results").exists()
    assert "Cells without results yet: tiny-fm-full." in report.write(small, partial=True)


def test_what_other_settings_left_is_no_result(small: Study) -> None:
    measured(small, "autodim", key="of other settings")
    measured(small, "full")
    text = report.write(small, partial=True)
    assert "Cells without results yet: tiny-fm-autodim." in text
    assert "| full |" in text and "searched" not in text.split("On the test rows")[1]


OLD = (
    '{"study": "overall", "key": "0", "rows": [{"seed": 0, "auc": 0.7}], "tried": [{"val_auc": NaN}],  "commit": "e"}\n'
)


def test_kept_results_that_cannot_be_checked_stay_as_they_are_and_are_named(small: Study) -> None:
    """Data of theirs are not here; they may be of an older format, with its own spacing."""
    given = {**GIVEN, "quick": {**GIVEN["quick"], "dataset": ["tiny", "other"], "method": ["full"]}}
    (small.folder / "params.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    (small.folder.parent / "datasets.yaml").write_text(
        yaml.safe_dump({"quick": {**TINY["quick"], "other": TINY["quick"]["tiny"]}})
    )
    both = Study("overall", "quick", small.folder)
    measured(both, "full")
    cells = Path("results/quick/cells")
    cells.mkdir(parents=True)
    (cells / "other-fm-full.json").write_text(OLD)
    with pytest.raises(ValueError, match="cells other-fm-full have no results yet"):
        report.write(both)
    text = report.write(both, partial=True)
    assert (cells / "other-fm-full.json").read_text() == OLD
    assert sorted(path.name for path in cells.iterdir()) == ["other-fm-full.json", "tiny-fm-full.json"]
    assert "Kept in cells/, but not in the tables: other-fm-full." in text
    rows = pd.read_csv("results/quick/table.csv")
    assert set(rows["cell"]) == {"tiny-fm-full"}


def test_results_that_a_report_kept_are_enough_for_the_next_one(small: Study) -> None:
    measured(small, "autodim")
    measured(small, "full")
    text = report.write(small)
    before = {path: path.read_bytes() for path in Path("results/quick/cells").iterdir()}
    shutil.rmtree("artifacts/cells")
    assert report.write(small) == text
    assert {path: path.read_bytes() for path in Path("results/quick/cells").iterdir()} == before


def test_a_report_that_fails_leaves_the_old_one_alone(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(small, "autodim")
    measured(small, "full")
    report.write(small)
    files = sorted(Path("results/quick").rglob("*"))
    before = {path: path.read_bytes() for path in files if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(report, "_keep", lambda study, found, folder: folder.mkdir(parents=True) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            report.write(small)
    measured(small, "full", objective="cost")
    with pytest.raises(
        ValueError, match="one objective, but its cells have order for tiny-fm-autodim, cost for tiny-fm"
    ):
        report.write(small)
    assert sorted(Path("results").rglob("*")) == sorted([Path("results/quick"), *files])
    assert {path: path.read_bytes() for path in before} == before


def test_a_store_that_does_not_answer_costs_the_ids_alone(
    small: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dead(*_: Any) -> dict[tuple[str, str], str]:
        raise StoreError("no answer")

    monkeypatch.setattr(frames, "run_ids", dead)
    measured(small, "full")
    report.write(small, partial=True)
    assert capsys.readouterr().out == "report: warning: no MLflow ids of the runs: no answer\n"
    assert pd.read_csv("results/quick/table.csv")["mlflow_run"].isna().all()


def test_a_figure_that_fails_costs_a_warning_and_not_the_report(
    small: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(small, "autodim")
    monkeypatch.setattr(report.study_figures, "differences", lambda *_, **__: 1 / 0)
    report.write(small, partial=True)
    assert sorted(path.name for path in Path("results/quick").iterdir()) == ["cells", "table.csv", "table.md"]
    assert "warning: the figure minus_uniform is left out: ZeroDivisionError" in capsys.readouterr().out


# --- the page on all studies


def test_the_section_has_a_conclusion_all_tables_all_figures_and_every_single_result(small: Study) -> None:
    found = measured(small, "autodim")
    measured(small, "full")
    text = report.write(small)
    made = section((small.folder / "results/quick").resolve())
    body = "\n".join(made.body)
    assert made.title == "overall, quick" and body.count("<table>") == text.count("| --- |\n") + 1
    assert body.count("<svg") == 1 and 'aria-label="overall, minus one dimension of the same size"' in body
    assert "<summary>All 12 single results, with their MLflow runs and commits</summary>" in body
    assert f"<td>{found['rows'][0]['metrics']['order']:.5g}</td>" in body
    assert made.body[0].count("<li>") == 1 and "On the test rows: No difference is shown for 1 setting." in made.body[0]
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page.page("Studies", [made]))


def test_tables_are_read_back_as_they_were_written() -> None:
    made = [Table("One. Two", ["a", "b|c"], [["1", ""], ["x | y", "|"]], "A note."), Table("None", ["a"], [])]
    text = "\n\n".join(["# Title", "First.", "Second\nline.", *(table.markdown() for table in made)])
    assert read_tables(text) == (["First.", "Second\nline."], made)
    assert read_tables("Only text.") == (["Only text."], [])


def test_the_conclusion_says_what_is_shown_after_correction_and_what_is_not(contest: tuple[Study, Frames]) -> None:
    study, of = contest
    (study.folder / "claims.csv").write_text("source,claim,method,sign,against\n,x,a,>,d\n,x,d,>,a\n,x,a,>,b\n")
    made = contests.tables(study, of)
    standings = by_name(made[0])
    shown = {name for name, line in standings.items() if line["p, tiny"] and float(line["p, tiny"].strip("<")) < 0.05}
    ours, claims = conclusion(made)
    tested = {name for name, line in standings.items() if line["p, tiny"]}
    assert shown == {name for name in tested if f"{name} (" in ours}
    assert f"No difference is shown for {len(tested - shown)} " in ours or tested == shown
    assert claims == "Claims, tiny: supported: a > d; contradicted: d > a; not decided: 1."


def conclusions(*rows: tuple[str, str]) -> list[str]:
    lines = [["tiny", "fm", name, "searched", minus, p] for name, (minus, p) in zip("abcdef", rows, strict=False)]
    return conclusion(
        [Table("T", ["dataset", "backbone", "method", "arm", "AUC minus the nearest uniform", "p"], lines)]
    )


def test_a_conclusion_tells_better_from_worse_and_from_untested() -> None:
    better, worse = ("+0.0100 (+0.0050 to +0.0150)", "<.001"), ("-0.0200 (-0.0300 to -0.0100)", "0.049")
    (said,) = conclusions(better, worse, ("+0.0300 (-0.1 to +0.1)", "0.050"), ("+0.1", ""))
    assert said == (
        "T: Shown to be better than one dimension of the same size: tiny, fm, a (+0.0100). Shown to be worse than one "
        "dimension of the same size: tiny, fm, b (-0.0200). No difference is shown for 1 other setting. 1 comparison "
        "without a test: sizes differ, or one seed."
    )
    assert conclusions(("+0.1", ""))[0].startswith("T: No test.")
    assert conclusion([Table("T", ["a"], [["1"]])]) == [
        "There is no test here: the tables describe, and show no difference."
    ]


def test_the_committed_results_make_a_page(tmp_path: Path) -> None:
    html(tmp_path / "report.html")
    made = (tmp_path / "report.html").read_text()
    marks = re.findall(r'<h2 id="([^"]+)">', made)
    assert len(marks) == len([*STUDIES.glob("*/results/*/table.md")]) == len(set(marks))
    assert all(f'<li><a href="#{mark}">' in made for mark in marks)
    assert made.count('<div class="lead">') == len(marks)
    ids = re.findall(r'\bid="([^"]+)"', made)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("grid", "metrics"), [("bytes", METRICS), ("dataset", {"order": "a", "seed": "b"})])
def test_a_column_with_two_meanings_is_refused(tmp_path: Path, grid: str, metrics: dict[str, str]) -> None:
    made = study_of(tmp_path, **{grid: ["x"]})
    with pytest.raises(ValueError, match=r"study overall: the tables have a column (bytes|seed) of their own"):
        Frames.of(made, [result({grid: "x"}, [], metrics=metrics)])


# --- comparisons


def compared(
    study: Study, models: Mapping[tuple[str, float | None], tuple[int, float, int]], seeds: Sequence[int] = (0, 1, 2)
) -> Frames:
    """Frames of models by method and budget: number, quality and bytes of each."""
    results = []
    for method in dict.fromkeys(method for method, _ in models):
        keys = {"dataset": "tiny", "method": method}
        arm = "full" if method == "full" else "searched"
        own = [(budget, model) for (name, budget), model in models.items() if name == method]
        rows = [
            row(number, seed, quality, size, budget=budget, arm=arm)
            for budget, (number, quality, size) in own
            for seed in seeds
        ]
        results.append(result(keys, rows))
    return Frames.of(study, results)


def uniform_size(study: Study, of: Frames, method: str, budget: float) -> float | None:
    grouped = comparisons.groups(study, of)
    (group,) = [each for each in grouped if (each.place["method"], each.place["budget"]) == (method, budget)]
    control = comparisons.uniform_of(study, group, grouped)
    return None if control is None else control.bytes


def test_the_control_is_the_nearest_uniform_in_bytes_and_rather_a_larger_one(tmp_path: Path) -> None:
    made = study_of(tmp_path, dataset=["tiny"], method=["uniform", "a", "b"])
    model = (1, 1.0)
    of = compared(
        made,
        {
            **{("uniform", 0.1): (*model, 100), ("uniform", 0.12): (*model, 120), ("uniform", 0.2): (*model, 200)},
            **{("a", 0.1): (*model, 105), ("a", 0.2): (*model, 140), ("b", 0.1): (*model, 101)},
        },
    )
    assert uniform_size(made, of, "a", 0.1) == 120  # 100 is nearer, but smaller
    assert uniform_size(made, of, "b", 0.1) == 100  # smaller by less than 2 %
    assert uniform_size(made, of, "a", 0.2) == 120  # none is near enough for a test, so it is the nearest by the ratio
    assert uniform_size(made, of, "uniform", 0.1) is None


def test_a_cell_with_a_uniform_arm_of_its_own_is_compared_with_it(tmp_path: Path) -> None:
    made = study_of(tmp_path, dataset=["tiny"], method=["uniform", "a"])
    arms = [row(2, 0, 1.0, 100, arm=arm, budget=budget) for arm in ("searched", "uniform") for budget in (0.1, 0.2)]
    of = Frames.of(made, [result({"dataset": "tiny", "method": method}, arms) for method in ("uniform", "a")])
    grouped = comparisons.groups(made, of)
    one = next(group for group in grouped if (group.place["method"], group.place["budget"]) == ("a", 0.2))
    assert one.place["arm"] == "searched"
    control = comparisons.uniform_of(made, one, grouped)
    assert control is not None and control.place == {**one.place, "arm": "uniform"}


def test_a_budget_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    made = study_of(tmp_path, dataset=["tiny"], method=["a"])
    rows = [row(1, seed, 1.0, 100, budget=0.1) for _ in "ab" for seed in (1, 0)]
    (group,) = comparisons.groups(made, Frames.of(made, [result({"dataset": "tiny", "method": "a"}, rows)]))
    assert group.rows["seed"].tolist() == [0, 1]


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    made = study_of(tmp_path, dataset=["tiny"], method=["a", "b"])
    grouped = comparisons.groups(made, compared(made, {("a", 0.1): (1, 1.0, 100), ("b", 0.1): (2, 0.8, 100)}))
    a, b = grouped
    fewer = replace(b, rows=b.rows.drop(index=1))
    by_hand = difference(a.rows.loc[[0, 2], "order"], b.rows.loc[[0, 2], "order"])
    found = comparisons.averaged([(a, fewer)], "order")
    assert found is not None and (found.seeds, found.mean) == (2, pytest.approx(by_hand.mean))
    assert comparisons.averaged([(a, replace(b, rows=b.rows.drop(index=[0, 1, 2])))], "order") is None


def test_sketches_of_other_test_rows_are_not_subtracted(tmp_path: Path) -> None:
    made = study_of(tmp_path, dataset=["tiny"], method=["a", "b"])
    a, b = comparisons.groups(made, compared(made, {("a", 0.1): (1, 1.0, 100), ("b", 0.1): (2, 0.8, 100)}))
    assert comparisons.averaged([(a, b)], "order").covers == "seeds and test rows"
    others = replace(b, rows=b.rows.assign(test_rows=ROWS + 1))
    assert comparisons.averaged([(a, others)], "order").covers == "seeds alone"


def test_a_mean_over_settings_averages_figures_and_rows_alike(tmp_path: Path) -> None:
    """What two budgets have in common counts once, what they have of their own half."""
    made = study_of(tmp_path, dataset=["tiny"], method=["a", "b"])
    models = {
        ("a", 0.1): (1, 1.0, 100),
        ("a", 0.2): (2, 1.1, 200),
        ("b", 0.1): (3, 0.8, 100),
        ("b", 0.2): (4, 0.9, 200),
    }
    grouped = {
        (each.place["method"], each.place["budget"]): each for each in comparisons.groups(made, compared(made, models))
    }
    found = comparisons.averaged([(grouped["a", budget], grouped["b", budget]) for budget in (0.1, 0.2)], "order")
    figures, influences = {}, {}
    for method in ("a", "b"):
        of_seeds = [
            [scores(*(models[method, budget][0], seed), models[method, budget][1]) for budget in (0.1, 0.2)]
            for seed in range(3)
        ]
        figures[method] = [np.mean([auc(LABELS, each) for each in of_seed]) for of_seed in of_seeds]
        influences[method] = np.mean([auc_influence(LABELS, each) for of_seed in of_seeds for each in of_seed], axis=0)
    exact = difference(figures["a"], figures["b"], row_variance(influences["a"] - influences["b"]), ROWS)
    assert found is not None and (found.mean, found.seed_sd) == pytest.approx((exact.mean, exact.seed_sd))
    assert found.row_se == pytest.approx(exact.row_se, rel=0.12)


def test_the_note_of_a_table_says_what_its_intervals_cover() -> None:
    both, seeds = Difference(0, (-1, 1), 1, 3, 0.1, 0.1), Difference(0, (-1, 1), 1, 3, 0.1, None)
    one, same = Difference(0, None, None, 1, None, 0.1), Difference(0, None, None, 2, 0.0, None)
    assert comparisons.intervals([both, both]) == "95% intervals cover seeds and test rows."
    assert comparisons.intervals([seeds, both]) == (
        "95% intervals cover seeds and test rows, or seeds alone where it says so: the results keep nothing "
        "about single test rows."
    )
    assert comparisons.intervals([both, same]).endswith(" Some differences have no interval: nothing varies.")
    assert comparisons.intervals([one]) == "There is no interval: it takes two seeds or more."
    assert comparisons.intervals([]) == ""


# --- many methods

CONTEST = {
    **{("uniform", 0.025): (1, 0.2, 25), ("uniform", 0.075): (1, 0.25, 75)},
    **{("uniform", 0.1): (1, 0.3, 100), ("uniform", 0.2): (1, 0.8, 200)},
    **{("a", 0.1): (2, 1.4, 105), ("a", 0.2): (2, 0.3, 190), ("b", 0.2): (3, 0.8, 140), ("d", 0.1): (4, 0.25, 100)},
    **{("d", 0.2): (4, 0.1, 190), ("full", None): (5, 0.4, 1000)},
}


@pytest.fixture
def contest(tmp_path: Path) -> tuple[Study, Frames]:
    made = study_of(tmp_path, dataset=["tiny"], method=["uniform", "a", "b", "d", "full"])
    return made, compared(made, CONTEST)


def test_each_setting_has_a_table_of_all_methods_the_best_first(contest: tuple[Study, Frames]) -> None:
    assert contests.is_contest(contest[0])
    made = {table.title: table for table in contests.tables(*contest)}
    assert list(made)[1:] == ["tiny, other sizes", "tiny, budget 10%", "tiny, budget 20%", "tiny, no budget"]
    assert [line[4] for line in made["tiny, other sizes"].rows] == ["7.5%", "2.5%"]
    table = made["tiny, budget 10%"]
    assert [line[0] for line in table.rows] == ["a", "uniform", "d"]
    assert table.head[1:3] == ["rank agreement", "mean cost"] and "cover seeds and test rows" in table.note
    lines = by_name(table)
    assert (lines["a"]["bytes"], lines["a"]["bytes / its bytes"], lines["a"]["verdict"]) == ("105", "1.05", "higher")
    assert lines["uniform"]["verdict"] == "" and lines["d"]["verdict"] == "no difference shown"
    assert (lines["a"]["MiB in training"], lines["a"]["seconds of training"]) == ("1.0", "2 ± 0")
    at_20 = by_name(made["tiny, budget 20%"])
    assert (at_20["a"]["verdict"], at_20["a"]["bytes / its bytes"]) == ("lower", "0.95")
    assert (at_20["b"]["verdict"], at_20["b"]["p"], at_20["b"]["bytes / its bytes"]) == ("sizes differ", "", "1.40")


def test_p_values_are_corrected_within_a_setting(contest: tuple[Study, Frames]) -> None:
    study, of = contest
    grouped = comparisons.groups(study, of)
    single = comparisons.against_uniform(study, of, grouped, ["dataset", "budget"])
    found = {(g.place["method"], g.place["budget"]): one for g, one in zip(grouped, single, strict=True) if one}
    a, d = found["a", 0.1], found["d", 0.1]
    assert (a.p_value, d.p_value) == (pytest.approx(2 * a.difference.p_value), pytest.approx(d.difference.p_value))
    a, d = found["a", 0.2], found["d", 0.2]
    assert a.difference.p_value > d.difference.p_value  # two tests here as well
    assert (a.p_value, d.p_value) == pytest.approx((a.difference.p_value, 2 * d.difference.p_value))
    assert found["b", 0.2].p_value is None and not found["b", 0.2].fair


def test_standings_average_over_settings_and_count_the_verdicts(contest: tuple[Study, Frames]) -> None:
    study, of = contest
    table = contests.tables(study, of)[0]
    assert table.title.startswith("All methods in 2 settings: average rank by rank agreement")
    lines = by_name(table)
    assert "full" not in lines and lines["b"]["average rank"] == ""  # b has one of the two budgets
    assert [lines[name]["average rank"] for name in ("a", "uniform", "d")] == ["1.5", "1.5", "3.0"]
    groups = {(each.place["method"], each.place["budget"]): each for each in comparisons.groups(study, of)}
    pairs = [(groups["a", budget], groups["uniform", budget]) for budget in (0.1, 0.2)]
    pooled = comparisons.averaged(pairs, "order")
    assert lines["a"]["mean difference, tiny"] == with_interval(pooled)
    others = comparisons.averaged([(groups["d", b], groups["uniform", b]) for b in (0.1, 0.2)], "order")
    by_hand = [min(1, 2 * min(pooled.p_value, others.p_value)), max(pooled.p_value, others.p_value)]
    corrected = sorted([by_hand[0], max(by_hand)])
    assert sorted([lines["a"]["p, tiny"], lines["d"]["p, tiny"]]) == sorted(map(p_value, corrected))
    assert lines["b"]["mean difference, tiny"] == ""
    assert (lines["a"]["higher"], lines["a"]["lower"], lines["a"]["no difference shown"]) == ("1", "1", "0")
    assert lines["b"]["sizes differ"] == "1" and lines["uniform"]["higher"] == "" and "no test" not in table.head


def test_one_seed_gives_standings_without_tests(tmp_path: Path) -> None:
    study = study_of(tmp_path, dataset=["tiny"], method=["uniform", "a", "b", "d", "full"])
    table = contests.tables(study, compared(study, CONTEST, seeds=[0]))[0]
    assert by_name(table)["a"]["no test"] == "2" and table.note == "There is no interval: it takes two seeds or more."


def test_claims_are_judged_on_the_results(contest: tuple[Study, Frames]) -> None:
    study, of = contest
    assert not contests.claims(study, of)
    (study.folder / "claims.csv").write_text(
        "source,claim,method,sign,against\nA 2001,a is better,a,>,d\n,a is better,a,>,b\n,a loses nothing,d,>=,full\n"
        ",c is better,c,>,a\n,a is better,a,>,c\n,d is better,d,>,a\n"
    )
    (table,) = contests.claims(study, of)
    assert "a loss of at most 0.002" in table.note and "A higher" not in table.note
    assert "claims a higher rank agreement" in table.note and "cover seeds and test rows" in table.note
    lines = [dict(zip(table.head, line, strict=True)) for line in table.rows]
    groups = {(each.place["method"], each.place["budget"]): each for each in comparisons.groups(study, of)}
    pooled = comparisons.averaged([(groups["a", budget], groups["d", budget]) for budget in (0.1, 0.2)], "order")
    assert (lines[0]["source"], lines[0]["tested"], lines[0]["budgets, tiny"]) == ("A 2001", "a > d", "10%, 20%")
    assert lines[0]["difference, tiny"] == with_interval(pooled)
    assert lines[0]["p, tiny"] == p_value(2 * pooled.p_value)  # two tests of this data set
    assert lines[0]["verdict, tiny"] == "supported" and lines[5]["verdict, tiny"] == "contradicted"
    assert lines[1]["verdict, tiny"] == "sizes differ"  # 190 beside 140
    beside_full = comparisons.averaged([(groups["d", 0.2], groups["full", None])], "order")
    assert lines[2]["difference, tiny"] == with_interval(beside_full) and lines[2]["budgets, tiny"] == "20%"
    assert lines[2]["p, tiny"] == "" and lines[2]["verdict, tiny"] == contests.upheld(">=", beside_full, None)
    assert set(lines[3].values()) == {"", "c is better", "c > a"}
    assert set(lines[4].values()) == {"", "a is better", "a > c"}


def judged(sign: str, low: float, high: float, p: float | None = None) -> str:
    return contests.upheld(sign, Difference((low + high) / 2, (low, high), p, 3, 0.1, 0.1), p)


def test_no_loss_is_judged_by_the_interval_and_a_gain_by_the_corrected_p() -> None:
    assert judged(">=", -0.0019, 0.01) == "supported" and judged(">=", -0.01, -0.0021) == "contradicted"
    assert judged(">=", -0.0021, 0.0) == judged(">=", -0.003, -0.0019) == "undecided"
    assert judged(">", 0.001, 0.002, 0.04) == "supported" and judged(">", -0.002, -0.001, 0.04) == "contradicted"
    assert judged(">", 0.001, 0.002, 0.06) == "undecided"
    assert contests.upheld(">", Difference(1.0, None, None, 1, None, None), None) == "no test"


def test_the_verdict_tells_what_holds_for_all_tests_from_what_holds_by_itself(contest: tuple[Study, Frames]) -> None:
    control = comparisons.groups(*contest)[0]
    minus = Difference(-0.01, (-0.02, 0.0), 0.01, 3, 0.1, 0.1)
    one = comparisons.Comparison(minus, 0.9, control, 0.04)
    assert contests.verdict(one) == "lower"
    assert contests.verdict(replace(one, p_value=0.2)) == "lower before correction"
    assert contests.verdict(replace(one, difference=replace(minus, mean=0.01))) == "higher"
    assert contests.verdict(replace(one, difference=replace(minus, p_value=0.06), p_value=0.9)) == "no difference shown"
    assert contests.verdict(replace(one, size=1.3, p_value=None)) == "sizes differ"
    alone = replace(one, difference=replace(minus, interval=None, p_value=None), p_value=None)
    assert contests.verdict(alone) == "no test"  # of one seed


def test_the_settings_tried_stand_by_budget(contest: tuple[Study, Frames]) -> None:
    study, of = contest
    trials = [
        {"setting": number, "budget": budget, "objective": objective, "run": ""}
        for number, budget, objective in ((0, 0.1, 0.7), (0, 5000, 0.71), (1, 0.1, None), (1, 5000, 0.72))
    ]
    results = [result({"dataset": "tiny", "method": "a"}, tried=trials), result({"dataset": "tiny", "method": "b"})]
    (table,) = contests.tried(study, of, results)
    assert table.rows == [
        ["tiny", "a", "10%", "0.7000, over the budget"],
        ["tiny", "a", "5,000 bytes", "0.7100, 0.7200"],
    ]
    assert table.head[-1] == "rank agreement on val of each setting, in the order of params.yaml"
    assert not contests.tried(study, of, results[1:])


def test_the_claims_are_of_methods_that_exist() -> None:
    claims = pd.read_csv(STUDIES / "overall/claims.csv", keep_default_na=False)
    assert list(claims) == ["source", "claim", "method", "sign", "against"]
    assert ((claims["sign"] == ">=") == (claims["against"] == "full")).all()
    assert set(claims["sign"]) == {">", ">="}
    assert set(claims["method"]) | set(claims["against"]) <= set(names("methods"))
    assert not claims.duplicated(["method", "against"]).any() and claims["claim"].str.len().all()


# --- the other tables


def test_ranks_are_over_data_sets_and_backbones(tmp_path: Path) -> None:
    study = study_of(tmp_path, dataset=["x", "y"], backbone=["fm"], method=["autodim", "full"])
    order = {"x": {"searched": 1.2, "uniform": 0.8, "full": 0.4}, "y": {"searched": 0.8, "uniform": 0.4, "full": 1.2}}
    results = [
        result(
            {"dataset": dataset, "backbone": "fm", "method": "full" if arm == "full" else "autodim"},
            [row(1, 0, quality, 100, arm=arm)],
        )
        for dataset, arms in order.items()
        for arm, quality in arms.items()
    ]
    (table,) = tables.ranks(study, Frames.of(study, results))
    assert table.rows == [["searched, autodim", "1.50"], ["full", "2.00"], ["uniform, autodim", "2.50"]]
    assert table.title == "Average rank by rank agreement in 2 settings"
    assert not tables.ranks(study, Frames.of(study, results[:3]))


def test_the_papers_figures_stand_beside_those_of_the_same_metric(tmp_path: Path) -> None:
    study = study_of(tmp_path, dataset=["criteo"], backbone=["fm"], method=["autodim"])
    rows = [row(1, seed, 1.0, 8_000_000) for seed in (0, 1)]
    found = Frames.of(study, [result({"dataset": "criteo", "backbone": "fm", "method": "autodim"}, rows)])
    assert not tables.paper(study, found)
    lines = ["dataset,backbone,method,order,logloss,params_millions", "criteo,fm,searched,.8078,.4438,11.632"]
    (study.folder.parent / "paper.csv").write_text("\n".join([*lines, "avazu,fm,searched,.8,.4,1.0"]) + "\n")
    (table,) = tables.paper(study, found)
    own = mean_sd([one["metrics"]["order"] for one in rows])
    assert table.rows == [["criteo", "fm", "searched", own, "2.000", "0.8078", "11.632"]]
    assert table.head[3:] == ["rank agreement", "M params", "paper's rank agreement", "paper's M params"]


def test_the_area_is_the_mean_over_the_logarithm_of_bytes(tmp_path: Path) -> None:
    study = study_of(tmp_path, "budget", dataset=["tiny"], method=["autodim"])
    sizes = {0.01: 10, 0.1: 100}
    rows = [row(1, seed, 1.0, size, budget=budget) for budget, size in sizes.items() for seed in (0, 1)]
    for one, value in zip(rows, (0.5, 0.6, 0.7, 0.8), strict=True):
        one["metrics"] = {"order": value, "cost": 0.0}
    found = Frames.of(study, [result({"dataset": "tiny", "method": "autodim"}, rows)])
    (table,) = tables.areas(study, found)
    # From 10 to 1000 bytes: a slope over one decade, level over the next: .65 and .75.
    assert table.rows == [["tiny", "autodim", "searched", mean_sd([0.65, 0.75]), "10 to 1,000"]]
    assert tables.of_study(study, found)[0].title == "On the test rows"
    assert [name for name, _ in report._figures(study, found, [])] == ["curve-tiny-autodim"]


def test_searches_of_a_share_of_the_rows_stand_beside_those_of_all(tmp_path: Path) -> None:
    study = study_of(tmp_path, "data", dataset=["tiny"], rows=["half", "all"])
    halves = [
        search(0, dims={"a": 1, "b": 2, "c": 4}, seconds=2.0),
        search(1, dims={"a": 2, "b": 2, "c": 2}, seconds=None),
    ]
    wholes = [search(seed, dims={"a": 1, "b": 4, "c": 8}) for seed in (0, 1)]
    trained = [row(1, 0, 1.0, 100), row(2, 0, 1.0, 100, arm="uniform")]
    results = [
        result({"dataset": "tiny", "rows": rows}, trained, searches=searches)
        for rows, searches in (("half", halves), ("all", wholes))
    ]
    main, same, costs = tables.of_study(study, Frames.of(study, results))
    assert [line[:3] for line in main.rows][::2] == [["tiny", "half", "searched"], ["tiny", "all", "searched"]]
    assert same.rows == [["tiny", "half", "17%", "1.00", "75%"], ["tiny", "all", "100%", "1.00", "0%"]]
    assert costs.rows[0] == ["tiny", "half", "2.0", "100", "120 ± 1", "1.0"]


def test_a_study_of_searches_alone_has_their_agreement_and_choices(small: Study) -> None:
    dims = [{"user": 1, "item": 2, "age": 4}, {"user": 2, "item": 1, "age": 8}]
    found = study_of(small.folder.parents[1], "stability", dataset=["tiny"], method=["autodim"])
    searches = [search(seed, dims=each) for seed, each in enumerate(dims)]
    of = Frames.of(found, [result({"dataset": "tiny", "method": "autodim"}, searches=searches)])
    agreement, choices = tables.of_study(found, of)
    pearson = stats.pearsonr([1, 2, 4], [2, 1, 8]).statistic
    assert agreement.rows == [["tiny", "autodim", "2", f"{pearson:.2f}", "0.50", "120 ± 1"]]
    assert choices.rows == [["user", "1", "2"], ["item", "2", "1"], ["age", "4", "8"]]
    assert list(of.details["dims"]) == [json.dumps(each) for each in dims] and not list(report._figures(found, of, []))


def test_the_case_shows_each_field_with_its_dimensions_beside_the_papers(tmp_path: Path) -> None:
    study = study_of(tmp_path, "case", dataset=["movielens_1m"], field=["user", "choice"])
    (study.folder / "paper.csv").write_text("field,order,logloss,dim\nuser,.6857,.6272,8\n")
    alone, rest = [row(1, seed, 0.5, 100, arm="alone") for seed in (0, 1)], [row(2, 0, 1.0, 250)]
    results = [
        result({"dataset": "movielens_1m", "field": "user"}, alone),
        result({"dataset": "movielens_1m", "field": "choice"}, rest, searches=[search(0), search(1, dims={"user": 8})]),
    ]
    (table,) = tables.of_study(study, Frames.of(study, results))
    user, searched = table.rows
    own = [mean_sd([one["metrics"][name] for one in alone]) for name in METRICS]
    assert user == ["movielens_1m", "user", *own, "2, 8", "0.6857", "8"]
    assert searched[1] == "all, searched" and searched[-3:] == ["25.0% of full", "", ""]
    assert table.head[2:] == [
        *("rank agreement alone", "mean cost alone", "dimension, by seed"),
        *("paper's rank agreement", "paper's dimension"),
    ]


# --- figures


def test_the_figure_shows_models_of_the_same_size_alone(contest: tuple[Study, Frames]) -> None:
    ((name, draw),) = report._figures(*contest, [])
    figure = draw()
    assert name == "minus_uniform-tiny"
    assert figure.get_suptitle() == "Minus one dimension for all fields, of the same size, tiny"
    panels = [axes.get_title(loc="left") for axes in figure.axes]
    assert panels == ["budget 10%", "budget 20%"]
    assert {label.get_text() for label in figure.axes[0].get_yticklabels()} == {"a", "d"}  # b is too small
    assert figure._supxlabel.get_text() == "difference in rank agreement; 95% intervals cover seeds and test rows"
