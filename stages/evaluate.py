"""Stage 6: evaluate every allocation on ``test``, which no earlier stage reads, and write the report.

Writes ``artifacts/report.json``, ``artifacts/report.md``, ``artifacts/report.html``, ``artifacts/metrics.json``,
``artifacts/figures/``, and for DVC's plots ``artifacts/curves.csv`` and ``artifacts/allocations.csv``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pipeline.data.encoded import Encoded
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.found import Found
from pipeline.experiment.saved import HISTORY
from pipeline.reporting import figures, report, report_page, style
from pipeline.reporting.evaluate import evaluate
from pipeline.tracking.identity import configuration_key
from pipeline.tracking.identity import origin as identity_of
from pipeline.tracking.stage import stage_tracker
from pipeline.tracking.tracker import Tracker
from pipeline.workflow import process
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import broken, read_json, regular, whole, write_json, write_text
from pipeline.workflow.params import Params
from pipeline.workflow.places import ALLOCATION, ENCODED, FIGURES, METRICS, MODELS, REPORT, SCORES, TRAJECTORY, root
from pipeline.workflow.plug import file_of


def run() -> None:
    started = time.monotonic()
    params = Params.of_stage("evaluate")
    experiment = Experiment(params, Encoded.load(ENCODED))
    found = Found.load(SCORES, experiment.schema)
    trajectory = _trajectory()
    results = evaluate(experiment, MODELS, found)
    curves = _curves(found, results)
    write_json(REPORT, results)
    write_text(REPORT.with_suffix(".md"), report.markdown(results) + "\n")
    write_json(METRICS, report.metrics(results))
    with whole(REPORT.with_name("curves.csv")) as file:
        pd.DataFrame(curves).round(6).to_csv(file, index=False)
    with whole(REPORT.with_name("allocations.csv")) as file:
        pd.DataFrame(report.points(results)).round(6).to_csv(file, index=False)
    drawn = _draw(experiment, results, trajectory)
    write_text(REPORT.with_suffix(".md"), report.markdown(results, drawn) + "\n")
    records = sorted([*MODELS.rglob(HISTORY), *MODELS.rglob(ALLOCATION.name)])
    code = ["stages/evaluate.py", file_of("tasks", params.task.name), file_of("backbones", params.backbone.name)]
    code += [file_of("methods", name) for name in sorted({results["method"], *results["allocations"]} - {"searched"})]
    key = content_key(code, params.to_dict(), inputs=[ENCODED / "schema.json", *records])
    origin = _origin(key, experiment.data.raw_sha256)
    write_text(REPORT.with_suffix(".html"), report_page.html(results, FIGURES, origin))
    with stage_tracker("evaluate", key, experiment.data.raw_sha256, wait=True) as tracker:
        _record(tracker, params, results)
    print(report.markdown(results))
    print(f"evaluate: {results['test_rows']:,} test rows, {time.monotonic() - started:.1f} s")


def _curves(found: Found, results: dict[str, Any]) -> list[dict[str, Any]]:
    """The objective on ``val`` after every epoch, of the supernet and of every retrained model."""
    histories = {("supernet", found.seed): found.validation}
    for name in results["allocations"]:
        for seed in results["seeds"]:
            file = MODELS / name / f"seed-{seed}" / HISTORY
            histories[name, seed] = history = read_json(file)
            wanted = {"step", results["objective"]}
            epochs = history if isinstance(history, list) else []
            if not epochs or not all(isinstance(epoch, dict) and wanted <= {*epoch} for epoch in epochs):
                raise broken(file, f"is not a list of epochs with {' and '.join(sorted(wanted))}")
    return [
        {"allocation": name, "seed": seed, "step": entry["step"], "objective": entry[results["objective"]]}
        for (name, seed), history in histories.items()
        for entry in history
    ]


def _trajectory() -> pd.DataFrame:
    with regular(TRAJECTORY).open("rb") as file:  # pandas' own error does not name a missing file
        try:
            return pd.read_parquet(file)
        except (ValueError, OSError) as error:
            raise broken(TRAJECTORY, f"is not a Parquet file ({error})") from error


def _draw(experiment: Experiment, results: dict[str, Any], trajectory: pd.DataFrame) -> list[str]:
    """Write the figures; the names of those that could be drawn, in the order of `report.FIGURES`."""
    ranks = {row["feature"]: row["rank"] for row in results.get("planted", [])}
    dims = results["allocations"]["searched"]["dims"]
    draw: dict[str, Callable[[], Figure]] = {
        "objective_against_bytes": lambda: figures.objective_against_bytes(results),
        "trajectories": lambda: figures.trajectories(trajectory, report.by_bytes(results)),
        "dim_against_cardinality": lambda: figures.dim_against_cardinality(experiment.schema, dims, ranks),
        "deserved_dimensions": lambda: figures.deserved_dimensions(results),
    }
    nothing = {
        "trajectories": not len(trajectory),
        "deserved_dimensions": not results.get("curve", {}).get("deserved"),
    }
    with whole(FIGURES) as folder:
        folder.mkdir()
        shown = [name for name in report.FIGURES if not nothing.get(name)]
        return [name for name in shown if style.attempt(draw[name], folder / f"{name}.png")]


def _origin(key: str, raw_sha256: str) -> dict[str, str]:
    """What identifies these results, by its name."""
    origin = {
        "content key of evaluate": key,
        "configuration (pipeline.configuration in MLflow)": configuration_key(Params.load().configuration()),
        "SHA-256 of the raw table": raw_sha256,
    }
    git = identity_of(root())
    if commit := git.get("mlflow.source.git.commit"):
        changed = ", with changes that are not committed" if git.get("git.dirty") == "true" else ""
        origin["git commit"] = commit + changed
    return origin


def _record(tracker: Tracker, params: Params, results: dict[str, Any]) -> None:
    """Record the results of every model in a run of its own, and the means and the report in the parent run."""
    for name, entry in results["allocations"].items():
        for i, seed in enumerate(results["seeds"]):
            tracked = tracker.run(f"{name}/seed-{seed}", seed=seed, params=params.to_dict(), tags={"allocation": name})
            values = {f"test/{metric}": spread["values"][i] for metric, spread in entry["metrics"].items()}
            values["bytes"] = report.size_of(entry, i)
            if "int8" in entry["served"]:
                int8 = entry["served"]["int8"]
                values[f"test/int8_{results['objective']}"] = report.of_seed(results, int8, i)
                values["int8_bytes"] = report.size_of(int8, i)
            tracked.metrics(0, values)
            tracked.end()
    means = {
        f"{name}/{metric}": round(value, 6)
        for name, metrics in report.metrics(results).items()
        for metric, value in metrics.items()
        if not isinstance(value, str)
    }
    reports = [REPORT.with_suffix(kind) for kind in (".json", ".md", ".html")]
    files = [*reports, ALLOCATION, *sorted(FIGURES.glob("*.png"))]
    text = REPORT.with_suffix(".md").read_text(encoding="utf-8")
    verdict = text.partition("\n")[0].strip("*")
    tracker.parent(metrics=means, tags={"verdict": verdict}, artifacts=files, description=text)
    if (FIGURES / "trajectories.png").exists():
        tracker.attach("search", FIGURES / "trajectories.png")


if __name__ == "__main__":
    process.main(run)
