"""The next batch is copied while a step runs, and no batch is lost, repeated or changed.

Streams and pinned memory are stand-ins that note what is asked of them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.data.batches import Batch, Batches
from pipeline.data.drawn import DrawnBatches
from pipeline.data.encoded import Encoded
from pipeline.training.ahead import Ahead
from pipeline.training.loop import fit
from pipeline.training.weights import LitWeights
from tests.interactions import write_interactions
from tests.training import cases
from tests.training.clicks import CTR, Fatal, Killed, clicks

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="streams are real; see tests/test_gpu.py"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
DEVICE = torch.device("cpu")


class Machine:
    """What stands for a GPU: the names of the streams, and all that happened, in order."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.copied = threading.Semaphore(0)  # ends of copies
        self.inside = threading.local()
        self.number = 0

    def note(self, what: str) -> None:
        self.happened.append(f"{what} in {getattr(self.inside, 'stream', 'no stream')}")


class Stream:
    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    def record_event(self) -> str:
        event = f"copy {self.machine.number}"
        self.machine.number += 1
        self.machine.note(f"end of {event}")
        self.machine.copied.release()
        return event

    def wait_event(self, event: str) -> None:
        self.machine.happened.append(f"{self.name} waits for {event}")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    steps, to = Stream(machine, "the steps"), Tensor.to

    @contextlib.contextmanager
    def inside(stream: Stream) -> Iterator[None]:
        machine.inside.stream = stream.name
        yield
        del machine.inside.stream

    def pin_memory(tensor: Tensor) -> Tensor:
        machine.note("pinned")
        return tensor.clone()

    def copy(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("non_blocking"):
            machine.note("copied")
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(machine, "its own"))
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: steps)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", copy)
    monkeypatch.setattr(
        Tensor, "record_stream", lambda tensor, stream: machine.happened.append(f"kept for {stream.name}")
    )
    return machine


class Read(Batches):
    """Batches that note when they are read, and can end with an error."""

    machine: Machine
    broken: int | None = None

    def take(self) -> Batch:
        self.machine.happened.append(f"read {self.position}")
        if self.position == self.broken:
            raise OSError("the disk is gone")
        return super().take()


def read(machine: Machine) -> Read:
    batches = Read(clicks(500, 1), 50, seed=0)
    batches.machine = machine
    return batches


def assert_same(one: Batch, other: Batch) -> None:
    for ours, theirs in zip(one.tensors(), other.tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_next_batch_is_copied_while_a_step_runs_and_the_step_waits_for_its_own_alone(machine: Machine) -> None:
    ahead = Ahead(read(machine), DEVICE)
    for number in range(3):
        ahead.take()
        for _ in range(1 if number else 2):  # the first batch, and the one ahead
            assert machine.copied.acquire(timeout=30)
        machine.happened.append(f"step {number}")
    copies = [["pinned in its own", "copied in its own"] * 2 + [f"end of copy {n} in its own"] for n in range(4)]
    own = [what for what in machine.happened if not what.startswith(("the steps", "kept", "step"))]
    assert own == [what for number in range(4) for what in (f"read {number}", *copies[number])]
    of_steps = [what for what in machine.happened if what.startswith(("the steps", "kept", "step"))]
    each = [[f"the steps waits for copy {n}", *["kept for the steps"] * 2, f"step {n}"] for n in range(3)]
    assert of_steps == [what for one in each for what in one]
    for number in range(3):
        place = machine.happened.index(f"step {number}")
        assert machine.happened.index(f"end of copy {number + 1} in its own") < place
        assert f"read {number + 2}" not in machine.happened[:place]


@pytest.mark.parametrize("drawn", [False, True])
def test_the_batches_and_their_places_are_those_of_batches(machine: Machine, tmp_path: Path, drawn: bool) -> None:
    if drawn:
        split = Encoded.load(write_interactions(tmp_path)).split("train")
        plain, ahead = (DrawnBatches(split, 40, seed=1, shared=7) for _ in range(2))
    else:
        plain, ahead = (Batches(clicks(500, 1), 50, seed=1) for _ in range(2))
    fed = Ahead(ahead, DEVICE)
    assert len(fed) == len(plain)
    for _ in range(len(plain) + 2):
        assert_same(fed.take(), plain.take())
        assert fed.state_dict() == plain.state_dict()
    for _ in range(2):  # the rest of an epoch, and a whole one
        for ours, theirs in zip(fed, plain, strict=True):
            assert_same(ours, theirs)
            assert fed.state_dict() == plain.state_dict()


@pytest.mark.parametrize("taken", [0, 1, 9, 10, 13])
def test_what_was_read_but_not_taken_is_read_again_after_a_resume(machine: Machine, taken: int) -> None:
    plain, broken = Batches(clicks(500, 1), 50, seed=1), Ahead(Batches(clicks(500, 1), 50, seed=1), DEVICE)
    for _ in range(taken):
        plain.take(), broken.take()
    again = Ahead(Batches(clicks(500, 1), 50, seed=1), DEVICE)
    again.take()  # what it has read ahead is not the place that it is given
    again.load_state_dict(broken.state_dict())
    for _ in range(12):
        assert_same(again.take(), plain.take())


def test_an_error_in_reading_comes_when_the_batch_is_due(machine: Machine) -> None:
    batches = read(machine)
    batches.broken = 2
    ahead = Ahead(batches, DEVICE)
    ahead.take(), ahead.take()
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take()


def fed(case: Any, folder: Path, seconds: float = 60, steps: int | None = None) -> LitWeights:
    """A training whose batches come ahead, those of ``arch`` too; it breaks off after some steps."""
    module = case()
    if hasattr(module, "arch"):
        module._arch_fed = Ahead(module.arch, DEVICE)
    batches = Batches(clicks(335, 1), 50, seed=0)
    if steps is not None:
        batches = Fatal(clicks(335, 1), 50, seed=0)
        batches.steps = steps
    cases.trained(module, folder, Ahead(batches, DEVICE), seconds)  # type: ignore[arg-type]
    return module


@pytest.mark.parametrize("case", [cases.weights, cases.searching])
@pytest.mark.parametrize("steps", [5, 7, 10])
def test_a_training_is_the_same_to_the_last_bit_also_after_a_kill(
    machine: Machine, tmp_path: Path, case: Any, steps: int
) -> None:
    plain = cases.trained(case(), tmp_path / "plain")
    with pytest.raises(Killed):
        fed(case, tmp_path / "ahead", seconds=0, steps=steps)
    assert (tmp_path / "ahead/last.ckpt").exists()
    for module in (fed(case, tmp_path / "ahead"), fed(case, tmp_path / "whole")):
        ours = cases.result(module)
        assert ours["history"] == plain["history"] and len(ours["history"]) == cases.EPOCHS
        for name, value in plain["state"].items():
            assert not isinstance(value, Tensor) or torch.equal(ours["state"][name], value), name


def test_a_training_that_ends_early_has_taken_the_same_steps(machine: Machine, tmp_path: Path) -> None:
    histories = []
    for make in (lambda batches: batches, lambda batches: Ahead(batches, DEVICE)):
        model = cases.weights(precise=False).model
        module = LitWeights(model, CTR, clicks(200, 2), 30 * 6, lr=0.02, patience=2)
        fit(module, make(Batches(clicks(300, 1), 50, seed=0)), 30, None, tmp_path / "last.ckpt")
        histories.append(module.history)
    assert histories[0] == histories[1] and len(histories[0]) < 30


def test_an_error_in_reading_ends_the_training(machine: Machine, tmp_path: Path) -> None:
    batches = read(machine)
    batches.broken = 4
    module = cases.weights(precise=False)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(module, Ahead(batches, DEVICE), 1, None, tmp_path / "last.ckpt")  # type: ignore[arg-type]
    assert module.steps == 4
