"""What the studies of this repository consist of, what a small one may say, and what names a cell's result."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.studies.grid import STUDIES, Study
from pipeline.studies.results import Results
from pipeline.workflow import code
from pipeline.workflow.overlay import merged
from tests.project import ROOT
from tests.studies.small import SMALL, written

RETRIEVAL = ["bytes", "graph", "retrieval"]
STUDY_NAMES = ["budget", "case", "components", "data", "overall", "schedule", "stability", "transfer"]
STUDY_NAMES = sorted([*STUDY_NAMES, *RETRIEVAL, "chain"])
PROFILES = [(name, profile) for name in STUDY_NAMES for profile in ("quick", "full")]
PROFILES += [("overall", "methods"), ("overall", "methods_1m")]
PROFILES += [("graph", "edges"), ("graph", "gowalla"), ("bytes", "gowalla"), ("chain", "bytes")]


def test_all_studies_exist() -> None:
    assert sorted(path.parent.name for path in STUDIES.glob("*/params.yaml")) == STUDY_NAMES
    assert STUDIES == ROOT / "studies"


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_every_cell_is_valid_and_there_are_few_enough_for_dvc(name: str, profile: str) -> None:
    study = Study(name, profile)
    cells = study.cells()
    assert 0 < len(cells) < 70 and len({cell.name for cell in cells}) == len(cells) and study.seeds
    for cell in cells:
        assert cell.runs > 0
        if name not in RETRIEVAL:
            assert cell.params.dataset.name in cell.keys["dataset"]
        tuned = 3 if "methods" in profile else 4 if name == "graph" and profile != "edges" else 0
        tuned = 4 if cell.name.endswith("_tuned_dim") else tuned
        assert len(cell.tuning) == (0 if cell.entry.arms == ("references",) else tuned)  # the same for every method
        for setting in cell.settings():
            assert setting.method.name == setting.params.method.name  # its options are valid


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_dvc_knows_what_a_cell_depends_on(name: str, profile: str) -> None:
    study, cell_name = Study(name, profile), "${key}"
    stages: dict[str, Any] = yaml.safe_load((study.folder / "dvc.yaml").read_text())["stages"]
    keys, data, cell, report = (stages[f"{kind}-{profile}"] for kind in ("keys", "data", "cell", "report"))
    own = sorted(path.name for path in study.folder.glob("*.csv"))
    assert keys["deps"] == ["../../pipeline", "../../params.yaml", "../datasets.yaml", "params.yaml", *own]
    assert keys["outs"] == [f"artifacts/keys/{profile}"]
    recipes, of_item = f"artifacts/keys/{profile}", "${item.dataset}"
    assert data["deps"] == [f"{recipes}/data/{of_item}.json", "../../data"]
    assert data["outs"] == [f"artifacts/data/{profile}/{of_item}"]
    assert cell["deps"] == [f"{recipes}/cells/{cell_name}.json", *data["outs"]]
    assert cell["outs"] == [f"artifacts/cells/{profile}/{cell_name}.json"]
    assert list(cell["matrix"]) == list(study.grid)  # so that both name a cell alike
    assert cell["matrix"] == {key: f"${{{profile}.{key}}}" for key in study.grid}
    words = " ".join(f"{key}=${{item.{key}}}" for key in study.grid)
    assert cell["cmd"] == f"python -m stages.study cell {name} --profile {profile} {words}"
    assert report["deps"] == [f"{recipes}/report.json", f"artifacts/cells/{profile}"]


# --- recipes


@pytest.fixture
def editable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the code, which names results instead of the code itself."""
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "ROOT", tmp_path)
    code.imports.cache_clear()
    yield tmp_path
    code.imports.cache_clear()


def test_the_code_that_a_cell_runs_is_part_of_its_recipe_and_no_other_code(editable: Path, tmp_path: Path) -> None:
    backbones = {name: {"params": {"backbone": {"name": name}}} for name in ("nfm", "ipnn")}
    values = {
        "quick": {"dataset": ["tiny"], "backbone": list(backbones), "method": ["autodim", "mde"], "seeds": [0]},
        "every": {"search": {"backbone": {"name": "fm"}}},
        "backbone": backbones,
        "method": {name: {"params": {"method": {"name": name}}} for name in ("autodim", "mde")},
    }
    cells = Study("overall", "quick", written(tmp_path / "place", values)).cells()
    before = {cell.name: cell.recipe() for cell in cells}

    def edited(file: str) -> set[str]:
        """The cells that have another recipe once a file is edited."""
        source = editable / "pipeline" / file
        text = source.read_text()
        source.write_text(f"{text}# another line\n")
        other = {cell.name for cell in cells if cell.recipe() != before[cell.name]}
        source.write_text(text)
        return other

    for file in ("studies/cell.py", "experiment/train.py", "tasks/ctr.py", "methods/full.py", "backbones/fm.py"):
        assert edited(file) == set(before)
    assert edited("backbones/ipnn.py") == {"tiny-ipnn-autodim", "tiny-ipnn-mde"}
    assert edited("methods/mde.py") == {"tiny-nfm-mde", "tiny-ipnn-mde"}
    for file in ("studies/tables.py", "tracking/tracker.py", "methods/pep.py", "backbones/dcn_v2.py"):
        assert edited(file) == set()


def test_a_recipe_changes_with_what_a_cell_reads_and_with_nothing_else(tmp_path: Path) -> None:
    def recipe(**changes: Any) -> str:
        folder = written(tmp_path, {**SMALL, **changes})
        return Study("overall", "quick", folder).cells()[0].recipe()

    def entry(**changes: Any) -> dict[str, Any]:
        return {"method": {"autodim": {"arms": ["searched"], **changes}, "full": {}}}

    others: list[dict[str, Any]] = [
        {"quick": {**SMALL["quick"], "seeds": [0, 2]}},
        *({"every": {"params": params}} for params in ({"dim": 4}, {"retrain": {"lr": 0.5}}, {"search": {"lr": 0.5}})),
        {"every": {"search": {"search": {"lr": 0.5}}}},
        entry(),
        *(entry(**change) for change in ({"budgets": [0.5]}, {"share": 0.5}, {"arms": []})),
        entry(tuned=True, tuning=[{}, {"retrain": {"lr": 0.5}}]),
        entry(tuned=True, tuning=[{}, {"retrain": {"lr": 0.6}}]),
    ]
    assert len({recipe(), *(recipe(**changes) for changes in others)}) == 1 + len(others)
    same: list[dict[str, Any]] = [
        {"quick": {**SMALL["quick"], "method": ["autodim"]}},
        {"every": {"seconds": 5, "slower": 2}},
        {"every": {"params": {"stream": {"windows": 7}, "derive": {"budget": 0.5}}}},
        {"every": {"tuning": [{"retrain": {"lr": 0.5}}]}},  # which no method tries
    ]
    assert {recipe(**changes) for changes in same} == {recipe()}


def test_keys_are_a_file_for_every_cell_every_data_set_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path, SMALL)
    monkeypatch.chdir(folder)
    study, names = Study("overall", "quick", folder), {"tiny-fm-autodim", "tiny-fm-full"}

    def keys() -> dict[str, str]:
        Results(study).write_keys()
        return {str(path.relative_to("artifacts/keys/quick")): path.read_text() for path in Path().rglob("*.json")}

    before = keys()
    assert set(before) == {"report.json", "data/tiny.json", *(f"cells/{name}.json" for name in names)}
    Path("claims.csv").write_text("source,claim\n")
    after = keys()
    assert {name for name in after if after[name] != before[name]} == {"report.json"}


# --- what a study may say


def test_options_do_not_outlive_the_name_that_they_belong_to() -> None:
    base = {"method": {"name": "autodim", "options": {"a": 1, "b": 2}}, "dim": 8}
    assert merged(base, {"method": {"options": {"a": 3}}})["method"] == {"name": "autodim", "options": {"a": 3, "b": 2}}
    other = merged(base, {"method": {"name": "full", "options": {"c": 1}}})
    assert other == {"method": {"name": "full", "options": {"c": 1}}, "dim": 8} and base["method"]["options"]["a"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quick": {"dataset": ["tiny"], "method": ["mde"], "seeds": [0]}}, "method: mde is in the grid, but has no"),
        ({"method": {"autodim": {"arm": ["searched"]}, "full": {}}}, r"method: autodim: there is no 'arm' \(did you"),
        ({"method": {"autodim": {"arms": ["serched"]}, "full": {}}}, r"method: autodim: arms\[0\] must be one of"),
        ({"method": {"autodim": {"params": {"dim": 0}}, "full": {}}}, "method: autodim: dim must be a whole number of"),
        (
            {"method": {"autodim": {"params": {"encode": {"seed": 1}}}, "full": {}}},
            "method: autodim: must not change encode",
        ),
        ({"quick": {"dataset": ["tiny"]}}, "studies/overall/params.yaml: there is no profile 'quick'"),
    ],
)
def test_a_slip_in_a_study_is_named_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Study("overall", "quick", written(tmp_path, {**SMALL, **changes})).cells()


def test_a_study_or_a_data_set_that_does_not_exist_is_told_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="there is no study 'overal' in studies; there are budget, bytes, case, ch"):
        Study("overal", "quick")
    with pytest.raises(ValueError, match="study budget, profile quick, has no data set 'movielens'"):
        Study("budget", "quick").dataset("movielens")
    with pytest.raises(ValueError, match="a cell of budget has the keys dataset, method, got dataset"):
        Study("budget", "quick").cell({"dataset": "synthetic"})
