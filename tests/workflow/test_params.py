"""All of params.yaml is checked at once, and a stage gets no more of it than dvc.yaml declares."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.workflow.params import Params, declared
from pipeline.workflow.plug import check_name, names, plug
from pipeline.workflow.validation import validated
from pipeline.workflow.yaml_values import read_yaml
from tests.project import ROOT

VALUES = read_yaml(ROOT / "params.yaml")


def changed(**changes: Any) -> dict[str, Any]:
    """The repository's params.yaml with ``search__lr=1`` as ``search.lr``."""
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(VALUES))
    for name, value in changes.items():
        *parents, last = name.split("__")
        target = values
        for parent in parents:
            target = target[parent]
        target[last] = value
    return values


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "section": ({"measure": {"seed": 0}}, "there is no 'measure'; valid are dataset, encode, task, dim, candidates"),
    "method": (
        {"method__name": "autodimm"},
        "method.name: there is no method 'autodimm' (did you mean 'autodim'?); the",
    ),
    "backbone": (
        {"backbone__name": "deep-fm"},
        "backbone.name: there is no backbone 'deep-fm' (did you mean 'deepfm'?)",
    ),
    "data set": (
        {"dataset__name": "movielens-1m"},
        "there is no data set 'movielens-1m' (did you mean 'movielens_1m'?)",
    ),
    "task": ({"task__name": "regression"}, "task.name: there is no task 'regression'; there are ctr"),
    "options of no method": (
        {"method__options__nope": {}},
        "method.options: there is no method 'nope'; there are alpt",
    ),
    "shares": (
        {"encode__split__train": 0.5},
        "encode.split: the shares must sum to 1, got [0.5, 0.1, 0.1, 0.1], which",
    ),
    "a share": ({"encode__split__val": 0}, "encode.split.val must be a number above 0 and below 1, got 0"),
    "no test": ({"encode__split__test": 0}, "encode.split: with by: random, test must be above 0, got 0"),
    "given test": ({"encode__split__by": "given"}, "encode.split: with by: given, test must be 0, because the data"),
    "batch": ({"search__batch_size": 2}, "search.batch_size must be a whole number of at least 3, got 2"),
    "seeds": ({"retrain__seeds": [0, 0]}, "retrain.seeds must be at least one number, and no number twice, got [0, 0]"),
    "no seeds": ({"retrain__seeds": []}, "retrain.seeds must be at least one number, and no number twice, got []"),
    "candidates": ({"candidates__small": []}, "candidates.small must be at least one number, and no number twice"),
    "budget": ({"derive__budget": 1}, "derive.budget must be a whole number of bytes above 1, or a share of the full"),
    "aim": ({"sweep__objective": "budget"}, "sweep: objective 'budget' needs a budget"),
    "no aim": ({"sweep__budget": 0.5}, "sweep: objective 'pareto' takes no budget; set it to null"),
    "name": ({"sweep__name": "a/b"}, "sweep.name must be"),
    "secret": ({"sweep__storage": "postgresql://me:secret@host/x"}, "sweep: there is no 'storage'; valid are name"),
    "stream": ({"stream__dims": [8, 2]}, "stream: dims must be ascending, got [8, 2]"),
    "architecture": (
        {"search__architecture": {"evry": 1}},
        "search.architecture: there is no 'evry' (did you mean 'ev",
    ),
}


@pytest.mark.parametrize(("changes", "said"), WRONG.values(), ids=WRONG)
def test_a_slip_is_named_with_what_is_valid_and_what_it_is(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        validated(Params, changed(**changes), "params.yaml")
    assert str(refused.value).startswith("params.yaml: ") and said in str(refused.value)


def test_a_stage_reads_what_is_declared_and_nothing_else() -> None:
    params = validated(Params, VALUES, "params.yaml").only(["method", "retrain.seeds"])
    assert params.method.name == "autodim" and params.retrain.seeds == (0, 1, 2)
    for read in (lambda: params.search, lambda: params.retrain.lr, lambda: params.dim):
        with pytest.raises(
            ValueError, match=r"this stage may not read '\w+' of \w+: dvc.yaml does not declare it; add it"
        ):
            read()
    assert params.to_dict() == {
        "method": {"name": "autodim", "options": {"autodim": VALUES["method"]["options"]["autodim"]}},
        "retrain": {"seeds": [0, 1, 2]},
    }


def test_the_parameters_of_a_run_are_those_of_the_main_job_and_of_the_method_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(changed(method__options={"autodim": {"gain": "none"}, "pep": {"init": -5.0}})))
    configuration = Params.load(file).configuration()
    assert configuration["method"] == {"name": "autodim", "options": {"autodim": {"gain": "none"}}}
    assert not {"sweep", "stream"} & set(configuration)


def test_yaml_is_read_as_dvc_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("a: 1e-05\nb: yes\nc: 0x10\n")
    assert read_yaml(file) == {"a": 1e-05, "b": "yes", "c": 16}
    for text in ("a: [1\n", "a: 1\na: 2\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"some.yaml is not YAML: .*; correct it"):
            read_yaml(file)


def test_every_declared_parameter_is_there() -> None:
    params = validated(Params, VALUES, "params.yaml")
    for stage in read_yaml(ROOT / "dvc.yaml")["stages"]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            params.only(declared(stage))
    assert not [line for line in (ROOT / "params.yaml").read_text().splitlines() if "e-0" in line]


def test_plugs_are_the_files_of_their_folder() -> None:
    assert {"autodim", "full"} <= set(names("methods")) and "__init__" not in names("methods")
    assert plug("datasets", "movielens_1m").__name__ == "pipeline.datasets.movielens_1m"
    for name in ("__init__", "../data/schema", "", "nope"):
        with pytest.raises(ValueError, match=r"there is no data set .*; there are avazu, criteo"):
            check_name("datasets", name, "here")
    assert all(callable(plug("datasets", name).read) for name in names("datasets"))
