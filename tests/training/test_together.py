"""The processes of a training start together and end together, whatever ends one of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.training import ranks
from tests.processes import awaited, check_ended, start

pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that nothing has started together with others, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ranks.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def added() -> float:
    """The sum of 1, 2, ... over the processes."""
    share = ranks.share()
    return float(share.sum(torch.tensor([1.0 + ranks.rank()]))) if share else 1.0


def adds() -> None:
    with ranks.together(adds, 3, "retrain.devices"):
        assert ranks.share() is not None and ranks.number() == 3
        Path(f"rank-{ranks.rank()}").write_text(f"{added()} {os.getpid()} {torch.get_num_threads()}")
        ranks.wait_for_all()


def is_killed() -> None:
    with ranks.together(is_killed, 2, "retrain.devices"):
        added()
        if not ranks.first():
            os.kill(os.getpid(), signal.SIGKILL)
        added()


def refuses() -> None:
    with ranks.together(refuses, 3, "retrain.devices"):
        added()
        if ranks.rank() == 2:
            raise ValueError("its disk is full")
        added()


def all_refuse() -> None:
    with ranks.together(all_refuse, 2, "retrain.devices"):
        added()
        raise ValueError("the loss is nan")


def does_not_notice() -> None:
    """As with NCCL, which may wait for a process that has ended."""
    ranks.GRACE_SECONDS = 0.2
    with ranks.together(does_not_notice, 2, "retrain.devices"):
        added()
        if not ranks.first():
            sys.exit("its GPU is gone")
        time.sleep(60)


def waits() -> None:
    with ranks.together(waits, 2, "retrain.devices"):
        added()
        Path(f"pid-{os.getpid()}").touch()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            added()


def test_all_run_the_same_and_join_each_other(tmp_path: Path) -> None:
    adds()
    told = [(tmp_path / f"rank-{rank}").read_text().split() for rank in range(3)]
    assert [total for total, _, _ in told] == ["6.0"] * 3
    assert len({pid for _, pid, _ in told}) == 3 and told[0][1] == str(os.getpid())
    assert {threads for _, _, threads in told} == {str(max(1, len(os.sched_getaffinity(0)) // 3))}
    assert not any(name in os.environ for name in ranks.VARIABLES) and not torch.distributed.is_initialized()
    adds()  # a second time in the same process


def test_one_process_starts_no_other() -> None:
    with ranks.together(adds, 1, "retrain.devices"):
        assert ranks.first() and ranks.number() == 1 and ranks.share() is None
    assert added() == 1.0


def test_a_kill_of_another_process_is_told_with_a_remedy() -> None:
    told = r"process 1 of the training was killed \(exit code -9\); there may be too little memory for retrain.devices"
    with pytest.raises(ValueError, match=told):
        is_killed()


def test_the_error_of_another_process_is_told_and_not_that_others_miss_it() -> None:
    with pytest.raises(ValueError, match="process 2 of the training ended with an error: its disk is full; what is f"):
        refuses()


def test_an_error_of_all_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"^the loss is nan$"):
        all_refuse()
    assert capfd.readouterr() == ("", "")


def test_a_process_that_waits_for_one_that_has_ended_ends_too(tmp_path: Path) -> None:
    running = start(does_not_notice, tmp_path, tmp_path / "printed")
    running.join(60)
    printed = (tmp_path / "printed").read_text()
    assert running.exitcode == 1 and "error: process 1 of the training ended with the error above" in printed


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left_if_the_first_one_ends(tmp_path: Path, by: signal.Signals) -> None:
    running = start(waits, tmp_path, tmp_path / "printed")
    pids = awaited(lambda: p if len(p := list(tmp_path.glob("pid-*"))) == 2 else None, running.is_alive)
    processes = [psutil.Process(int(path.name.removeprefix("pid-"))) for path in pids]
    assert running.pid is not None
    os.kill(running.pid, by)
    check_ended(processes)
