import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.closure import ROOT, closure, imports

STAGES = {
    stage: record
    for place in ("dvc.yaml", "sweep/dvc.yaml", "stream/dvc.yaml")
    for stage, record in yaml.safe_load((ROOT / place).read_text())["stages"].items()
}
FLOORS = [
    {"schema", "metrics", "plug", "tracking", "files", "source", "factored", "arrays"},
    {
        "allocation",
        "data",
        "embeddings",
        "layers",
        "mixtures",
        "quantised",
        "shared_memory",
        "slices",
        "ratings",
        "download",
        "optim",
        "bilevel",
        "report",
        "figures",
        "saliency",
    },
    {"budget", "encode", "evidence", "sparse"},
    {"choice", "codes", "signatures", "supernet"},
    {"blocks"},
    {"backbones", "methods", "datasets"},
    {"model", "serving"},
    {"lit"},
    {"stream"},
]


def floor(path: str) -> int:
    room = Path(path).parts[1].removesuffix(".py")
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def project_files() -> list[str]:
    return [str(p.relative_to(ROOT)) for p in sorted((ROOT / "pipeline").rglob("*.py")) if p.stat().st_size]


@pytest.mark.parametrize("path", project_files())
def test_a_file_imports_from_no_higher_floor_and_no_sibling(path: str) -> None:
    for other in imports(path):
        if other.endswith("__init__.py"):
            continue
        assert floor(other) <= floor(path), f"{path} imports {other}"
        in_folder = len(Path(path).parts) > 2 and "tracking" not in path  # the other folders hold plugs
        assert not (in_folder and Path(other).parent == Path(path).parent), f"{path} imports its sibling {other}"


@pytest.mark.parametrize("path", project_files())
def test_third_parties_stay_in_their_rooms(path: str) -> None:
    used = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            used |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            used.add(node.module.split(".")[0])
    room = Path(path).parts[1].removesuffix(".py")
    assert "mlflow" not in used or path == "pipeline/tracking/store.py"
    assert "pytorch_lightning" not in used or room == "lit"
    assert not used & {"optuna", "dvc"}
    assert not used & {"pandas", "pyarrow"} or room in {"datasets", "encode", "source", "files", "ratings"}


def test_only_the_sweep_knows_optuna() -> None:
    files = sorted((ROOT / "stages").glob("*.py"))
    knowing = [file.name for file in files if re.search(r"(?m)^\s*(import|from) optuna", file.read_text())]
    assert knowing == ["sweep.py"]


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_the_import_closure(stage: str) -> None:
    declared = {path for path in STAGES[stage]["deps"] if path.startswith(("pipeline", "stages"))}
    needed = closure(f"stages/{stage}.py")
    plugged: set[str] = set()
    for folder, key in (("methods", "method"), ("backbones", "backbone")):
        pattern = f"pipeline/{folder}/${{{key}.name}}.py"
        if pattern in declared:
            plugged.add(pattern)
            for file in (ROOT / f"pipeline/{folder}").glob("*.py"):
                needed |= closure(f"pipeline/{folder}/{file.name}") - {f"pipeline/{folder}/{file.name}"}
    if "pipeline/datasets" in declared:
        plugged.add("pipeline/datasets")
        for file in (ROOT / "pipeline/datasets").glob("*.py"):
            needed |= {path for path in closure(f"pipeline/datasets/{file.name}") if "/datasets/" not in path}
    assert not any("tracking" in path for path in needed | declared)  # a renamed metric must not cost a search
    extra = {
        path for path in declared - needed - plugged if not re.match(r"pipeline/methods/(full|uniform|random)", path)
    }
    assert not needed - declared and not extra


@pytest.mark.parametrize("stage", STAGES)
def test_plugs_that_a_stage_asks_for_are_deps(stage: str) -> None:
    source = (ROOT / f"stages/{stage}.py").read_text()
    deps = STAGES[stage]["deps"]
    if 'plug("datasets"' in source:
        assert "pipeline/datasets" in deps
    if 'plug("backbones"' in source:
        assert "pipeline/backbones/${backbone.name}.py" in deps
    if 'plug("methods"' in source:
        assert "pipeline/methods/${method.name}.py" in deps


def test_params_hold_no_number_that_yaml_reads_as_a_string() -> None:
    assert not re.findall(r"(?m)[\s\[:]\d+e-?\d+", (ROOT / "params.yaml").read_text())


@pytest.mark.parametrize("stage", ["ingest", "search", "sweep"])
def test_a_stage_that_is_asked_for_help_says_what_it_is_and_runs_nothing(stage: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words, status in (["--help"], 0), (["now"], 1):
        command = [sys.executable, "-m", f"stages.{stage}", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status and done.stdout.startswith(("Stage ", "Beside the main job"))
        refused = f"error: it takes no arguments, however {words}; its parameters: params.yaml"
        assert done.stderr.strip() == ("" if status == 0 else refused)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["ingest", "encode"])
def test_stages_without_torch_do_not_import_it(stage: str) -> None:
    code = f"import sys, stages.{stage}; sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
