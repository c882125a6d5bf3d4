"""From the journals of a repository to the store: those that stages left behind, and those that DVC restored."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.tracking.journal import BadJournal, finish, has_arrived, has_writer, held, recorded_for, set_aside
from pipeline.tracking.place import EXPERIMENT, StoreError, destination, folder, locked, refusal, storing
from pipeline.tracking.replay import Replay
from pipeline.tracking.store import ATTEMPTS, Store, Superseded

Result = TypeVar("Result")
log = logging.getLogger("pipeline.tracking")


class Inbox:
    """The journals in ``<root>/.pipeline/tracking``, and how far each has been brought to the store.

    Args:
        workspace: where to look for an artifact whose copy beside the journal is gone.
        follow: also bring in what is being written, and only what is meant for this store and experiment.
        progress: is told now and then how many points are left.
    """

    def __init__(
        self,
        root: Path,
        experiment: str,
        workspace: Path | None = None,
        follow: bool = False,
        progress: Callable[[int], None] = lambda left: None,
    ) -> None:
        self.refused: dict[str, str] = {}  # name of a journal -> why the store did not accept it the last time
        self.unreadable: dict[str, str] = {}  # name of a journal -> what is wrong with it
        self._root, self._experiment, self._workspace = root, experiment, workspace
        self._follow, self._progress = follow, progress
        self._destination = destination(root, experiment)
        self._store: Store | None = None
        self._replays: dict[Path, Replay] = {}
        self._ours: set[Path] = set()  # journals that concern us, until they have arrived

    def waiting(self) -> list[tuple[Path, bool]]:
        """The journals that have not arrived, the oldest first, and whether each has a writer."""
        waiting = []
        for path in sorted(folder(self._root).glob("*.jsonl"), key=_age):
            with contextlib.suppress(FileNotFoundError):  # it has arrived since it was listed
                written = has_writer(path)
                if not written and has_arrived(path, self._destination):
                    continue
                if path in self._ours or not self._follow or recorded_for(path) in (None, self._destination):
                    self._ours.add(path)
                    waiting.append((path, written))
        return waiting

    def is_new(self, path: Path) -> bool:
        """Whether nothing of a journal has been brought in."""
        return path not in self._replays

    def bring_in(self) -> list[str]:
        """Bring to the store what the journals hold; one process at a time does so.

        Returns:
            What happened to each journal without a writer.
        Raises:
            StoreError: if the store does not answer.
        """
        with locked(self._root, "inbox"), storing(self._root):
            try:
                if self._store is None:
                    self._store = Store(self._root, self._experiment)
                    self._store.reap()
                return _unopposed(partial(self._pass, self._store))
            except BaseException:
                self._store = None
                self._replays.clear()
                raise

    def _pass(self, store: Store) -> list[str]:
        self.refused = {}
        lines: list[str] = []
        ready = []
        try:
            for path, written in self.waiting():
                if written and not self._follow:
                    lines.append(f"{path.name}: is being written, left alone")
                elif replay := self._advanced(store, path, written):
                    ready.append((path, written, replay))
            store.settle()
        except Superseded:
            self._replays.clear()
            raise
        for path, written, replay in ready:
            replay.settle()
            if not written:
                lines += [f"{path.name}: {line}" for line in replay.summary()]
                self._finish(path, replay)
        return lines

    def _advanced(self, store: Store, path: Path, written: bool) -> Replay | None:
        """The replay of a journal, after all its records; None if they cannot be read or the store refuses them."""
        replay = self._replays.get(path) or Replay(store, path, self._workspace, progress=self._progress)
        self._replays[path] = replay
        try:
            replay.advance()
            return replay
        except Superseded:
            raise
        except BadJournal as error:
            self.unreadable[path.name] = str(error)
            store.settle()
            replay.abandon()
            with held(path) as journal:
                if journal:
                    self.unreadable[path.name] += f": it is kept as {set_aside(path).name}"
            log.warning("%s", self.unreadable[path.name])
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
            store.check()  # if it answers, it refuses this journal alone
            self.refused[path.name] = f"{path.name}: {refusal(self._root, error)}"
        del self._replays[path]
        return None

    def _finish(self, path: Path, replay: Replay) -> None:
        """Remove a journal without a writer, or mark it as brought in, unless it has got a writer again."""
        if replay.closed is None:
            replay.abandon()
        finished = replay.closed == "FINISHED" or replay.reader.offset == 0
        finish(path, replay.reader.offset, self._destination, remove=finished)
        del self._replays[path]
        self._ours.discard(path)


def synchronise(
    root: Path,
    configuration: Mapping[str, Any] | None = None,
    published: Iterable[str | Path] = (),
    workspace: Path | None = None,
    experiment: str = EXPERIMENT,
    complete: bool = True,
) -> list[str]:
    """Bring to the store what is on disk and missing there. Doing it twice changes nothing.

    Journals in ``<root>/.pipeline/tracking`` keep the configuration that they were written for; those that a living
    process writes are left alone. Published journals count for ``configuration``.

    Args:
        configuration: all parameters; needed with ``published``.
        published: journals of the stages as they are in the workspace, in the order of the stages.
        workspace: what paths of artifacts are relative to; the working directory if left out.
        complete: whether ``published`` has a journal of every stage: the run of the configuration is then FINISHED,
            even if an earlier attempt was killed. Otherwise a new one is SCHEDULED.
    Returns:
        One line per run, and one per artifact that could not be found.
    Raises:
        FileNotFoundError: if a published journal does not exist.
        StoreError: if the store does not answer or refuses a journal; what has not arrived stays for the next time.
    """
    root, workspace = Path(root).resolve(), (workspace or Path()).resolve()
    journals = list(map(Path, published))
    if journals and configuration is None:
        raise ValueError("published journals need the configuration that they count for")
    for path in journals:
        if not path.is_file():
            raise FileNotFoundError(f"there is no journal {path}")
    inbox = Inbox(root, experiment, workspace)
    lines = inbox.bring_in()
    if journals:
        with locked(root, "inbox"), storing(root):
            store = Store(root, experiment)
            lines += _unopposed(partial(_restored, store, journals, workspace, configuration, complete))
    if inbox.refused:
        raise StoreError("\n".join(inbox.refused.values()))
    return lines


def _restored(
    store: Store, journals: Sequence[Path], workspace: Path, configuration: Mapping[str, Any] | None, complete: bool
) -> list[str]:
    replays = {}
    for path in journals:
        replay = Replay(store, path, workspace, configuration)
        try:
            replay.advance()
            replays[path] = replay
        except BadJournal as error:
            log.warning("%s: it is left out; delete it, and `dvc checkout` restores it", error)
            complete = False
    store.settle()
    for replay in replays.values():
        replay.settle()
    if complete:
        replay.end_parent("FINISHED")
    return [f"{path}: {line}" for path, replay in replays.items() for line in replay.summary()]


def run_ids(root: Path, stage: str, keys: Iterable[str], experiment: str = EXPERIMENT) -> dict[tuple[str, str], str]:
    """MLflow's ids of the runs of a stage that have arrived, by content key and name.

    Raises:
        StoreError: if the store does not answer.
    """
    root = Path(root).resolve()
    ids: dict[tuple[str, str], str] = {}
    with storing(root):
        store = Store(root, experiment)
        for key in keys:
            for whole, run_id in store.keyed(key).items():
                ids[key, whole.removeprefix(f"{stage}/").removesuffix(f":{key}")] = run_id
    return ids


def _unopposed(action: Callable[[], Result]) -> Result:
    """Do something that creates runs, and do it again if another repository created one of them first."""
    for _ in range(ATTEMPTS):
        with contextlib.suppress(Superseded):
            return action()
    raise StoreError("other repositories create the same runs all the time; try again when they have ended")


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
