"""What to do, in words made from the numbers of a report: what to deploy, what the search is worth, what is unsure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.metrics.difference import LEVEL, Difference
from pipeline.reporting.forms import CODED, INT4, INT8, as_good, deployable, smallest
from pipeline.reporting.statistics import holm
from pipeline.reporting.text import number_of, with_interval

Report = Mapping[str, Any]  # the contents of report.json

EQUAL = 0.02  # sizes that differ by no more than this share count as equal
ALPHA = 1 - LEVEL
NAMED = 10  # undecided fields that are named
CONTROLS = {  # what the searched allocation is compared with, beside the full models
    "uniform": "one dimension for all fields",
    "random": "random dimensions",
    "int8": "tables in int8",
    "int4": "tables in int4",
    "coded": "coded full models",
}


@dataclass(frozen=True)
class Verdict:
    """What a reader has to know first.

    Args:
        headline: what to deploy, and its bytes before and after.
        points: a short title and sentences on it; `code` stands between backticks.
    """

    headline: str
    points: Sequence[tuple[str, str]]

    def markdown(self) -> str:
        points = [f"- **{title}.** {text}".replace("\n", " ") for title, text in self.points]
        return "\n".join([f"**{self.headline}**", "", *points])


def verdict(report: Report) -> Verdict:
    """The verdict of a report.

    The form to deploy is in the report, since it is chosen on ``val``; see `pipeline.reporting.forms.deploy`.
    """
    form = next(one for one in report["forms"] if one["name"] == report["deploy"])
    made = [_undecided(report), _on_test(report, form), _choice(report, form), _search(report), *_surer(report, form)]
    return Verdict(_headline(report, form), [point for point in (*made, _how(report, form)) if point])


def called(form: Mapping[str, Any]) -> str:
    """The name of a form in a sentence, e.g. "full, coded at 2.5%"."""
    name: str = form["name"]
    return f"{name} at {form['ratio']:.1%}" if form["kind"] == CODED else name


def unequal(ratio: float) -> str:
    """How a size differs from that of the other side, e.g. "13% more bytes"; empty for sizes that count as equal.

    Args:
        ratio: of the two sizes.
    """
    if abs(ratio - 1) <= EQUAL:
        return ""
    if ratio >= 2:
        return f"{ratio:.1f} times the bytes"
    return f"{abs(ratio - 1):.0%} {'more' if ratio > 1 else 'fewer'} bytes"


def title_of(report: Report) -> str:
    """Title of the objective."""
    title: str = report["metrics"][report["objective"]]
    return title


def same_as_searched(report: Report) -> list[str]:
    """The controls of which all models, or those of a seed, have the searched dimensions and bytes."""
    entries = report["allocations"]
    searched = entries["searched"]

    def same(dims: Any, size: int) -> bool:
        return bool(dims == searched["dims"] and size == searched["bytes"])

    return [
        name
        for name, entry in entries.items()
        if name != "searched"
        and (
            any(map(same, entry["dims"], entry["bytes_values"]))
            if isinstance(entry["dims"], list)
            else same(entry["dims"], entry["bytes"])
        )
    ]


def _headline(report: Report, form: Mapping[str, Any]) -> str:
    if form["name"] == "full":
        return f"Deploy full, {form['bytes']:,} bytes of tables: nothing smaller keeps its {title_of(report)} on val."
    tables = round(form["bytes"] / form["ratio"])
    full = next((one for one in report["forms"] if one["name"] == "full"), None)
    whole = f"; whole model: {form['model_bytes'] / full['model_bytes']:.1%}" if full else ""
    return (
        f"Deploy {form['name']}: {form['bytes']:,} bytes of tables in place of {tables:,} ({form['ratio']:.1%}{whole})."
    )


def _undecided(report: Report) -> tuple[str, str] | None:
    names = report["undecided"]
    if not names:
        return None
    entry = report["allocations"]["searched"]
    by_field = entry["bytes_per_field"]
    shown = names if len(names) <= NAMED else [*names[:NAMED], number_of(len(names) - NAMED, "other")]
    text = f"{_listed(shown)}: the two best candidates are closer than `search.architecture.margin`."
    if by_field and entry["bytes"]:
        text += f" This is about {sum(by_field[name] for name in names) / entry['bytes']:.1%} of the searched bytes."
    text += " Search longer (`search.epochs`), or with another `search.seed`: if seeds choose differently, the data do "
    text += "not tell the candidates apart."
    return "Undecided", text


def _on_test(report: Report, form: Mapping[str, Any]) -> tuple[str, str]:
    title, own = title_of(report), form["test"]["mean"]
    whole = f"The whole model takes {form['model_bytes']:,} bytes"
    full = next((one for one in report["forms"] if one["name"] == "full"), None)
    if full is None or form is full:
        return "On test", f"{title} {own:.4f}. {whole}."
    minus = Difference.of(form["minus_full"])
    text = f"{title} {own:.4f}, and {full['test']['mean']:.4f} of full: {with_interval(minus)}. "
    text += f"{_loss(minus, report['tolerance'])} {whole} in place of {full['model_bytes']:,}."
    return "On test", text


def _loss(minus: Difference, tolerance: float) -> str:
    """What the interval says of the loss on test, and what it covers."""
    if minus.interval is None:
        return f"There is {minus.covers}."
    low, high = minus.interval
    about = f"The {LEVEL:.0%} interval covers {minus.covers}"
    if high < -tolerance:
        return f"{about}: on test it loses more than the {tolerance:g} that are allowed."
    if low > -tolerance:
        return f"{about}: a loss of {tolerance:g} or more is excluded."
    return f"{about}, and does not exclude a loss of up to {-low:.4f}."


def _choice(report: Report, form: Mapping[str, Any]) -> tuple[str, str]:
    """How the form was chosen, what one dimension needs for it, and a larger form that is better."""
    forms, tolerance, title = deployable(report["forms"]), report["tolerance"], title_of(report)
    best = max(forms, key=lambda one: (one["val"]["mean"], -one["bytes"]))
    full = next((one for one in forms if one["name"] == "full"), best)
    against = "that of full" if full["name"] == "full" else f"the best, since there is no control full, {called(best)}"
    plain = [one for one in forms if one["kind"] != CODED]
    sizes = len(report["curve"]["points"]) if "curve" in report else 0
    of = number_of(len(plain), "form") + (f" and {number_of(sizes, 'size')} of coded full models" if sizes else "")
    text = f"Chosen on val: of {of}, the smallest whose {title} is less than {tolerance:g} below {against}: "
    text += f"{form['val']['mean']:.4f} and {full['val']['mean']:.4f}."
    if sizes and report["curve"]["knee"] is None:
        text += " Coded full models lose more at every size."
    text += _one_dimension(report, form)
    if best["val"]["mean"] > form["val"]["mean"] + tolerance:
        text += f" If bytes matter less, {called(best)} is the best on val: {best['val']['mean']:.4f} in "
        text += f"{best['bytes']:,} bytes, {best['test']['mean']:.4f} on test."
    return "Choice", text


def _one_dimension(report: Report, form: Mapping[str, Any]) -> str:
    """The smallest tables of one dimension for all fields that are as good as the full ones on val; "" if they are the
    form itself, or there are no full ones."""
    plain = [one for one in report["forms"] if one["kind"] != CODED and one["allocation"] in ("full", "uniform")]
    if not any(one["name"] == "full" for one in plain):
        return ""
    least = smallest(as_good(plain, report["tolerance"]))
    if least["name"] == form["name"]:
        return ""
    text = f" The smallest tables of one dimension that are as good, in float32, int8 or int4, are {least['name']}: "
    text += f"{least['bytes']:,} bytes, {least['bytes'] / form['bytes']:.1f} times as many"
    return text + ("." if least["kind"] != INT4 else ". This project has no packed file for int4.")


def _search(report: Report) -> tuple[str, str]:
    """Whether the searched allocation is shown to be worth more than its controls."""
    entry, same = report["allocations"]["searched"], same_as_searched(report)
    compared = [one for one in report["comparisons"] if one["against"] not in ("full", *same)]
    corrected = holm([one["p_value"] for one in compared])
    groups: dict[str, list[str]] = {}
    for one, p in zip(compared, corrected, strict=True):
        if one["interval"] is None:
            kind = "untested"
        elif p is None or p >= ALPHA:
            kind = "alike"
        else:
            kind = "better" if one["mean"] > 0 else "worse"
        groups.setdefault(kind, []).append(_beside(one))
    said = [f"{report['method']} chose {entry['bytes']:,} bytes ({entry['ratio']:.1%})."]
    if "better" in groups:
        said.append(f"It is shown to be better than {_listed(groups['better'])}.")
    else:
        said.append("It is not shown to be better than any control of about its size.")
    if "worse" in groups:
        said.append(f"It is shown to be worse than {_listed(groups['worse'])}.")
    if "alike" in groups:
        said.append(f"No difference is shown from {_listed(groups['alike'])}.")
    if "untested" in groups:
        why = next(one["covers"] for one in compared if one["interval"] is None)
        said.append(f"There is {why}, for {_listed(groups['untested'])}.")
    if same:
        said.append(f"There is no comparison with {_listed(same)}: the dimensions are the same.")
    known = {_kind(one["against"]) for one in report["comparisons"]}
    if missing := [text for kind, text in CONTROLS.items() if kind not in known]:
        said.append(f"There is no control of {_listed(missing)}.")
    if sum(p is not None for p in corrected) > 1:
        said.append(f"The tests are Holm-corrected for {len(compared)} comparisons; the intervals are not.")
    return "The search", " ".join(said)


def _kind(against: str) -> str:
    """The key of `CONTROLS` for the name of a form."""
    if against.endswith(", coded"):
        return "coded"
    return next((kind for kind in (INT8, INT4) if against.endswith(f" in {kind}")), against)


def _beside(one: Mapping[str, Any]) -> str:
    """A control with the difference from it, e.g. "uniform (+0.0520, -0.0372 to +0.1412; it has 13% more bytes)"."""
    size = unequal(1 / one["bytes_ratio"])
    return f"{one['against']} ({_signed(Difference.of(one))}{f'; it has {size}' if size else ''})"


def _surer(report: Report, form: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What would decide the questions that the intervals leave open."""
    tolerance, title = report["tolerance"], title_of(report)
    if form["minus_full"] is not None:
        minus = Difference.of(form["minus_full"])
        if minus.seeds == 1:
            yield "Surer", "Give `retrain.seeds` two seeds or more: one seed has no interval, and its luck is unknown."
            return
        low, high = minus.interval or (0.0, 0.0)
        if low <= -tolerance <= high and minus.interval:
            what = f"whether {called(form)} loses {tolerance:g} of {title} or more"
            yield "Surer", _needed(minus, abs(minus.mean + tolerance), what, minus.rows or report["test_rows"])
    for one in report["comparisons"]:
        if one["against"] == "uniform" and "uniform" not in same_as_searched(report) and one["interval"]:
            low, high = one["interval"]
            if low <= 0 <= high:
                minus = Difference.of(one)
                what = "whether the search beats one dimension for all fields"
                yield "Surer, the search", _needed(minus, abs(minus.mean), what, minus.rows or report["test_rows"])


def _needed(minus: Difference, half: float, what: str, rows: int) -> str:
    """What limits a difference, and how much more of it would decide a question.

    Args:
        minus: the difference.
        half: the half width of the interval that decides the question.
        what: the question.
        rows: number of test rows, or users.
    """
    share, unit = minus.share_of_seeds, minus.unit
    if share is None:
        return f"Nothing varies, or the variance over the {unit} is unknown, so nobody can say {what}."
    if not half > 0:
        return f"The mean lies on the limit itself, so no number of seeds or {unit} is known to say {what}."
    both = f"about {_round(minus.times_for(half) or 0.0)} times the seeds and the test {unit} would"
    if share >= 0.5:
        number, limit = minus.seeds_for(half), f"the seeds, with {share:.0%} of the variance"
        enough = f"about {number} seeds in place of {minus.seeds} would" if number else ""
        enough = enough or f"more seeds alone do not suffice, {both}"
    else:
        factor, limit = minus.rows_for(half), f"the test {unit}, with {1 - share:.0%} of the variance"
        enough = f"about {_round(factor * rows)} test {unit} in place of {rows:,} would" if factor else ""
        enough = enough or f"more test {unit} alone do not suffice, {both}"
    return f"To say {what}, the limit is {limit}: {enough} do, if the mean and the variances stay as they are."


def _how(report: Report, form: Mapping[str, Any]) -> tuple[str, str]:
    if "interactions" in report and form["kind"] == CODED:
        command = f"dvc exp run -S method.name=coded -S derive.budget={form['budget']}"
        return "How", f"`{command}` trains such tables: coded tables of retrieval have no packed form yet."
    if "interactions" in report:
        place = f"artifacts/models/{form['allocation']}/seed-{report['seeds'][0]}"
        return "How", f"`python -m stages.score {place} all best.csv` writes the best items of all users."
    seed = report["seeds"][0]
    command = f"python -m stages.export artifacts/models/{form['allocation']}/seed-{seed} model"
    if form["kind"] == CODED:
        command += f" --budget {form['budget']}"
    elif form["kind"] == INT8:
        command += " --int8"
    elif not form["packed"]:
        command += " --format trained"
    text = f"`{command}` writes the model of seed {seed}, and `python -m stages.score model new.csv scores.csv` scores "
    return "How", text + "new rows with it."


def _signed(minus: Difference) -> str:
    """ "+0.0017, -0.0040 to +0.0074"."""
    if minus.interval is None:
        return f"{minus.mean:+z.4f}"
    low, high = minus.interval
    return f"{minus.mean:+z.4f}, {low:+z.4f} to {high:+z.4f}"


def _round(number: float) -> str:
    """Two digits, e.g. "2.9", "170" or "4,300"."""
    return f"{float(f'{number:.2g}'):,g}" if number < 1000 else f"{float(f'{number:.2g}'):,.0f}"


def _listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
