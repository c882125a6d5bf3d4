"""The report of the main job: its verdict and tables, as Markdown, and the small tables that DVC plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.metrics.difference import LEVEL, Difference
from pipeline.reporting import fields, retrieval
from pipeline.reporting.deserved import rounded
from pipeline.reporting.text import Table, mean_sd, number_of, with_interval
from pipeline.reporting.verdict import Report, same_as_searched, title_of, unequal, verdict

FIELDS = 40  # rows of a table of fields in Markdown; the page has all
FIGURES = {  # name of the file -> its title
    "objective_against_bytes": "The objective against bytes",
    "trajectories": "The search over time",
    "dim_against_cardinality": "Dimensions against the number of values",
    "deserved_dimensions": "The dimensions that each field deserves",
}


def markdown(report: Report, drawn: Sequence[str] = ()) -> str:
    """The whole report as text.

    Args:
        report: the contents of ``report.json``.
        drawn: names of the figures in the folder ``figures`` beside the report.
    """
    parts = [verdict(report).markdown(), about(report)]
    parts += [table.markdown() for table in tables(report, FIELDS)]
    parts += ["\n".join(f"- {line}" for line in facts(report))]
    parts += [f"![{FIGURES[name]}](figures/{name}.png)" for name in drawn]
    return "\n\n".join(parts)


def about(report: Report) -> str:
    """What was run."""
    return f"{report['dataset']}, {report['backbone']}, {report['method']}, seeds {report['seeds']}"


def tables(report: Report, most: int | None = None) -> list[Table]:
    """All tables.

    Args:
        report: the contents of ``report.json``.
        most: rows of a table of fields, those with the most bytes; None for all.
    """
    made = [_fields(report, most), _allocations(report)]
    if any(entry["served"] for entry in report["allocations"].values()):
        made.append(_int8(report))
    if "curve" in report:
        made.append(_curve(report))
        if report["curve"]["deserved"]:
            made.append(_deserved(report, most))
    return [*made, *retrieval.tables(report), *fields.tables(report.get("data"), most)]


def facts(report: Report) -> list[str]:
    """The comparisons, the agreement of the seeds, warnings, and what is known of planted data, a line each."""
    return [*_comparisons(report), *_agreement(report), *_warnings(report), *_planted(report)]


def by_bytes(report: Report) -> list[str]:
    """The fields by falling bytes of the searched allocation, or by falling number of values if these are unknown."""
    size = report["allocations"]["searched"]["bytes_per_field"] or report["cardinality"]
    return sorted(report["cardinality"], key=lambda name: -size[name])


def _fields(report: Report, most: int | None) -> Table:
    entry, undecided = report["allocations"]["searched"], set(report["undecided"])
    names, sizes = by_bytes(report), entry["bytes_per_field"]
    rows = [
        [
            name,
            f"{report['cardinality'][name]:,}",
            str(entry["dims"][name]),
            f"{sizes[name]:,}" if sizes else "–",
            f"{sizes[name] / entry['model_bytes']:.1%}" if sizes else "–",
            "–" if not report["scored"] else "no" if name in undecided else "yes",
        ]
        for name in sorted(names, key=lambda name: name not in undecided)[:most]
    ]
    note = _left_out(names, most)
    if not sizes:
        note += f" More than dimensions decides what {report['method']} stores, so the bytes of a field are not known."
    head = ["field", "cardinality", "dimension", "bytes", "of the whole model", "decided"]
    return Table("The searched fields", head, rows, note.strip())


def _left_out(names: Sequence[str], most: int | None) -> str:
    if most is None or len(names) <= most:
        return ""
    return f"The {most} fields with the most bytes; {number_of(len(names) - most, 'field')} more are in report.html."


def _allocations(report: Report) -> Table:
    shown = list(report["metrics"])[:2]
    batches = _batches(report)
    head = ["allocation", *(report["metrics"][name] for name in shown), "bytes", "of full", "whole model"]
    rows = [
        [
            name,
            *(mean_sd(entry["metrics"][metric]["values"]) for metric in shown),
            f"{entry['bytes']:,}",
            f"{entry['ratio']:.1%}",
            f"{entry['model_bytes']:,}",
            *_times(_as_trained(entry["served"]), batches),
        ]
        for name, entry in report["allocations"].items()
    ]
    return Table("The allocations on test", [*head, *_heads(batches)], rows)


def _int8(report: Report) -> Table:
    batches = _batches(report)
    rows = []
    for name, entry in report["allocations"].items():
        int8 = entry["served"].get("int8")
        sizes = ["–"] * 3
        if int8:
            sizes = [f"{int8['bytes']:,}", f"{int8['ratio']:.1%}", f"{int8['objective_loss']:z.4f}"]
        rows.append([name, *sizes, *_times(int8, batches)])
    head = ["in int8", "bytes", "of full", f"{title_of(report)} lost", *_heads(batches)]
    return Table("The same models in int8", head, rows)


def _curve(report: Report) -> Table:
    """The full models, coded without further training."""
    curve, title = report["curve"], title_of(report)
    head = ["full, coded", "of full", f"{title} on val", f"{title} on test", "test minus full"]
    rows = [
        [
            f"{point['bytes']:,} bytes" + (" (knee)" if place == curve["knee"] else ""),
            f"{point['ratio']:.1%}",
            mean_sd(point["val"]["values"]),
            mean_sd(point["test"]["values"]),
            f"{point['test']['mean'] - curve['full']['test']['mean']:+z.4f}",
        ]
        for place, point in enumerate(curve["points"])
    ]
    return Table("The full models, coded without further training", head, rows)


def _batches(report: Report) -> list[str]:
    """The batch sizes of the measured latencies."""
    forms = [form for entry in report["allocations"].values() for form in entry["served"].values()]
    return list(forms[0]["latency_ms"]) if forms else []


def _heads(batches: list[str]) -> list[str]:
    return [f"ms, {int(size):,} row{'s' * (size != '1')}" for size in batches]


def _as_trained(served: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The form whose outputs are those of the trained model, if there is one."""
    return served.get("float32", served.get("coded"))


def _times(served: Mapping[str, Any] | None, batches: list[str]) -> list[str]:
    """Median milliseconds for each batch size; dashes for a model that cannot be served."""
    return [f"{served['latency_ms'][size]['median']:.2f}" if served else "–" for size in batches]


def _comparisons(report: Report) -> Iterator[str]:
    for compared in report["comparisons"]:
        minus, ratio = Difference.of(compared), compared["bytes_ratio"]
        covers = f"{100 * LEVEL:.0f} %, over {minus.covers}" if minus.interval else minus.covers
        size = f"at {ratio:.2f} x its bytes" + (" (sizes differ)" if unequal(ratio) else "")
        yield f"searched minus {compared['against']}: {title_of(report)} {with_interval(minus)}, {covers}, {size}"


def _deserved(report: Report, most: int | None) -> Table:
    """The components with bits of each field and block at the knee of the curve, beside the searched dimension."""
    curve = report["curve"]
    fields = curve["deserved"]["fields"]
    dims = report["allocations"]["searched"]["dims"]
    blocks_of = max(map(len, fields.values()))
    head = [f"components / bits, coded at {curve['points'][curve['knee']]['ratio']:.1%}", "values"]
    head += ["most frequent", *["less frequent"] * (blocks_of - 2), "least frequent"][:blocks_of]
    largest = set(by_bytes(report)[:most])
    rows = []
    for name in (name for name in fields if name in largest):
        shown = [f"{rounded(block['components'])} / {rounded(block['bits'])}" for block in fields[name]]
        shown += ["–"] * (blocks_of - len(shown))
        values = sum(block["rows"] for block in fields[name])
        rows.append([name, f"{values:,}", *shown, str(dims.get(name, 0))])
    title = "Components and bits by field and frequency"
    return Table(title, [*head, report["method"]], rows, _left_out(list(fields), most))


def _agreement(report: Report) -> Iterator[str]:
    """How well the seeds agree on the components of fields and blocks."""
    deserved = report.get("curve", {}).get("deserved")
    if deserved and deserved["agreement"] is not None:
        yield (
            f"the {len(report['seeds'])} full models agree on their components by field and block: correlation "
            f"{deserved['agreement']:.2f}, weighted by bytes"
        )


def _warnings(report: Report) -> Iterator[str]:
    yield from fields.warnings(report.get("data"))
    if same := same_as_searched(report):
        yield f"warning: no real comparison with {', '.join(same)}: the same dimensions as searched"
    if report["undecided"]:
        yield f"warning: the search did not decide on {', '.join(report['undecided'])}"


def _planted(report: Report) -> Iterator[str]:
    if "planted" not in report:
        return
    correlation = report["rank_correlation"]
    shown = "undefined" if correlation is None else f"{correlation:.2f}"
    best = report["best_possible"]
    ceiling = "" if best is None else f"best possible {title_of(report)} {best:.4f}; "
    yield f"{ceiling}dimension against planted rank: {shown}"


def metrics(report: Report) -> dict[str, dict[str, float | str]]:
    """For ``dvc metrics``: the form to deploy, and the means of each allocation, also in int8.

    A standard deviation over the seeds is there if there is more than one seed.
    """
    objective = report["objective"]
    form = next(one for one in report["forms"] if one["name"] == report["deploy"])
    deploy = {"form": form["name"], **_mean(objective, form["test"]), "bytes": form["bytes"], "of_full": form["ratio"]}
    shown: dict[str, dict[str, float | str]] = {"deploy": deploy}
    for name, entry in report["allocations"].items():
        figures = {metric: values["mean"] for metric, values in entry["metrics"].items()}
        figures |= _mean(objective, entry["metrics"][objective])
        figures |= {"bytes": entry["bytes"], "of_full": entry["ratio"]}
        if "int8" in entry["served"]:
            int8 = entry["served"]["int8"]
            figures[f"int8_{objective}"] = int8["metrics"][objective]["mean"]
            figures["int8_bytes"] = int8["bytes"]
        shown[name] = figures
    return shown


def _mean(metric: str, spread: Mapping[str, Any]) -> dict[str, float]:
    """The mean of a metric and, with more than one seed, its standard deviation."""
    return {metric: spread["mean"]} | ({} if spread["sd"] is None else {f"{metric}_sd": spread["sd"]})


def points(report: Report) -> list[dict[str, Any]]:
    """Bytes and test objective of every allocation and seed."""
    return [
        {"allocation": name, "seed": seed, "bytes": size_of(entry, i), "objective": of_seed(report, entry, i)}
        for name, entry in report["allocations"].items()
        for i, seed in enumerate(report["seeds"])
    ]


def of_seed(report: Report, entry: Mapping[str, Any], i: int) -> float:
    """The objective of an allocation's i-th seed."""
    value: float = entry["metrics"][report["objective"]]["values"][i]
    return value


def size_of(entry: Mapping[str, Any], i: int) -> int:
    """Bytes of an allocation with its i-th seed; only random dimensions differ by seed."""
    size: int = entry["bytes_values"][i] if "bytes_values" in entry else entry["bytes"]
    return size
