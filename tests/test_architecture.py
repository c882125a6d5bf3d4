"""The plan of the house: floors, sizes, and that dvc.yaml depends on the code that a stage runs."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from importlinter.cli import lint_imports

from pipeline.workflow.code import closure
from pipeline.workflow.plug import FOLDERS, names
from tests.project import ROOT

STAGES = {
    stage: record
    for place in ("dvc.yaml", "sweep/dvc.yaml", "stream/dvc.yaml", "chain/dvc.yaml")
    for stage, record in yaml.safe_load((ROOT / place).read_text())["stages"].items()
}
KEYS = {
    "datasets": "dataset",
    "tasks": "task",
    "methods": "method",
    "backbones": "backbone",
}  # section that names a plug
LINES, LONGEST = 400, 60  # of a file in pipeline/, of a function


def test_a_room_imports_from_the_floors_below_and_third_parties_stay_in_their_rooms(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The contracts are in pyproject.toml."""
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_no_file_and_no_function_is_long() -> None:
    long = []
    for path in sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")]):
        text = path.read_text()
        if len(text.splitlines()) > LINES:
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST:
                long.append(f"{path}: {node.name}")
    assert not long


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_folders_that_its_code_comes_from(stage: str) -> None:
    declared = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("pipeline", "stages"))}
    starts, plugged = [f"stages/{stage}.py"], set()
    for folder, section in KEYS.items():
        if f"pipeline/{folder}/${{{section}.name}}.py" in declared:
            starts += [f"pipeline/{folder}/{name}.py" for name in names(folder)]
        plugged |= {f"pipeline/{folder}/{name}.py" for name in names(folder)}
    files = {file for file in closure(starts) if not file.endswith("__init__.py")} - plugged
    if stage == "check":  # it asks every plug
        assert declared == {"pipeline", "stages/check.py"}
        return
    needed = {file if file.startswith("stages") else "/".join(file.split("/")[:2]) for file in files}
    assert {dep for dep in declared if "${" not in dep} - plugged == needed


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "check"])
def test_a_stage_depends_on_the_plugs_whose_parameters_it_reads(stage: str) -> None:
    declared = set(STAGES[stage]["deps"])
    read = {key.split(".")[0] for key in STAGES[stage]["params"]}
    if declared & {"artifacts/raw", "artifacts/encoded/schema.json"}:  # which hold what the data set gave
        read.discard("dataset")
    for folder, section in KEYS.items():
        assert section not in read or f"pipeline/{folder}/${{{section}.name}}.py" in declared
    if "artifacts/controls.json" in declared or "artifacts/models" in declared:
        assert {f"pipeline/methods/{name}.py" for name in ("full", "uniform", "random")} <= declared


def test_every_kind_of_plug_has_a_section_of_the_parameters() -> None:
    assert set(KEYS) == set(FOLDERS)
    assert set(KEYS.values()) <= set(yaml.safe_load((ROOT / "params.yaml").read_text()))


def test_params_hold_no_number_that_yaml_reads_as_a_string() -> None:
    assert not re.findall(r"(?m)[\s\[:]\d+e-?\d+", (ROOT / "params.yaml").read_text())


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import")
@pytest.mark.parametrize("stage", ["check", "ingest", "search", "sweep", "stream", "chain"])
def test_a_stage_that_is_asked_for_help_says_what_it_is_and_runs_nothing(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = "error: this stage takes no arguments, got now; its parameters are in params.yaml, see --help"
    for word, status, shown in ("--help", 0, ("Stage ", "Outside the main job")), ("now", refused, ""):
        monkeypatch.setattr(sys, "argv", [stage, word])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
        assert end.value.code == status
        out = capsys.readouterr().out
        assert out.startswith(shown) and bool(out) == bool(shown)
    assert not list(tmp_path.iterdir())


def test_stages_of_the_data_import_neither_torch_nor_mlflow() -> None:
    program = "import sys, stages.ingest, stages.encode; sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
