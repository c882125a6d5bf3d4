"""The report of the main job in Markdown, and the small tables that DVC plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.metrics.difference import Difference
from pipeline.reporting.deserved import rounded
from pipeline.reporting.fields import section
from pipeline.reporting.text import mean_sd, table, with_interval

Report = Mapping[str, Any]  # the contents of report.json


def markdown(report: Report) -> str:
    """The whole report as text."""
    lines = [f"{report['dataset']}, {report['backbone']}, {report['method']}, seeds {report['seeds']}", ""]
    lines += [_allocations(report), ""]
    if any(entry["served"] for entry in report["allocations"].values()):
        lines += [_int8(report), ""]
    if "curve" in report:
        lines += [_curve(report), ""]
        if report["curve"]["deserved"]:
            lines += [_deserved(report), ""]
    lines += [
        f"- {line}" for line in (*_comparisons(report), *_agreement(report), *_warnings(report), *_planted(report))
    ]
    return "\n".join([*lines, *section(report.get("data"))])


def _allocations(report: Report) -> str:
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
    return table([*head, *_heads(batches)], rows)


def _int8(report: Report) -> str:
    batches = _batches(report)
    rows = []
    for name, entry in report["allocations"].items():
        int8 = entry["served"].get("int8")
        sizes = ["–"] * 3
        if int8:
            sizes = [f"{int8['bytes']:,}", f"{int8['ratio']:.1%}", f"{int8['objective_loss']:z.4f}"]
        rows.append([name, *sizes, *_times(int8, batches)])
    title = report["metrics"][report["objective"]]
    return table(["in int8", "bytes", "of full", f"{title} lost", *_heads(batches)], rows)


def _curve(report: Report) -> str:
    """The full models, coded without further training."""
    curve, title = report["curve"], report["metrics"][report["objective"]]
    head = ["full, coded", "of full", f"{title} on val", f"{title} on test", "test minus full"]
    rows = [
        [
            f"{point['bytes']:,} bytes" + (" (knee)" if place == curve["knee"] else ""),
            f"{point['ratio']:.1%}",
            mean_sd(point["val"]["values"]),
            mean_sd(point["test"]["values"]),
            f"{point['test']['mean'] - curve['full']['test']['mean']:+.4f}",
        ]
        for place, point in enumerate(curve["points"])
    ]
    return table(head, rows)


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
    title = report["metrics"][report["objective"]]
    for compared in report["comparisons"]:
        fields = {name: compared[name] for name in Difference.__dataclass_fields__}
        difference = Difference(**fields)
        covers = f"95 %, over {difference.covers}" if difference.interval is not None else difference.covers
        yield (
            f"searched minus {compared['against']}: {title} {with_interval(difference)}, {covers}, at "
            f"{compared['bytes_ratio']:.2f} x its bytes"
        )


def _deserved(report: Report) -> str:
    """The components with bits of each field and block at the knee of the curve, beside the searched dimension."""
    curve = report["curve"]
    fields = curve["deserved"]["fields"]
    dims = report["allocations"]["searched"]["dims"]
    most = max(map(len, fields.values()))
    head = [f"components / bits, coded at {curve['points'][curve['knee']]['ratio']:.1%}", "values"]
    head += ["most frequent", *["less frequent"] * (most - 2), "least frequent"][:most]
    rows = []
    for name, blocks in fields.items():
        shown = [f"{rounded(block['components'])} / {rounded(block['bits'])}" for block in blocks]
        shown += ["–"] * (most - len(shown))
        values = sum(block["rows"] for block in blocks)
        rows.append([name, f"{values:,}", *shown, "–" if isinstance(dims, list) else str(dims.get(name, 0))])
    return table([*head, report["method"]], rows)


def _agreement(report: Report) -> Iterator[str]:
    """How well the seeds agree on the components of fields and blocks."""
    deserved = report.get("curve", {}).get("deserved")
    if deserved and deserved["agreement"] is not None:
        yield (
            f"the {len(report['seeds'])} full models agree on their components by field and block: correlation "
            f"{deserved['agreement']:.2f}, weighted by bytes"
        )


def _warnings(report: Report) -> Iterator[str]:
    entries = report["allocations"]
    searched = entries["searched"]["dims"]
    same = [name for name, entry in entries.items() if name != "searched" and _has(entry["dims"], searched)]
    if same:
        yield f"warning: no real comparison with {', '.join(same)}: the same dimensions as searched"
    if report["undecided"]:
        yield f"warning: the search did not decide on {', '.join(report['undecided'])}"


def _has(dims: Any, searched: Mapping[str, int]) -> bool:
    """Whether a control, or one of its seeds, has the searched dimensions."""
    return searched in dims if isinstance(dims, list) else bool(dims == searched)


def _planted(report: Report) -> Iterator[str]:
    if "planted" not in report:
        return
    correlation = report["rank_correlation"]
    shown = "undefined" if correlation is None else f"{correlation:.2f}"
    best = report["best_possible"]
    title = report["metrics"][report["objective"]]
    ceiling = "" if best is None else f"best possible {title} {best:.4f}; "
    yield f"{ceiling}dimension against planted rank: {shown}"


def metrics(report: Report) -> dict[str, dict[str, float]]:
    """Metrics and bytes of each allocation, also in int8, for ``dvc metrics``."""
    shown = {}
    for name, entry in report["allocations"].items():
        figures = {metric: values["mean"] for metric, values in entry["metrics"].items()}
        figures["bytes"] = entry["bytes"]
        if "int8" in entry["served"]:
            int8 = entry["served"]["int8"]
            objective = report["objective"]
            figures[f"int8_{objective}"] = int8["metrics"][objective]["mean"]
            figures["int8_bytes"] = int8["bytes"]
        shown[name] = figures
    return shown


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
