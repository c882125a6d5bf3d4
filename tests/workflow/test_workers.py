"""Jobs in worker processes: what they send arrives in order, and their ends and errors are told."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.workflow.workers import Send, run_jobs

pytestmark = pytest.mark.usefixtures("forks")


def count(upto: int, send: Send) -> None:
    for number in range(upto):
        send((number, os.getpid(), str(Path.cwd())))


def meet(folder: Path, send: Send) -> None:
    """Waits until two workers are at work."""
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + 30
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    send(len(list(folder.iterdir())))


def refuse(job: str, send: Send) -> None:
    raise ValueError(f"params.yaml: {job} is no good")


def die(job: int, send: Send) -> None:
    send(os.getpid())
    os.kill(os.getpid(), job)


def wait(job: Any, send: Send) -> None:
    send(os.getpid())
    time.sleep(60)


def test_every_job_has_a_process_of_its_own_and_sends_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sent = list(run_jobs(count, [3, 0, 2], 2, "wait"))
    assert [what[0] for job, what in sent if job == 0] == [0, 1, 2]
    assert [what[0] for job, what in sent if job == 2] == [0, 1]
    assert {job for job, _ in sent} == {0, 2}
    assert len({what[1] for _, what in sent} | {os.getpid()}) == 3
    assert {what[2] for _, what in sent} == {str(tmp_path)}


def test_as_many_run_at_the_same_time_as_there_are_workers(tmp_path: Path) -> None:
    assert list(run_jobs(meet, [tmp_path, tmp_path], 2, "wait")) in ([(0, 2), (1, 2)], [(1, 2), (0, 2)])
    alone = tmp_path / "alone"
    alone.mkdir()
    pids = [what[1] for _, what in run_jobs(count, [1, 1, 1], 1, "wait")]
    assert len(set(pids)) == 3


@pytest.mark.parametrize(
    ("work", "job", "told"),
    [(refuse, "dim", "with the error above"), (die, signal.SIGKILL, r"was killed \(exit code -9\); free some memory")],
)
def test_an_error_and_a_kill_end_all_jobs(work: Callable[..., None], job: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        list(run_jobs(work, [job, job, job], 1, "free some memory"))


def test_no_process_is_left_when_nobody_asks_any_more() -> None:
    jobs = run_jobs(wait, [1, 2], 2, "wait")
    pids = {next(jobs)[1], next(jobs)[1]}
    assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
    jobs.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in pids)
