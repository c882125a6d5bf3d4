"""Tries many cases, some at the same time."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.tracking.place import meeting_mlflow
from pipeline.workflow.progress import progress
from tests.fuzz import base
from tests.fuzz.case import Case, Control, Outcome, judged
from tests.fuzz.damage import Recipe
from tests.fuzz.kinds import KINDS, Kind

POLL_SECONDS = 0.005
LONG_SECONDS = 1.5
COMMANDS = ("check", "ingest", "encode", "search", "derive", "retrain", "evaluate", "score", "export", "describe")
LATE = ("pipeline.experiment.train", "pipeline.experiment.find", "pipeline.training.loop")  # they import Lightning


@dataclass(frozen=True)
class Tried:
    """A case that has ended: number and recipe of the damage, and what the command did."""

    kind: str
    number: int
    recipe: Recipe
    outcome: Outcome


class Fuzzer:
    """Cases of all kinds.

    Args:
        folder: to work in.
        seed: of random damage.
        corpus: recipes that failed once, by kind.
        names: of the kinds.
    """

    def __init__(self, folder: Path, seed: int, corpus: Mapping[str, Sequence[Recipe]], names: Sequence[str]) -> None:
        commands = {KINDS[name].stage for name in names}
        self._seed, self._corpus, self._folder = seed, corpus, folder
        self._numbers = itertools.count()
        self._controls: dict[str, Control] = {}
        _imported(commands)
        self._base = _made(folder / "base", commands)

    def one(self, name: str, number: int) -> Tried:
        """The case of a kind with this number."""
        return next(self._tried(name, [(number, self._recipe(name, number))], 1))

    def of_kind(self, name: str, cases: int, jobs: int) -> Iterator[Tried]:
        """The fixed cases of a kind, and so many random ones; a quarter of them if the command takes long."""
        fixed = len(_fixed(KINDS[name], self._corpus.get(name, [])))
        numbers = range(fixed + (cases // 4 if self._control(name).seconds > LONG_SECONDS else cases))
        yield from self._tried(name, [(number, self._recipe(name, number)) for number in numbers], jobs)

    def of_corpus(self, name: str, jobs: int) -> Iterator[Tried]:
        """The cases of a kind that failed once."""
        made = len(KINDS[name].recipes())
        yield from self._tried(name, list(enumerate(self._corpus.get(name, []), made)), jobs)

    def _recipe(self, name: str, number: int) -> Recipe:
        fixed = _fixed(KINDS[name], self._corpus.get(name, []))
        if number < len(fixed):
            return fixed[number]
        return KINDS[name].draw(self._control(name).content, f"{self._seed} {name} {number - len(fixed)}")

    def _control(self, name: str) -> Control:
        if name not in self._controls:
            kind = KINDS[name]
            with _case(kind, None, self._base, self._next()) as case:
                while (end := case.ended()) is None:
                    time.sleep(POLL_SECONDS)
                status, seconds, memory = end
                if status:
                    raise RuntimeError(f"{name}: the command fails with the undamaged file: {case.said()}")
                self._controls[name] = Control(case.outputs(), case.content, seconds, memory)
        return self._controls[name]

    def _next(self) -> Path:
        return self._folder / f"case-{next(self._numbers)}"

    def _tried(self, name: str, todo: Sequence[tuple[int, Recipe]], jobs: int) -> Iterator[Tried]:
        kind, control, waiting = KINDS[name], self._control(name), list(reversed(todo))
        with contextlib.ExitStack() as stack, progress(total=len(todo), desc=name, unit=" cases") as bar:
            running: list[tuple[int, Recipe, Case, contextlib.ExitStack]] = []
            while waiting or running:
                while waiting and len(running) < jobs:
                    number, recipe = waiting.pop()
                    own = stack.enter_context(contextlib.ExitStack())
                    case = own.enter_context(_case(kind, recipe, self._base, self._next()))
                    running.append((number, recipe, case, own))
                time.sleep(POLL_SECONDS)
                for entry in list(running):
                    number, recipe, case, own = entry
                    if (end := case.ended()) is not None:
                        outcome = judged(case, control, *end)
                        own.close()
                        running.remove(entry)
                        bar.update()
                        yield Tried(name, number, recipe, outcome)


def _fixed(kind: Kind, corpus: Sequence[Recipe]) -> list[Recipe]:
    return [*kind.recipes(), *corpus]


@contextlib.contextmanager
def _case(kind: Kind, recipe: Recipe | None, base: Path, folder: Path) -> Iterator[Case]:
    folder.mkdir()
    case = Case(kind, recipe, base, folder)
    try:
        yield case
    finally:
        case.end()


def _imported(commands: Set[str]) -> None:
    """Import what commands import, once for all processes that are forked from this one."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in COMMANDS:
        importlib.import_module(f"stages.{name}")
    for name in LATE:
        importlib.import_module(name)
    if "synchronise" in commands:
        with meeting_mlflow():
            importlib.import_module("mlflow")
    gc.freeze()


def _made(folder: Path, commands: Set[str]) -> Path:
    """The base, made in a process of its own, so that this one stays small and has no threads."""
    folder.mkdir()
    said = folder.with_suffix(".said")
    if not (pid := os.fork()):
        status = 1
        try:
            with said.open("wb") as file:
                for stream in (1, 2):
                    os.dup2(file.fileno(), stream)
            warnings.simplefilter("ignore")
            base.made(folder, commands)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    try:
        status = os.waitpid(pid, 0)[1]
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    if status:
        raise RuntimeError(f"the undamaged files cannot be made: {said.read_text()[-2000:]}")
    return folder
