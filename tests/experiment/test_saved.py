"""A retrained model on disk is the model, whole or not at all, and fits the experiment or is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.allocation.allocation import Allocation
from pipeline.experiment.method import build
from pipeline.experiment.saved import ABOUT, ALLOCATION, HISTORY, WEIGHTS, load, read, save
from pipeline.models.model import assemble
from tests.contracts import randomised
from tests.experiment.small import experiment
from tests.training.clicks import clicks

PART = Allocation("autodim", {"user": 2, "item": 4, "tags": 0})
RECORD = [{"step": 5.0, "auc": 0.75}]


@pytest.fixture
def folder(encoded: Path, tmp_path: Path) -> Path:
    """Of a model that is saved."""
    here = experiment(encoded)
    model = randomised(assemble(here.schema, 4, PART, build, here.backbone, here.backbone_options))
    save(tmp_path / "seed-0", here, model, PART, RECORD)
    return tmp_path / "seed-0"


def test_a_saved_model_is_loaded_as_it_was(encoded: Path, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([ABOUT, WEIGHTS, ALLOCATION, HISTORY])
    assert json.loads((folder / HISTORY).read_text()) == RECORD
    here = experiment(encoded)
    model, allocation = load(folder, here)
    assert allocation == PART
    written = randomised(assemble(here.schema, 4, PART, build, here.backbone, here.backbone_options))
    assert model.state_dict().keys() == written.state_dict().keys()
    assert all(torch.equal(value, written.state_dict()[name]) for name, value in model.state_dict().items())
    ids = torch.from_numpy(clicks(20, 0).ids[0])
    assert torch.equal(model.eval()(ids), written.eval()(ids))


def test_a_save_that_fails_leaves_what_was_there(encoded: Path, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    here = experiment(encoded)
    model, _ = load(folder, here)
    with pytest.raises(ValueError, match="Out of range float"):
        save(folder, here, randomised(model, seed=1), PART, [{"auc": float("nan")}])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["seed-0"]


def test_weights_of_another_model_or_of_none_are_refused_by_their_file(encoded: Path, folder: Path) -> None:
    here, weights = experiment(encoded), folder / WEIGHTS
    whole, state = weights.read_bytes(), load_file(weights)
    name = next(name for name in state if name.endswith("tables.4.weight"))
    why = rf"{WEIGHTS}: does not hold the model that model.json and allocation.json describe; delete it"
    for wrong in ({**state, name: state[name][1:]}, {**state, "more": torch.zeros(1)}, {name: state[name]}):
        save_file(wrong, weights)
        with pytest.raises(ValueError, match=why):
            load(folder, here)
    for cut in (whole[:-1], whole[:100], b"", b"no weights"):
        weights.write_bytes(cut)
        with pytest.raises(ValueError, match=why):
            load(folder, here)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        load(folder, here)


def test_a_bit_of_the_weights_that_has_flipped_is_noticed(encoded: Path, folder: Path) -> None:
    weights = folder / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1  # a finite number stays finite
    weights.write_bytes(content)
    for read_model in (lambda: load(folder, experiment(encoded)), lambda: read(folder)):
        with pytest.raises(ValueError, match=rf"{WEIGHTS}: is not as it was written: its checksum is not that of mod"):
            read_model()
    about = json.loads((folder / ABOUT).read_text())
    del about["weights"]
    (folder / ABOUT).write_text(json.dumps(about))
    assert read(folder)[1] == PART  # of a version that wrote no checksum


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (ABOUT, {"dim": "8"}, "dim must be a whole number from 1 to 4,096, got '8'"),
        (ABOUT, {"dim": 10**12}, "dim must be a whole number from 1 to 4,096, got 1000000000000"),
        (ABOUT, {"backbone": {"name": "../fm", "options": {}}}, "backbone: there is no backbone '../fm'"),
        (ABOUT, {"task": {"name": "ctr", "options": None}}, "model.json: task.options must be a mapping of names"),
        (ABOUT, {"fields": [{"name": 0, "cardinality": 3}]}, "the name of a field must be a text"),
        (ALLOCATION, {"method": "os"}, "method: there is no method 'os'"),
    ],
)
def test_what_a_model_cannot_be_is_refused_by_its_file(
    encoded: Path, folder: Path, file: str, changes: dict[str, object], said: str
) -> None:
    record = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(record | changes))
    with pytest.raises(ValueError, match=rf"{file}: .*{re.escape(said)}"):
        read(folder)


def test_a_model_of_other_settings_or_other_fields_is_refused(encoded: Path, folder: Path) -> None:
    for change, part in (({"backbone": {"name": "deepfm"}}, "backbone"), ({"dim": 8}, "dim")):
        with pytest.raises(ValueError, match=f"{ABOUT}: is of a model with another {part}"):
            load(folder, experiment(encoded, **change))
    assert read(folder)[1] == PART  # which asks no experiment
    record = json.loads((folder / ALLOCATION).read_text())
    record["dims"]["zip"] = record["dims"].pop("tags")
    (folder / ALLOCATION).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"{ALLOCATION}: .*'(tags|zip)'"):
        load(folder, experiment(encoded))
    (folder / ALLOCATION).unlink()
    with pytest.raises(FileNotFoundError, match=ALLOCATION):
        load(folder, experiment(encoded))
