"""What the cells of a study say together: tables, figures, and the study's section of the page of all studies."""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.reporting import figures, statistics
from stages import _page
from stages._study import STUDIES, Study

Table = tuple[str, list[str], list[list[str]]]  # what it shows, names of the columns, cells
CONTEST = 4  # methods from which on they stand below each other, the best first
EQUAL = 0.02  # share of the bytes by which one of whole dimensions is no smaller than what fills its budget
UNEQUAL = 0.2  # share of the bytes by which a control may differ for a test; whole dimensions come no nearer
UNLIKE = "not equal in size"
MARGIN = 0.002  # of AUC, which on data of this size is within the noise of the seeds
ALONE = (
    " With so many tests of so few seeds only large differences hold after correction; 'alone' is the verdict of those "
    "whose interval excludes 0 and whose corrected p-value is above .05."
)
FIGURES = [
    *("auc", "logloss", "val_auc", "bytes", "of_full", "table_params", "training_bytes"),
    *("epochs", "seconds", "search_seconds", "setting"),
]
CONTESTED = (
    "All methods within the same bytes, of all that has to be kept to serve. A method may stay below a budget, and is "
    "compared with one dimension, for all fields, of the size that it came to; where it stays below several, one model "
    "of it stands in several settings."
)
ABOUT = {
    "overall": "Every backbone and method beside one dimension for all fields and random dimensions of the same size.",
    "components": "AD-1: shared table, zero-padding. AD-2, the method: shared, linear. AD-3: separate, zero-padding. "
    "AD-4: separate, linear. Single-level: weights and architecture learn from the same batches. All are retrained "
    "with linear maps.",
    "schedule": "f: weight steps per architecture step. Cooling: over the run, not at all, or as in the paper. "
    "Warm-up: the share of the steps in which all candidates weigh the same.",
    "transfer": "Dimensions found with FM, in backbones that had no part in the search.",
    "stability": "Whether seeds choose alike: mean correlation of the chosen dimensions over all pairs of seeds.",
    "case": "W&D that sees one field alone, at the full dimension, beside the dimension that the search gives it.",
    "budget": "One search, many budgets: the best choice within each, beside one dimension for all fields and random "
    "ones.",
    "data": "The search sees a share of the rows, the retraining all of them.",
}


def write(
    study: Study, results: Sequence[Mapping[str, Any]], missing: Sequence[str], kept: Sequence[str], folder: Path
) -> str:
    """Write ``table.md``, ``table.csv``, figures and ``section.html``; the text of the first.

    Args:
        results: of the cells.
        missing: names of cells that have none.
        kept: names of cells whose results stay beside the tables, and not in them.
    """
    rows, searches = _frames(study, results)
    _with_runs([rows, searches], results)
    tables = [*_tables(study, rows, searches), *_tried(study, results)]
    drawn = _figures(study, rows, searches, folder)
    commits = sorted({result["commit"] for result in results})
    contest = len(study.grid.get("method", [])) > CONTEST
    about = (
        f"{CONTESTED if contest else ABOUT.get(study.name, '')} Profile {study.profile}, seeds "
        f"{', '.join(map(str, study.seeds))}, {datetime.date.today().isoformat()}, commit {', '.join(commits)}. Mean ± "
        "standard deviation over the seeds, of one split; intervals are of 95 %, from the paired differences of the "
        "seeds; p-values are of a paired t-test, after Holm for all tests of "
        f"{'a data set in the first two tables, of the table below them' if contest else 'the table'}, and there is "
        f"none where the nearest uniform dimension differs by more than {UNEQUAL:.0%} in bytes."
        f"{ALONE if contest else ''}"
    ).strip()
    if missing:
        about += f" Not there yet: {', '.join(missing)}."
    if kept:
        about += f" Kept, and not in the tables because their data are not here: {', '.join(kept)}."
    (rows if len(rows) else searches).to_csv(folder / "table.csv", index=False, quoting=csv.QUOTE_MINIMAL)
    text = [f"# Study: {study.name}", about]
    for title, head, cells in tables:
        text += [f"**{title}**", _markdown(head, cells)]
    (folder / "table.md").write_text("\n\n".join(text) + "\n")
    body = [_page.heading(f"{study.name}, {study.profile}"), _page.paragraph(about)]
    for title, head, cells in tables:
        body += [_page.paragraph(title), _page.table(head, cells)]
    body += [_page.image(path, caption) for path, caption in drawn]
    body.append(_details(rows if len(rows) else searches))
    (folder / "section.html").write_text("\n".join(body) + "\n")
    return "\n\n".join(text)


def _frames(study: Study, results: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, searches = [], []
    for result in results:
        place = {**result["keys"], "cell": "-".join(result["keys"].values())}
        for row in result["rows"]:
            rows.append({**place, **row, "dims": json.dumps(row["dims"]), "commit": result["commit"]})
        for search in result["searches"]:
            searches.append({**place, **search, "dims": json.dumps(search["dims"]), "commit": result["commit"]})
    order = [*study.grid, "cell", "budget", "arm", "seed", *FIGURES, "dims", "run", "commit"]
    frame = pd.DataFrame(rows)
    return frame[[c for c in order if c in frame]] if len(frame) else frame, pd.DataFrame(searches)


def _with_runs(frames: Sequence[pd.DataFrame], results: Sequence[Mapping[str, Any]]) -> None:
    """Put MLflow's id beside the name of every run, as far as the store knows it."""
    from pipeline.tracking import StoreError, run_ids

    keys = {"-".join(result["keys"].values()): result["key"] for result in results}
    try:
        known = run_ids(STUDIES.parent, "study", keys.values())
    except StoreError as error:
        print(f"report: warning: no ids of runs: {error}")
        known = {}
    for frame in frames:
        if len(frame):
            pairs = zip(frame["cell"], frame["run"], strict=True)
            frame["mlflow_run"] = [known.get((keys[cell], name), "") for cell, name in pairs]


# --- tables


def _tables(study: Study, rows: pd.DataFrame, searches: pd.DataFrame) -> list[Table]:
    made: list[Table] = []
    if study.name == "stability":
        return [_stability(study, searches), *_choices(study, searches)]
    if study.name == "case":
        return [_case(study, rows, searches)]
    if len(study.grid.get("method", [])) > CONTEST:
        return [*_standings(study, rows), *_claims(study, rows), *_contests(study, rows)]
    made.append(_main(study, rows, searches))
    if study.name == "overall":
        made += _ranks(study, rows) + _paper(rows)
    if study.name == "budget":
        made.append(_areas(study, rows))
    if study.name == "data":
        made.append(_same_dims(study, searches))
    if study.name in ("components", "schedule", "data"):
        made.append(_costs(study, searches))
    return made


def _groups(study: Study, rows: pd.DataFrame) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    """Rows that differ in the seed alone, in the order of the grid."""
    by = [*study.grid, "budget", "arm"]
    for values, group in rows.groupby(by, sort=False, dropna=False):
        yield dict(zip(by, values, strict=True)), group.sort_values("seed")


def _main(study: Study, rows: pd.DataFrame, searches: pd.DataFrame) -> Table:
    """AUC, logloss and bytes of every arm; the searched one against the uniform one of its size."""
    groups = list(_groups(study, rows))
    tests, corrected = _against_uniform(study, groups)
    budgets = rows["budget"].notna().any()
    head = [*study.grid, *(["budget"] if budgets else []), "arm", "AUC", "logloss", "bytes", "of full", "table params"]
    cells = []
    for (place, group), test, p in zip(groups, tests, corrected, strict=True):
        keys = [str(place[key]) for key in study.grid]
        limit = [_budget(place["budget"])] if budgets else []
        shown = [spread(group["auc"]), spread(group["logloss"]), f"{group['bytes'].mean():,.0f}"]
        size = [f"{group['of_full'].mean():.1%}", f"{group['table_params'].mean():,.0f}"]
        against = ["", "", ""]
        if test is not None:
            against = [_difference(test), f"{test['size']:.2f}", _p(p)]
        cells.append([*keys, *limit, place["arm"], *shown, *size, *against])
    return "On the test rows", [*head, "minus the nearest uniform", "bytes / its", "p"], cells


def _against_uniform(
    study: Study, groups: Sequence[tuple[dict[str, Any], pd.DataFrame]], table: Sequence[str] = ()
) -> tuple[list[dict[str, Any] | None], list[float | None]]:
    """Each searched group against one dimension of its size: tests, and p-values after Holm of those that are fair.

    The control is the cell's own, or else, of the method ``uniform`` in the same setting, the nearest in bytes:
    of those that are no smaller, if one of these is near enough for a test.

    Args:
        table: what the groups of one table have in common; p-values are corrected for the tests of a table.
    """
    tests: list[dict[str, Any] | None] = []
    for place, group in groups:
        control = _control(study, place, group, groups)
        if control is None:
            tests.append(None)
            continue
        aucs = _by_seed(group, control, "auc")
        size = group["bytes"].mean() / control["bytes"].mean()
        tests.append({**statistics.paired(*aucs), "size": size, "aucs": aucs})
    fair = [test["p_value"] if test and abs(test["size"] - 1) <= UNEQUAL else None for test in tests]
    corrected: list[float | None] = [None] * len(groups)
    tables: dict[tuple[str, ...], list[int]] = {}
    for number, (place, _) in enumerate(groups):
        tables.setdefault(tuple(str(place[name]) for name in table), []).append(number)
    for numbers in tables.values():
        for number, p in zip(numbers, statistics.holm([fair[each] for each in numbers]), strict=True):
            corrected[number] = p
    return tests, corrected


def _control(
    study: Study,
    place: Mapping[str, Any],
    group: pd.DataFrame,
    groups: Sequence[tuple[dict[str, Any], pd.DataFrame]],
) -> pd.DataFrame | None:
    if place["arm"] != "searched" or place.get("method") == "uniform":
        return None
    own = [g for p, g in groups if p["arm"] == "uniform" and _same(p, place, skip="arm")]
    if own:
        return own[0]
    setting = [key for key in study.grid if key != "method"]
    uniform = [
        g
        for p, g in groups
        if p.get("method") == "uniform" and p["arm"] == "searched" and all(p[key] == place[key] for key in setting)
    ]
    ratios = [group["bytes"].mean() / g["bytes"].mean() for g in uniform]
    no_smaller = [n for n, ratio in enumerate(ratios) if 1 - UNEQUAL <= ratio <= 1 + EQUAL]
    nearest = min(no_smaller or range(len(ratios)), key=lambda n: abs(np.log(ratios[n])), default=None)
    return None if nearest is None else uniform[nearest]


def _compared(
    study: Study, rows: pd.DataFrame
) -> tuple[list[str], list[tuple[dict[str, Any], pd.DataFrame, dict[str, Any] | None, float | None]]]:
    """What makes a setting, and every group with its test; p-values are corrected within a setting and budget."""
    groups = list(_groups(study, rows))
    setting = [key for key in study.grid if key != "method"]
    tests, corrected = _against_uniform(study, groups, [*setting, "budget"])
    return setting, [(*group, test, p) for group, test, p in zip(groups, tests, corrected, strict=True)]


def _contests(study: Study, rows: pd.DataFrame) -> list[Table]:
    """For every setting and budget all methods, the best first, with what they cost to serve, train and search."""
    setting, compared = _compared(study, rows)
    found: dict[tuple[str, ...], list[tuple[float, list[str]]]] = {}
    for place, group, test, p in compared:
        against = ["", "", "", ""]
        if test is not None:
            against = [_difference(test), f"{test['size']:.2f}", _p(p), _verdict(test, p)]
        search = group["search_seconds"].dropna()
        took = [spread(group["seconds"].dropna(), 0), spread(search, 0) if len(search) else ""]
        line = [
            *(str(place["method"]), spread(group["auc"]), spread(group["logloss"])),
            *(spread(group["bytes"] if group["bytes"].nunique() > 1 else group["bytes"][:1], 0),),
            *(f"{group['of_full'].mean():.1%}", *against),
            *(f"{group['training_bytes'].mean() / 2**20:,.1f}", *took),
        ]
        key = (*(str(place[name]) for name in setting), _budget(place["budget"]))
        found.setdefault(key, []).append((group["auc"].mean(), line))
    head = [
        *("method", "AUC", "logloss", "bytes", "of full", "minus the nearest uniform", "bytes / its", "p", "AUC is"),
        *("MiB in training", "seconds of training", "of search"),
    ]
    titled: dict[str, list[tuple[float, list[str]]]] = {}
    for (*names, budget), lines in found.items():
        control = all(line[0] == "uniform" for _, line in lines)  # at sizes that no other method was asked for
        size = "other sizes" if control else "no budget" if budget == "none" else f"budget {budget}"
        titled.setdefault(", ".join([*names, size]), []).extend(lines)
    return [(title, head, [line for _, line in sorted(lines, key=lambda x: -x[0])]) for title, lines in titled.items()]


def _standings(study: Study, rows: pd.DataFrame) -> list[Table]:
    """Every method over all settings and budgets: its rank, and how its tests against the control went.

    Beside the verdicts of the single budgets stands one test for each data set, of the AUC that every seed has on
    average over its settings there; its p-values are corrected for the methods of the table.
    """
    setting, compared = _compared(study, rows)
    aucs: dict[str, dict[tuple[str, ...], float]] = {}
    paired: dict[str, dict[str, list[tuple[list[float], list[float]]]]] = {}  # by data set and method
    verdicts: dict[str, list[str]] = {}
    for place, group, test, p in compared:
        method, budget = str(place["method"]), _budget(place["budget"])
        if place["arm"] != "searched":
            continue
        aucs.setdefault(method, {})[*(str(place[name]) for name in setting), budget] = group["auc"].mean()
        if test is not None:
            verdict = _verdict(test, p)
            verdicts.setdefault(method, []).append(verdict)
            if verdict != UNLIKE:
                paired.setdefault(str(place["dataset"]), {}).setdefault(method, []).append(test["aucs"])
    places = {place for method in verdicts for place in aucs[method]}  # `uniform` has more budgets than the others
    whole = [method for method, of_method in aucs.items() if places <= of_method.keys()]
    scores = np.array([[aucs[method][place] for method in whole] for place in sorted(places)])
    ranks = dict(zip(whole, statistics.average_ranks(scores) if scores.size else [], strict=True))
    datasets = list(dict.fromkeys(str(name) for name in rows["dataset"]))
    pooled: dict[str, dict[str, list[str]]] = {}
    for dataset in datasets:
        tests = {method: statistics.paired(*np.mean(of, axis=0)) for method, of in paired.get(dataset, {}).items()}
        corrected = statistics.holm([test["p_value"] for test in tests.values()])
        for (method, test), p in zip(tests.items(), corrected, strict=True):
            pooled.setdefault(method, {})[dataset] = [_difference(test), _p(p)]
    columns = ["more", "more, alone", "no difference shown", "less, alone", "less", UNLIKE]
    cells = []
    for method in sorted(aucs, key=lambda name: ranks.get(name, np.inf)):
        mean = [cell for dataset in datasets for cell in pooled.get(method, {}).get(dataset, ["", ""])]
        counted = [str(verdicts[method].count(one)) if method in verdicts else "" for one in columns]
        cells.append([method, f"{ranks[method]:.1f}" if method in ranks else "", *mean, *counted])
    means = [name for dataset in datasets for name in (f"mean difference, {dataset}", f"p, {dataset}")]
    head = ["method", "average rank", *means, *columns]
    where = f"{len(places)} setting{'s' * (len(places) != 1)}"
    title = f"In {where}: average rank by AUC within the budget, and the tests against one dimension"
    return [(title, head, cells)] if places else []


def _claims(study: Study, rows: pd.DataFrame) -> list[Table]:
    """What ``claims.csv`` says of a method beside another one, and whether it is so.

    ``>``: its AUC is higher, of every seed on average over the budgets at which both are of nearly the same size; a
    paired test, corrected for the claims of its data set. ``>=``, beside full tables: at the largest budget it is not
    lower by more than ``MARGIN``, by the interval.
    """
    file = study.folder / "claims.csv"
    if not file.exists():
        return []
    claims = pd.read_csv(file, keep_default_na=False).to_dict("records")
    own = ["dataset", "method", "budget"]
    setting = [key for key in study.grid if key not in own]
    frames: dict[tuple[str, str], dict[tuple[Any, ...], pd.DataFrame]] = {}
    for (dataset, method, budget, *rest), group in rows.groupby([*own, *setting], sort=False, dropna=False):
        frames.setdefault((dataset, method), {})[budget, *rest] = group.sort_values("seed")
    datasets = list(dict.fromkeys(str(name) for name in rows["dataset"]))
    lines = [[each["source"], each["claim"], f"{each['method']} {each['sign']} {each['against']}"] for each in claims]
    for dataset in datasets:
        tests = [
            _beside(frames.get((dataset, each["method"]), {}), frames.get((dataset, each["against"]), {}), each["sign"])
            for each in claims
        ]
        pairs = zip(claims, tests, strict=True)
        better = statistics.holm([test["p_value"] if test and each["sign"] == ">" else None for each, test in pairs])
        for line, each, test, p in zip(lines, claims, tests, better, strict=True):
            if test is None:
                both = all((dataset, each[name]) in frames for name in ("method", "against"))
                line += ["", "", "", UNLIKE if both else ""]
            else:
                line += [_difference(test), test["at"], _p(p), _upheld(each["sign"], test, p)]
    columns = ("difference", "at", "p", "claim")
    head = ["source", "claim", "tested", *(f"{name}, {dataset}" for dataset in datasets for name in columns)]
    title = f"Claims, of the source named; >= allows {MARGIN} of AUC, and is judged by the interval"
    return [(title, head, lines)]


def _beside(
    one: Mapping[tuple[Any, ...], pd.DataFrame], other: Mapping[tuple[Any, ...], pd.DataFrame], sign: str
) -> dict[str, Any] | None:
    """The test of a claim; none where there are no two of nearly the same size, or one of them is not there."""
    if sign == ">=":
        largest = max((budget for budget, *_ in one), default=None)
        whole = {tuple(rest): group for (_, *rest), group in other.items()}  # full tables, which have no budget
        pairs = {place: (group, whole.get(place[1:])) for place, group in one.items() if place[0] == largest}
    else:
        pairs = {place: (group, other.get(place)) for place, group in one.items()}
    aucs, budgets = [], []
    for (budget, *_), (group, control) in pairs.items():
        if control is None:
            continue
        if sign == ">=" or abs(group["bytes"].mean() / control["bytes"].mean() - 1) <= UNEQUAL:
            aucs.append(_by_seed(group, control, "auc"))
            budgets.append(_budget(budget))
    if not aucs:
        return None
    return {**statistics.paired(*np.mean(aucs, axis=0)), "at": ", ".join(dict.fromkeys(budgets))}


def _upheld(sign: str, test: Mapping[str, Any], corrected: float | None) -> str:
    if test["interval"] is None:
        return "no test"
    low, high = test["interval"]
    if sign == ">=":
        return "supported" if low > -MARGIN else "contradicted" if high < -MARGIN else "undecided"
    if corrected is None or corrected >= 0.05:
        return "undecided"
    return "supported" if test["mean"] > 0 else "contradicted"


def _verdict(test: Mapping[str, Any], corrected: float | None) -> str:
    """What a test against the control says of the AUC."""
    if abs(test["size"] - 1) > UNEQUAL:
        return UNLIKE
    if corrected is None:
        return "no test"
    ahead = "more" if test["mean"] > 0 else "less"
    if corrected < 0.05:
        return ahead
    return f"{ahead}, alone" if test["p_value"] < 0.05 else "no difference shown"


def _tried(study: Study, results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """What was tried before any seed of the study, and what was kept."""
    cells = []
    for result in results:
        by_budget: dict[str, list[str]] = {}
        for trial in result.get("tried", []):
            by_budget.setdefault(_budget(trial["budget"]), []).append(
                "over the budget" if trial["val_auc"] is None else f"{trial['val_auc']:.4f}"
            )
        cells += [[*result["keys"].values(), budget, ", ".join(aucs)] for budget, aucs in by_budget.items()]
    head = [*study.grid, "budget", "AUC on val of every setting, in the order of params.yaml"]
    return [("Settings tried, the best of which is kept", head, cells)] if cells else []


def _ranks(study: Study, rows: pd.DataFrame) -> list[Table]:
    """Average rank of the arms over data sets and backbones."""
    named = rows.assign(
        arm=[arm if arm == "full" else f"{arm}, {m}" for arm, m in zip(rows.arm, rows.method, strict=True)]
    )
    means = named.groupby(["dataset", "backbone", "arm"], sort=False)["auc"].mean().unstack("arm").dropna()
    if len(means) < 2:
        return []
    ranks = statistics.average_ranks(means.to_numpy())
    cells = [[arm, f"{rank:.2f}"] for rank, arm in sorted(zip(ranks, means.columns, strict=True))]
    return [(f"Average rank by AUC in {len(means)} settings", ["arm", "rank"], cells)]


def _paper(rows: pd.DataFrame) -> list[Table]:
    """The paper's figures beside ours, where the data set is the same."""
    known = pd.read_csv(STUDIES / "paper.csv")
    cells = []
    for line in known.to_dict("records"):
        ours = rows[
            (rows["dataset"] == line["dataset"])
            & (rows["backbone"] == line["backbone"])
            & (rows["arm"] == line["method"])
            & ((rows["method"] == "autodim") | (line["method"] == "full"))
        ]
        if len(ours):
            theirs = [f"{line['auc']:.4f}", f"{line['logloss']:.4f}", f"{line['params_millions']:.3f}"]
            here = [spread(ours["auc"]), spread(ours["logloss"]), f"{ours['table_params'].mean() / 1e6:.3f}"]
            cells.append([line["dataset"], line["backbone"], line["method"], *here, *theirs])
    head = ["dataset", "backbone", "arm", "AUC", "logloss", "M params", "paper's AUC", "logloss", "M params"]
    return [("Beside the paper's figures (as quoted by a secondary source)", head, cells)] if cells else []


def _areas(study: Study, rows: pd.DataFrame) -> Table:
    """The curves of AUC over bytes as one number each, from where all of them have begun up to the full tables.

    A curve goes on level where it ends: more bytes do not change a choice that they do not bind.
    """
    cells = []
    keys = list(study.grid)
    for values, group in rows.groupby(keys, sort=False):
        low = float(group.groupby(["arm", "seed"])["bytes"].min().max())
        high = float((group["bytes"] / group["of_full"]).max())
        covered = f"{low:,.0f} to {high:,.0f}" if low < high else "nothing in common"
        for arm, of_arm in group.groupby("arm", sort=False):
            seeds = [one for _, one in of_arm.groupby("seed")] if low < high else []
            heights = [statistics.mean_height(one["bytes"], one["auc"], low, high) for one in seeds]
            cells.append([*values, str(arm), spread(heights) if heights else "", covered])
    title = "Mean AUC over the logarithm of bytes, the area under the curve as one number"
    return title, [*keys, "arm", "mean AUC", "bytes"], cells


def _costs(study: Study, searches: pd.DataFrame) -> Table:
    """What the searches took."""
    cells = []
    for values, group in searches.groupby(list(study.grid), sort=False):
        memory = group["peak_mib"].dropna()
        first = f"{memory.iloc[0]:,.0f}" if len(memory) else ""
        undecided = np.mean([len(fields) for fields in group["undecided"]])
        whole = group["seconds"].dropna()  # of searches that were not interrupted
        cells.append(
            [*values, spread(whole, 1) if len(whole) else "", first, spread(group["bytes"], 0), f"{undecided:.1f}"]
        )
    head = [*study.grid, "seconds", "MiB, first seed", "bytes chosen", "fields undecided"]
    return "The searches", head, cells


def _dims(group: pd.DataFrame) -> np.ndarray:
    return np.array([list(json.loads(dims).values()) for dims in group["dims"]])


def _stability(study: Study, searches: pd.DataFrame) -> Table:
    cells = []
    for values, group in searches.groupby(list(study.grid), sort=False):
        found = statistics.agreement(_dims(group))
        shown = ["none" if found[kind] is None else f"{found[kind]:.2f}" for kind in ("pearson", "spearman")]
        cells.append([*values, str(len(group)), *shown, spread(group["bytes"], 0)])
    return (
        "Agreement of the seeds (paper, Criteo: Pearson about .85)",
        [*study.grid, "seeds", "Pearson", "Spearman", "bytes"],
        cells,
    )


def _choices(study: Study, searches: pd.DataFrame) -> list[Table]:
    made: list[Table] = []
    for values, group in searches.groupby(list(study.grid), sort=False):
        names = list(json.loads(group["dims"].iloc[0]))
        cells = [[name, *map(str, column)] for name, column in zip(names, _dims(group).T, strict=True)]
        made.append(
            (f"Dimensions chosen, {', '.join(values)}", ["field", *(f"seed {s}" for s in group["seed"])], cells)
        )
    return made


def _same_dims(study: Study, searches: pd.DataFrame) -> Table:
    """How far the choice from few rows is that from all, seed by seed."""
    cells = []
    for dataset, group in searches.groupby("dataset", sort=False):
        whole = {row["seed"]: row for row in group[group["rows"] == "all"].to_dict("records")}
        for share, some in group.groupby("rows", sort=False):
            pairs = [(row, whole[row["seed"]]) for row in some.to_dict("records") if row["seed"] in whole]
            alike, shares = [], []
            for row, other in pairs:
                a, b = (np.array(list(json.loads(each["dims"]).values()), dtype=float) for each in (row, other))
                found = statistics.agreement(np.stack([a, b]))["spearman"]
                alike += [] if found is None else [found]
                shares.append(float((a == b).mean()))
            if pairs:
                saved = 1 - some["seconds"].mean() / np.mean([other["seconds"] for _, other in pairs])
                correlation = f"{np.mean(alike):.2f}" if alike else "none"
                cells.append([str(dataset), str(share), f"{np.mean(shares):.0%}", correlation, f"{saved:.0%}"])
    head = ["dataset", "rows", "fields with the same dimension", "Spearman", "search time saved"]
    return "Dimensions from a share of the rows beside those from all", head, cells


def _case(study: Study, rows: pd.DataFrame, searches: pd.DataFrame) -> Table:
    paper = pd.read_csv(study.folder / "paper.csv").set_index("field").to_dict("index")
    cells = []
    for dataset, group in rows.groupby("dataset", sort=False):
        chosen = searches[searches["dataset"] == dataset] if len(searches) else None
        for field, one in group[group["arm"] == "alone"].groupby("field", sort=False):
            dims = [] if chosen is None else [json.loads(each)[str(field)] for each in chosen["dims"]]
            theirs = paper.get(str(field)) if dataset == "movielens-1m" else None
            shown = (
                ["", "", ""]
                if theirs is None
                else [f"{theirs['auc']:.4f}", f"{theirs['logloss']:.4f}", f"{theirs['dim']:.0f}"]
            )
            cells.append(
                [
                    str(dataset),
                    str(field),
                    spread(one["auc"]),
                    spread(one["logloss"]),
                    ", ".join(map(str, dims)),
                    *shown,
                ]
            )
        for arm, one in group[group["arm"] != "alone"].groupby("arm", sort=False):
            size = f"{one['of_full'].mean():.1%} of full"
            cells.append([str(dataset), f"all, {arm}", spread(one["auc"]), spread(one["logloss"]), size, "", "", ""])
    head = [
        "dataset",
        "field",
        "AUC alone",
        "logloss alone",
        "dimension, by seed",
        "paper's AUC",
        "logloss",
        "dimension",
    ]
    return "Each field alone, and the dimension it gets", head, cells


# --- figures


def _figures(study: Study, rows: pd.DataFrame, searches: pd.DataFrame, folder: Path) -> list[tuple[Path, str]]:
    drawn: list[tuple[Path, str]] = []

    def keep(figure: Any, name: str, caption: str) -> None:
        figures.save(figure, folder / f"{name}.png")
        drawn.append((folder / f"{name}.svg", caption))

    if study.name == "budget":
        for (dataset, method), group in rows.groupby(["dataset", "method"], sort=False):
            curves = {
                str(arm): [(one["bytes"].mean(), one["auc"].tolist()) for _, one in of_arm.groupby("budget")]
                for arm, of_arm in group.groupby("arm", sort=False)
            }
            name = f"curve-{dataset}-{method}"
            keep(figures.curves(curves, f"{dataset}, {method}"), name, f"AUC against bytes, {dataset}, {method}")
    elif len(rows):
        groups = list(_groups(study, rows))
        tests, _ = _against_uniform(study, groups)
        contest = len(study.grid.get("method", [])) > CONTEST
        keys = [key for key in study.grid if not contest or key == "method"]
        parts: dict[str, dict[str, dict[str, tuple[float, Any]]]] = {}
        for (place, _group), test in zip(groups, tests, strict=True):
            if test is not None and not (contest and _verdict(test, None) == UNLIKE):
                part = str(place["dataset"]) if contest else ""
                panel = f"{_budget(place['budget'])} of full" if contest else ""
                name = ", ".join(str(place[key]) for key in keys)
                found = parts.setdefault(part, {}).setdefault(panel, {})
                found[name] = (test["mean"], test["interval"])
        for part, panels in parts.items():
            title = "Minus one dimension of its size" + (f", {part}" if part else "")
            shown = figures.differences(panels, title, ordered=contest)
            file = "-".join(["minus_uniform", *([part] if part else [])])
            keep(shown, file, f"AUC minus that of one dimension of the same size{', ' if part else ''}{part}")
    return drawn


# --- cells


def spread(values: Sequence[float] | pd.Series, digits: int = 4) -> str:
    """Mean, with the standard deviation where there is more than one."""
    array = np.asarray(values, dtype=float)
    text = f"{array.mean():,.{digits}f}"
    return text if len(array) < 2 else f"{text} ± {array.std(ddof=1):,.{digits}f}"


def _difference(test: Mapping[str, Any]) -> str:
    if test["interval"] is None:
        return f"{test['mean']:+.4f}"
    low, high = test["interval"]
    return f"{test['mean']:+.4f} ({low:+.4f} to {high:+.4f})"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value >= 0.001 else "<.001"


def _budget(value: Any) -> str:
    if value is None or pd.isna(value):
        return "none"
    return f"{100 * value:.3g}%" if value <= 1 else f"{value:,.0f}"


def _same(a: Mapping[str, Any], b: Mapping[str, Any], skip: str) -> bool:
    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and np.isnan(value) else value

    return all(plain(a[key]) == plain(b[key]) for key in a if key != skip)


def _by_seed(a: pd.DataFrame, b: pd.DataFrame, figure: str) -> tuple[list[float], list[float]]:
    seeds = [seed for seed in a["seed"] if seed in set(b["seed"])]
    one, other = ([float(frame.loc[frame["seed"] == seed, figure].iloc[0]) for seed in seeds] for frame in (a, b))
    return one, other


def _markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _details(frame: pd.DataFrame) -> str:
    """All single figures, with the run in MLflow and the commit that each comes from."""
    shown = [c for c in frame if c not in ("cell", "peak_mib", "undecided")]
    cells = [[_plain(value) for value in row] for row in frame[shown].itertuples(index=False)]
    summary = f"<summary>All {len(frame)} single results, with their MLflow runs and commits</summary>"
    return f"<details>{summary}{_page.table(shown, cells)}</details>"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.5g}"
    return str(value)
