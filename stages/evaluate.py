"""Stage 6: open ``test``, once; say what every allocation costs and what it is worth.

Writes ``artifacts/report.json``, ``artifacts/report.md``, ``artifacts/metrics.json``, ``artifacts/figures/``, and for
DVC's plots ``artifacts/curves.csv`` and ``artifacts/allocations.csv``.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.schema import Schema
from pipeline.workflow.plug import plug
from stages import _model, _serving, _stage
from stages._stage import ENCODED, MODELS, SCORES

if TYPE_CHECKING:
    import numpy as np

    from pipeline.allocation.allocation import Allocation
    from pipeline.data.split import Split
    from pipeline.embeddings.cost import Build


def run() -> None:
    started = time.monotonic()
    _model.tune()
    import numpy as np
    import pandas as pd

    from pipeline.data.split import Split
    from pipeline.embeddings.cost import full_tables
    from pipeline.metrics.bootstrap import paired_bootstrap
    from pipeline.reporting import figures

    params = _stage.params("evaluate")
    encoded = _stage.read(ENCODED / "schema.json")
    schema = Schema.load(ENCODED / "schema.json")
    facts = encoded.get("facts", {})
    controls = [name for name in ("full", "uniform", "random") if (MODELS / name).is_dir()]
    test = Split.load(ENCODED, "test")
    labels = test.all_labels()
    allocations: dict[str, dict[str, Any]] = {}
    logits: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("searched", *controls):
            allocations[name], logits[name] = _evaluated(name, params, schema, test, Path(folder))
        speeds = _serving.measured({path.name: path for path in sorted(Path(folder).iterdir())})
    full = full_tables(schema, params["dim"]).bytes
    for name, entry in allocations.items():
        entry["ratio"] = entry["bytes"] / full
        for form, served in (entry["served"] or {}).items():
            served |= {"ratio": served["bytes"] / full} | speeds[f"{name}.{form}"]

    settings = params["evaluate"]
    comparisons = []
    for name in controls:
        rng = np.random.default_rng(settings["seed"])
        compared = paired_bootstrap(labels, logits["searched"], logits[name], rng, settings["resamples"])
        ratio = allocations["searched"]["bytes"] / allocations[name]["bytes"]
        comparisons.append({"against": name, **compared, "bytes_ratio": ratio})
    scores = _stage.read(SCORES)
    report: dict[str, Any] = {
        "dataset": encoded.get("dataset", params["dataset"]["name"]),
        "backbone": params["backbone"]["name"],
        "method": scores["method"],
        "seeds": params["retrain"]["seeds"],
        "test_rows": len(labels),
        "allocations": allocations,
        "comparisons": comparisons,
        "undecided": scores["undecided"],
        "cardinality": {field.name: field.cardinality for field in schema.fields},
    }
    if "ranks" in facts:
        report |= _planted(allocations["searched"]["dims"], facts, labels, ENCODED / "test/oracle.npy")
    with _stage.whole("artifacts/report.json") as file:
        file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    table = _table(report)
    with _stage.whole("artifacts/report.md") as file:
        file.write_text(table + "\n")
    metrics = {}
    for name, e in allocations.items():
        metrics[name] = {"auc": e["auc"]["mean"], "logloss": e["logloss"]["mean"], "bytes": e["bytes"]}
        if e["served"]:
            int8 = e["served"]["int8"]
            metrics[name] |= {"int8_auc": int8["auc"]["mean"], "int8_bytes": int8["bytes"]}
    with _stage.whole("artifacts/metrics.json") as file:
        file.write_text(json.dumps(metrics, indent=1) + "\n")
    with _stage.whole("artifacts/curves.csv") as file:
        pd.DataFrame(_curves(scores, report)).round(6).to_csv(file, index=False)
    with _stage.whole("artifacts/allocations.csv") as file:
        pd.DataFrame(_points(report)).round(6).to_csv(file, index=False)
    with _stage.whole("artifacts/figures") as folder:
        folder.mkdir()
        trajectory = pd.read_parquet("artifacts/trajectory.parquet")
        if len(trajectory):
            figures.save(figures.trajectories(trajectory), folder / "trajectories.png")
        figures.save(figures.auc_against_bytes(report), folder / "auc_against_bytes.png")
        ranks = {row["feature"]: row["rank"] for row in report.get("planted", [])} or None
        drawn = figures.dim_against_cardinality(schema, allocations["searched"]["dims"], ranks)
        figures.save(drawn, folder / "dim_against_cardinality.png")
    records = sorted([*MODELS.rglob("history.json"), *MODELS.rglob("allocation.json")])
    with _stage.tracker("evaluate", _stage.fingerprint("evaluate", [ENCODED / "schema.json", *records])) as tracker:
        for name, entry in allocations.items():
            for i, seed in enumerate(params["retrain"]["seeds"]):
                tracked = tracker.run(f"{name}/seed-{seed}", seed=seed, params=params, tags={"allocation": name})
                figure = {f"test/{key}": entry[key]["values"][i] for key in ("auc", "logloss", "calibration_error")}
                figure["bytes"] = _size(entry, i)
                if entry["served"]:
                    int8 = entry["served"]["int8"]
                    figure |= {"test/int8_auc": int8["auc"]["values"][i], "int8_bytes": _size(int8, i)}
                tracked.metrics(0, figure)
                tracked.end()
        final = {f"{name}/{key}": value for name, values in metrics.items() for key, value in values.items()}
        drawn_files = [str(path) for path in sorted(Path("artifacts/figures").glob("*.png"))]
        kept = ["artifacts/report.json", "artifacts/report.md", "artifacts/allocation.json", *drawn_files]
        tracker.parent(metrics=final, artifacts=kept)
    print(table)
    print(f"evaluate: {len(labels):,} test rows, {time.monotonic() - started:.1f} s")


def _evaluated(
    name: str, params: dict[str, Any], schema: Schema, test: Split, folder: Path
) -> tuple[dict[str, Any], np.ndarray]:
    """What the report says of an allocation, but for its speed, and the trained models' logits (seeds, n).

    The first seed's model is written to ``folder`` as it is served, once in each form; ``served`` is None where there
    is none.
    """
    import numpy as np

    from pipeline.embeddings.cost import cost, training_bytes
    from pipeline.metrics.auc import auc
    from pipeline.metrics.probability import calibration_error, logloss
    from pipeline.models.model import predict

    labels = test.all_labels()
    cells: list[dict[str, Any]] = []
    served_cells: dict[str, list[dict[str, Any]]] = {}
    logits: list[np.ndarray] = []
    for seed in params["retrain"]["seeds"]:
        model, allocation = _model.load(MODELS / name / f"seed-{seed}", schema, params)
        logits.append(predict(model, test))
        measured = cost(model.embedding.packed())
        build = plug("methods", allocation.method).build
        cells.append(
            {
                "auc": auc(labels, logits[-1]),
                "logloss": logloss(labels, logits[-1]),
                "calibration_error": calibration_error(labels, logits[-1]),
                "table_params": measured.table_params,
                "params": sum(p.numel() for p in model.parameters()),
                "bytes": measured.bytes,
                "training_bytes": training_bytes(model.embedding),
                "bytes_per_field": _of_fields(build, schema, model.embedding.dim, allocation),
                "dims": allocation.dims,
            }
        )
        for form, served in (_serving.forms(model) or {}).items():
            found = predict(served, test)
            served_cells.setdefault(form, []).append(
                {
                    "auc": auc(labels, found),
                    "logloss": logloss(labels, found),
                    "auc_loss": cells[-1]["auc"] - auc(labels, found),
                    "largest_logit_difference": float(np.abs(found - logits[-1]).max()),
                    "bytes": cost(served.packed()).bytes,
                    "dims": allocation.dims,
                }
            )
            if len(cells) == 1:
                served.save(folder / f"{name}.{form}")
    sizes = ("table_params", "params", "bytes", "training_bytes")
    entry = _over_seeds(cells, ("auc", "logloss", "calibration_error"), sizes)
    one = all(cell["dims"] == cells[0]["dims"] for cell in cells)
    for key in ("dims", "bytes_per_field"):
        entry[key] = cells[0][key] if one else [cell[key] for cell in cells]
    entry["served"] = None
    if served_cells:
        entry["served"] = {
            form: _over_seeds(of_form, ("auc", "logloss"), ("bytes",))
            | {
                "auc_loss": float(np.mean([cell["auc_loss"] for cell in of_form])),
                "largest_logit_difference": max(cell["largest_logit_difference"] for cell in of_form),
            }
            for form, of_form in served_cells.items()
        }
    return entry, np.stack(logits)


def _of_fields(build: Build, schema: Schema, dim: int, allocation: Allocation) -> dict[str, int] | None:
    """Bytes of each field; None where fields share what is stored."""
    from pipeline.embeddings.cost import bytes_per_field

    plain = not allocation.settings and not allocation.arrays
    return bytes_per_field(build, schema, allocation.dims, dim) if plain else None


def _over_seeds(cells: list[dict[str, Any]], figures: Sequence[str], sizes: Sequence[str]) -> dict[str, Any]:
    """Intervals of figures, and sizes, whose mean and values are given where the seeds' dimensions differ."""
    from pipeline.metrics.bootstrap import interval

    entry: dict[str, Any] = {key: interval([cell[key] for cell in cells]) for key in figures}
    one = all(cell["dims"] == cells[0]["dims"] for cell in cells)
    for key in sizes:
        values = [cell[key] for cell in cells]
        entry[key] = values[0] if one else round(sum(values) / len(values))
        if not one:
            entry[f"{key}_values"] = values
    return entry


def _curves(scores: dict[str, Any], report: dict[str, Any]) -> list[dict[str, Any]]:
    """AUC on ``val`` after every epoch, of the search's supernet and of every retrained model."""
    histories = {("supernet", scores["seed"]): scores["validation"]}
    for name in report["allocations"]:
        for seed in report["seeds"]:
            histories[name, seed] = json.loads((MODELS / name / f"seed-{seed}/history.json").read_text())
    return [
        {"allocation": name, "seed": seed, "step": entry["step"], "auc": entry["auc"]}
        for (name, seed), history in histories.items()
        for entry in history
    ]


def _points(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Bytes and test AUC of every allocation and seed."""
    return [
        {"allocation": name, "seed": seed, "bytes": _size(entry, i), "auc": entry["auc"]["values"][i]}
        for name, entry in report["allocations"].items()
        for i, seed in enumerate(report["seeds"])
    ]


def _size(entry: dict[str, Any], i: int) -> int:
    """Bytes of an allocation for the i-th seed; random ones differ."""
    size: int = entry["bytes_values"][i] if "bytes_values" in entry else entry["bytes"]
    return size


def _planted(dims: dict[str, int], facts: dict[str, Any], labels: Any, oracle: Path) -> dict[str, Any]:
    """What is known of planted data: dimension against rank, and the AUC of the true probabilities.

    A field and its copy are one: which of the two gets the dimensions is arbitrary, and the larger one counts.
    """
    import numpy as np
    from scipy.stats import spearmanr

    from pipeline.metrics.auc import auc

    ranks: dict[str, int] = facts["ranks"]
    chosen = {name: dims[name] for name in ranks}
    for copy, original in facts["copies"].items():
        chosen[original] = max(chosen[original], dims[copy])
    correlation = None  # undefined where all dims are alike
    if len(set(chosen.values())) > 1:
        correlation = float(spearmanr(list(ranks.values()), list(chosen.values())).statistic)
    return {
        "rank_correlation": correlation,
        "best_possible_auc": auc(labels, np.load(oracle)),
        "planted": [{"feature": name, "rank": rank, "dim": chosen[name]} for name, rank in ranks.items()],
    }


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['dataset']}, {report['backbone']}, {report['method']}, seeds {report['seeds']}",
        "",
        "| allocation | AUC | logloss | bytes | of full | ms, 1 row | ms, 2,000 rows |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, e in report["allocations"].items():
        times = _times(e["served"] and e["served"]["float32"])
        lines.append(
            f"| {name} | {_spread(e['auc'])} | {_spread(e['logloss'])} | {e['bytes']:,} | {e['ratio']:.1%} | {times} |"
        )
    lines += [
        "",
        "| in int8 | bytes | of full | AUC lost | ms, 1 row | ms, 2,000 rows |",
        "|---|---|---|---|---|---|",
    ]
    for name, e in report["allocations"].items():
        int8 = e["served"] and e["served"]["int8"]
        sizes = f"{int8['bytes']:,} | {int8['ratio']:.1%} | {int8['auc_loss']:z.4f}" if int8 else "– | – | –"
        lines.append(f"| {name} | {sizes} | {_times(int8)} |")
    lines.append("")
    for c in report["comparisons"]:
        low, high = c["interval"]
        lines.append(
            f"- searched minus {c['against']}: AUC {c['auc_difference']:+.4f} (95 %: {low:+.4f} to {high:+.4f}) "
            f"at {c['bytes_ratio']:.2f} x its bytes"
        )
    searched = report["allocations"]["searched"]["dims"]
    same = [name for name, e in report["allocations"].items() if name != "searched" and _has(e["dims"], searched)]
    if same:
        lines.append(f"- warning: {', '.join(same)} has the searched dimensions themselves, so it is no comparison")
    if report["undecided"]:
        lines.append(f"- warning: the search did not decide on {', '.join(report['undecided'])}")
    if "best_possible_auc" in report:
        correlation = report["rank_correlation"]
        shown = "undefined" if correlation is None else f"{correlation:.2f}"
        lines.append(f"- best possible AUC {report['best_possible_auc']:.4f}; dimension against planted rank: {shown}")
    return "\n".join(lines)


def _has(dims: dict[str, int] | list[dict[str, int]], searched: dict[str, int]) -> bool:
    """Whether a control's dimensions, or those of one of its seeds, are the searched ones."""
    return searched in dims if isinstance(dims, list) else dims == searched


def _times(served: dict[str, Any] | None) -> str:
    """Cells of the median milliseconds for each batch size; dashes for a model without an inference form."""
    return " | ".join(f"{served['latency_ms'][str(b)]['median']:.2f}" if served else "–" for b in _serving.BATCHES)


def _spread(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.4f}" + ("" if figure["sd"] is None else f" ± {figure['sd']:.4f}")


if __name__ == "__main__":
    _stage.main(run)
