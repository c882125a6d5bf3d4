"""Models that are trained at the same time are the ones that are trained one after another."""

import re
from pathlib import Path

import pytest

from pipeline.workflow.places import work
from tests.project import Project

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:The number of training batches"
)


def models(project: Project) -> dict[str, bytes]:
    return {name: content for name, content in project.files().items() if "/models/" in name}


@pytest.mark.usefixtures("forks")
def test_two_at_a_time_give_the_same_models_and_records(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path).give(retrain__workers=2)
    before = models(project), (project.folder / "artifacts/runs/retrain.jsonl").read_text().count('"k":"ended"')
    project.run("retrain")
    after = models(project), (project.folder / "artifacts/runs/retrain.jsonl").read_text().count('"k":"ended"')
    assert len(before[0]) > 10 and after == before


@pytest.mark.usefixtures("forks")
def test_models_that_are_finished_are_not_trained_again_with_another_number_of_workers(
    finished: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = finished.copy(tmp_path).give(retrain__workers=2)
    with project.inside() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr("stages.retrain.whole", _full)
        project.run("retrain")
    with project.inside():
        assert len(list(work("ckpt", "retrain").glob("*/*/seed-*"))) == 8
    capsys.readouterr()
    project.give(retrain__workers=1).run("retrain")
    assert "seed" not in capsys.readouterr().out


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_diverges_ends_the_stage_and_leaves_no_models(
    finished: Project, tmp_path: Path, workers: int
) -> None:
    project = finished.copy(tmp_path).give(retrain__workers=workers, retrain__lr=1e30)
    before = models(project)
    message = project.error("retrain")
    told = r"\w+, seed \d: .* in epoch 1, step \d, .* lower the learning rate: retrain.lr is 1e\+30"
    assert re.search(told if workers == 1 else "ended with the error above", message)  # a worker prints its own line
    assert models(project) == before


def _full(path: Path) -> None:
    raise OSError(f"{path}: no space left")
