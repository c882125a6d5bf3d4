"""Worker processes that run the trials of a sweep. A worker that is killed is replaced."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from datetime import datetime
from multiprocessing.context import ForkServerProcess

import optuna
from tqdm import tqdm

from pipeline.sweeps.storage import RETRIES, finished, in_use, reap, to_begin
from pipeline.sweeps.sweep import Sweep
from pipeline.workflow import process
from pipeline.workflow.progress import hide, progress, ticking

POLL_SECONDS = 0.5

log = logging.getLogger("pipeline.sweeps")


def do_trials(sweep: Sweep, study: optuna.Study) -> None:
    """Run all trials, in this process or in ``sweep.workers`` worker processes, with a line for each that ends.

    Args:
        sweep: its settings say how many trials and workers there are.
        study: the open study of the sweep.

    Raises:
        ValueError: if a worker ends with an error, or workers are killed again and again.
        sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError: if the storage is lost; see `in_use`.
    """
    total, known = sweep.settings.trials, len(finished(study))
    with ticking(progress(total=total, initial=min(known, total), desc="sweep", unit="trial")) as bar:
        watch = Watch(sweep, study, bar)
        if sweep.settings.workers > 1:
            _run_workers(sweep, study, watch)
        else:
            _run_here(sweep, study, watch)


class Watch:
    """Tells of every trial that ends, whichever process runs it: a line above the bar, and a step of the bar."""

    def __init__(self, sweep: Sweep, study: optuna.Study, bar: tqdm) -> None:
        self.sweep, self.study, self.bar = sweep, study, bar
        self._known = {trial.number for trial in finished(study)}

    def look(self) -> int:
        """The number of finished trials."""
        trials = finished(self.study)
        new = [trial for trial in trials if trial.number not in self._known]
        for trial in sorted(new, key=lambda trial: trial.datetime_complete or datetime.max):
            with self.bar.external_write_mode():
                log.info(self.sweep.line(trial))
        self._known |= {trial.number for trial in new}
        self.bar.update(len(new))
        return len(trials)


def _run_here(sweep: Sweep, study: optuna.Study, watch: Watch) -> None:
    total = sweep.settings.trials
    while watch.look() < total:
        sweep.work_off(study, watch.look)
        if len(finished(study)) < total:  # other processes run the rest
            time.sleep(POLL_SECONDS)
            reap(study)


def _run_workers(sweep: Sweep, study: optuna.Study, watch: Watch) -> None:
    """Run the trials in worker processes, and replace workers that are killed.

    Raises:
        ValueError: if a worker ends with an error, which it has printed, or too many workers are killed.
    """
    total = sweep.settings.trials
    context = multiprocessing.get_context("forkserver")
    workers: list[ForkServerProcess] = []
    ended: list[ForkServerProcess] = []
    killed, done = 0, watch.look()
    try:
        while done < total:
            if ended or not workers:
                for _ in range(min(len(to_begin(study, total)), sweep.settings.workers - len(workers))):
                    workers.append(context.Process(target=_worker, args=(sweep, os.getpid())))
                    workers[-1].start()
            time.sleep(POLL_SECONDS)
            watch.look()
            ended = [worker for worker in workers if not worker.is_alive()]
            if not ended and workers:
                continue
            workers = [worker for worker in workers if worker not in ended]
            if any(worker.exitcode == 1 for worker in ended):
                raise ValueError("a worker has ended with the error above; correct it and start the sweep again")
            reap(study)
            now = watch.look()
            killed = sum(worker.exitcode != 0 for worker in ended) + (killed if now == done else 0)
            done = now
            if killed > RETRIES:
                raise ValueError(
                    f"{killed} workers were killed before any trial finished; there may be too little memory: lower "
                    "sweep.workers or search.batch_size in params.yaml"
                )
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _worker(sweep: Sweep, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    process.end_with(parent)
    hide()

    def work() -> None:
        with in_use(sweep.name):
            sweep.work_off(sweep.open())

    process.main(work, arguments=True)  # the command line belongs to the parent
