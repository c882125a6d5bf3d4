"""Settings per data set: params.yaml becomes the committed file with one file of params/ laid over it."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.experiment.experiment import check_params
from pipeline.workflow.params import Params, value_at
from pipeline.workflow.yaml_values import read_yaml
from stages import settings
from tests.project import ROOT, Project

NAMES = sorted(path.stem for path in (ROOT / "params").glob("*.yaml") if not path.stem.startswith("kept-"))
STUDIED = {  # settings that are those of a study: profile of studies/datasets.yaml
    "movielens_1m": "full",
    "movielens_100k": "full",
    "criteo": "full",
    "avazu": "full",
    "nycflights13": "methods",
}


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A repository whose last commit has params.yaml and the files of params/."""
    made = Project(tmp_path, link=False)
    made.give()  # as a program writes the file: without comments
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "params").mkdir()
    for name in NAMES:
        (tmp_path / f"params/{name}.yaml").write_text((ROOT / f"params/{name}.yaml").read_text())
    (tmp_path / "data/adult.csv").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "params.yaml", "params")
    git(tmp_path, "commit", "-q", "-m", "settings")
    return made


Choose = Callable[[str | None], str]


@pytest.fixture
def choose(project: Project, capsys: pytest.CaptureFixture[str]) -> Choose:
    """Lays settings over the committed ones; what is printed."""

    def chosen(name: str | None) -> str:
        with project.inside():
            settings.run(name)
        return capsys.readouterr().out

    return chosen


def text(project: Project) -> str:
    return (project.folder / "params.yaml").read_text()


def kept(project: Project) -> list[str]:
    return sorted(path.name for path in (project.folder / "params").glob("kept-*.yaml"))


def flat(values: Any, place: str = "") -> dict[str, Any]:
    """Every leaf of nested mappings, by its dotted key."""
    if not isinstance(values, dict):
        return {place[1:]: values}
    return {key: leaf for name, value in values.items() for key, leaf in flat(value, f"{place}.{name}").items()}


@pytest.mark.parametrize("name", NAMES)
def test_params_yaml_holds_the_settings_of_the_data_set_and_the_committed_ones(
    name: str, project: Project, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(name)
    values, own = flat(yaml.safe_load(text(project))), flat(read_yaml(ROOT / f"params/{name}.yaml"))
    base = flat(yaml.safe_load((ROOT / "params.yaml").read_text()))
    dropped = {"dataset.options"} if any(key.startswith("dataset.options.") for key in own) else set()
    assert values == {key: value for key, value in base.items() if key not in dropped} | own
    monkeypatch.setenv("DVC_ROOT", str(project.folder))
    check_params(Params.load(project.folder / "params.yaml"))
    assert kept(project) == []


def test_settings_that_were_committed_give_way_to_others(project: Project, choose: Choose) -> None:
    choose("adult")
    git(project.folder, "commit", "-q", "-a", "-m", "adult")
    choose("movielens_1m")
    values = yaml.safe_load(text(project))
    assert values["dataset"] == {"name": "movielens_1m", "path": "data", "options": {}}
    assert values["dim"] == 16 and values["encode"]["numeric"] == "quantiles"  # which the new settings do not say


def test_columns_of_one_table_do_not_mix_with_those_of_another(project: Project, choose: Choose) -> None:
    for name, columns in {"one": "{label: y, categorical: [a], bag: [b]}", "two": "{label: z, numeric: [c]}"}.items():
        (project.folder / f"data/{name}.csv").touch()
        dataset = f"dataset: {{name: table, path: data/{name}.csv, options: {columns}}}\n"
        (project.folder / f"params/{name}.yaml").write_text(dataset)
    choose("one")
    git(project.folder, "commit", "-q", "-a", "-m", "one")
    choose("two")
    assert yaml.safe_load(text(project))["dataset"]["options"] == {"label": "z", "numeric": ["c"]}


def test_comments_and_lines_that_do_not_change_stay_as_they_are(project: Project, choose: Choose) -> None:
    before = text(project)
    choose("movielens_1m")
    one, other = before.splitlines(), text(project).splitlines()
    assert len(one) == len(other)
    changed = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    assert len(changed) == 9
    assert all(a.partition("#")[2] == b.partition("#")[2] for a, b in changed)
    choose("synthetic")
    assert text(project) == before


@pytest.mark.parametrize("name", STUDIED)
def test_settings_that_a_study_has_tried_are_those_of_the_study(name: str) -> None:
    studied = read_yaml(ROOT / "studies/datasets.yaml")[STUDIED[name]][name]["params"]
    assert flat(read_yaml(ROOT / f"params/{name}.yaml")) == flat(studied) | {"dataset.path": "data"}


def test_what_a_run_left_in_params_yaml_is_kept_aside_and_changes_nothing(project: Project, choose: Choose) -> None:
    choose("movielens_100k")
    clean = text(project)
    project.give(search__epochs=99, dim=17)  # as -S does: without comments, laid out anew
    mine = text(project)
    printed = choose("movielens_100k")
    assert "copied to params/kept-1.yaml" in printed and "PARAMS=kept-1" in printed
    assert text(project) == clean
    assert (project.folder / "params/kept-1.yaml").read_text() == mine
    choose("kept-1")
    assert yaml.safe_load(text(project)) == yaml.safe_load(mine)
    assert "copied" not in choose("synthetic")  # it is in the file already
    project.give(dim=5)
    assert "params/kept-2.yaml" in choose("synthetic")
    assert kept(project) == ["kept-1.yaml", "kept-2.yaml"]


def test_settings_that_were_edited_in_their_own_file_leave_no_copy(project: Project, choose: Choose) -> None:
    own = project.folder / "params/own.yaml"
    for epochs in (2, 3):
        own.write_text(f"search: {{epochs: {epochs}}}\n")
        assert "copied" not in choose("own")
    assert not kept(project) and yaml.safe_load(text(project))["search"]["epochs"] == 3


def test_a_file_that_is_broken_or_gone_is_replaced_and_kept(project: Project, choose: Choose) -> None:
    (project.folder / "params.yaml").write_text("<<<<<<< HEAD\ndim: [8\n")
    choose("synthetic")
    (project.folder / "params.yaml").unlink()
    choose("movielens_1m")
    assert yaml.safe_load(text(project))["dim"] == 16
    assert kept(project) == ["kept-1.yaml"]


def test_without_a_name_it_says_what_differs_from_the_commit_and_changes_nothing(
    project: Project, choose: Choose
) -> None:
    assert choose(None) == ""
    project.give(dim=4, retrain__seeds=[7], derive__budget=0.5)
    before = text(project)
    assert choose(None) == (
        "settings: params.yaml differs from the commit: dim=4, derive.budget=0.5, retrain.seeds=[7]\n"
    )
    assert text(project) == before and kept(project) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "movielens",
            None,
            r"there are no settings 'movielens' \(did you mean 'movielens_1m'\?\); the files of params",
        ),
        ("../params", None, "there are no settings '../params'; the files of params are adult, avazu"),
        ("wrong", "dim: 0", "params/wrong.yaml: dim"),
        ("wrong", "search: {epoch: 3}", "params/wrong.yaml: search: there is no 'epoch'"),
        ("wrong", "method: {name: pepp}", "there is no method 'pepp'"),
        ("wrong", "method: {options: {pep: {a: 1}}}", "^params/wrong.yaml: method.options.pep: there is no 'a'"),
        ("wrong", "task: {options: {a: 1}}", "^params/wrong.yaml: task.options: there is no 'a'"),
        ("wrong", "backbone: {options: {a: 1}}", "^params/wrong.yaml: backbone.options: there is no 'a'"),
        ("wrong", "dataset: {options: {a: 1}}", "^params/wrong.yaml: dataset.options: there is no 'a'"),
        ("wrong", "dataset: {path: nowhere}", "^params/wrong.yaml: dataset.path: there is no 'nowhere'"),
        ("wrong", "search: {candidates: nope}", "^params/wrong.yaml: search.candidates: there is no set 'nope'"),
        ("wrong", "- dim", "params/wrong.yaml must map sections of params.yaml to settings"),
        ("wrong", "dim: [", "params/wrong.yaml is not YAML"),
    ],
)
def test_wrong_settings_are_refused_and_params_yaml_stays(
    name: str, content: str | None, message: str, project: Project, choose: Choose
) -> None:
    project.give(dim=4)
    before = text(project)
    if content is not None:
        (project.folder / f"params/{name}.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        choose(name)
    assert text(project) == before and kept(project) == []


def test_a_folder_without_git_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    project = Project(tmp_path, link=False)
    with project.inside():
        settings.run(None)
        with pytest.raises(ValueError, match=r"copy those of params/synthetic.yaml into params.yaml"):
            settings.run("synthetic")


def test_dvc_reads_the_parameters_that_were_chosen(project: Project, choose: Choose) -> None:
    choose("nycflights13")
    entry = read_yaml(ROOT / "dvc.yaml")["stages"]
    values = read_yaml(project.folder / "params.yaml")
    for stage in entry.values():
        assert all(value_at(values, key) is not None for key in stage["params"])
    assert value_at(values, "method.options.coded.shared_below") == 100
