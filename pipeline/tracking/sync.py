"""Uploads the journals of a repository to the store: those of its stages, and those that DVC has restored."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.tracking.journal import (
    BadJournal,
    check_whole,
    finish,
    has_arrived,
    has_writer,
    held,
    recorded_for,
    set_aside,
)
from pipeline.tracking.place import EXPERIMENT, StoreError, destination, folder, locked, refusal, storing
from pipeline.tracking.replay import Replay
from pipeline.tracking.store import ATTEMPTS, Store, Superseded

Result = TypeVar("Result")
log = logging.getLogger("pipeline.tracking")


class Inbox:
    """The journals in ``<root>/.pipeline/tracking``, and the progress of their upload.

    Args:
        root: the repository.
        experiment: name of the experiment in MLflow.
        workspace: where to look for an artifact if the journal has no copy of it.
        follow: upload also journals that are being written, but only those for this store and experiment.
        progress: called before each batch of points with the number of points left.
    """

    def __init__(
        self,
        root: Path,
        experiment: str,
        workspace: Path | None = None,
        follow: bool = False,
        progress: Callable[[int], None] = lambda left: None,
    ) -> None:
        self.refused: dict[str, str] = {}  # name of a journal -> why the store refused it last time
        self.unreadable: dict[str, str] = {}  # name of a journal -> what is wrong with it
        self._root, self._experiment, self._workspace = root, experiment, workspace
        self._follow, self._progress = follow, progress
        self._destination = destination(root, experiment)
        self._store: Store | None = None
        self._replays: dict[Path, Replay] = {}
        self._relevant: set[Path] = set()  # journals to upload, until they have arrived

    def waiting(self) -> list[tuple[Path, bool]]:
        """The journals that have not arrived, by age from the oldest, each with whether it has a writer."""
        waiting = []
        for path in sorted(folder(self._root).glob("*.jsonl"), key=_modified):
            with contextlib.suppress(FileNotFoundError):  # uploaded since the listing
                written = has_writer(path)
                if not written and has_arrived(path, self._destination):
                    continue
                if path in self._relevant or not self._follow or recorded_for(path) in (None, self._destination):
                    self._relevant.add(path)
                    waiting.append((path, written))
        return waiting

    def is_new(self, path: Path) -> bool:
        """Whether the upload of a journal has not begun.

        Args:
            path: of the journal.
        """
        return path not in self._replays

    def bring_in(self) -> list[str]:
        """Upload the journals; one process per repository does so at a time.

        Returns:
            One line per run and per missing artifact of each journal without a writer.
        Raises:
            StoreError: if the store does not answer.
        """
        with locked(self._root, "inbox"), storing(self._root):
            try:
                if self._store is None:
                    self._store = Store(self._root, self._experiment)
                    self._store.reap()
                return _repeated(partial(self._upload, self._store))
            except BaseException:
                self._store = None
                self._replays.clear()
                raise

    def _upload(self, store: Store) -> list[str]:
        self.refused = {}
        lines: list[str] = []
        ready = []
        try:
            for path, written in self.waiting():
                if written and not self._follow:
                    lines.append(f"{path.name}: skipped, a process is writing it")
                elif replay := self._advance(store, path, written):
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

    def _advance(self, store: Store, path: Path, written: bool) -> Replay | None:
        """Upload the new records of a journal. Returns None if they cannot be read or the store refuses them."""
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
            store.check()  # if the store answers, it refuses only this journal
            self.refused[path.name] = f"{path.name}: {refusal(self._root, error)}"
        del self._replays[path]
        return None

    def _finish(self, path: Path, replay: Replay) -> None:
        """Remove a journal or mark it as uploaded, unless it has a writer again."""
        if replay.closed is None:
            replay.abandon()
        finished = replay.closed == "FINISHED" or replay.reader.offset == 0
        finish(path, replay.reader.offset, self._destination, remove=finished)
        del self._replays[path]
        self._relevant.discard(path)


def synchronise(
    root: Path,
    configuration: Mapping[str, Any] | None = None,
    published: Iterable[str | Path] = (),
    workspace: Path | None = None,
    experiment: str = EXPERIMENT,
    complete: bool = True,
) -> list[str]:
    """Upload the records on disk that the store does not have. A second call changes nothing.

    Journals in ``<root>/.pipeline/tracking`` keep their own configuration; those that a process is writing are skipped.
    Published journals are recorded for ``configuration``.

    Args:
        root: the repository.
        configuration: all parameters; required with ``published``.
        published: journals of the stages in the workspace, in the order of the stages.
        workspace: folder that the paths of artifacts are relative to; the working directory if left out.
        experiment: name of the experiment in MLflow.
        complete: whether ``published`` has a journal of every stage. If so, the run of the configuration becomes
            FINISHED, even if an earlier attempt was killed. Otherwise a new run of the configuration is SCHEDULED.
    Returns:
        One line per run, per missing artifact and per skipped journal.
    Raises:
        ValueError: if there are published journals but no configuration.
        FileNotFoundError: if a published journal does not exist.
        StoreError: if the store does not answer or refuses a journal; the journal stays for the next call.
    """
    root, workspace = Path(root).resolve(), (workspace or Path()).resolve()
    journals = list(map(Path, published))
    if journals and configuration is None:
        raise ValueError("published journals require a configuration, got None")
    for path in journals:
        if not path.is_file():
            raise FileNotFoundError(f"there is no journal {path}")
    inbox = Inbox(root, experiment, workspace)
    lines = inbox.bring_in()
    if journals:
        with locked(root, "inbox"), storing(root):
            store = Store(root, experiment)
            lines += _repeated(partial(_upload_restored, store, journals, workspace, configuration, complete))
    if inbox.refused:
        raise StoreError("\n".join(inbox.refused.values()))
    return lines


def _upload_restored(
    store: Store, journals: Sequence[Path], workspace: Path, configuration: Mapping[str, Any] | None, complete: bool
) -> list[str]:
    replays = {}
    for path in journals:
        replay = Replay(store, path, workspace, configuration)
        try:
            check_whole(path)
            replay.advance()
            replays[path] = replay
        except BadJournal as error:
            log.warning("%s; it is skipped: delete it and run `dvc checkout` to restore it", error)
            complete = False
    store.settle()
    for replay in replays.values():
        replay.settle()
    if complete:
        replay.end_parent("FINISHED")
    return [f"{path}: {line}" for path, replay in replays.items() for line in replay.summary()]


def run_ids(root: Path, stage: str, keys: Iterable[str], experiment: str = EXPERIMENT) -> dict[tuple[str, str], str]:
    """Ids of the runs of a stage in MLflow, by content key and name of the run.

    Args:
        root: the repository.
        stage: name of the stage.
        keys: content keys of the stage.
        experiment: name of the experiment in MLflow.
    Raises:
        StoreError: if the store does not answer.
    """
    root = Path(root).resolve()
    ids: dict[tuple[str, str], str] = {}
    with storing(root):
        store = Store(root, experiment)
        for key in keys:
            for full_key, run_id in store.keyed(key).items():
                ids[key, full_key.removeprefix(f"{stage}/").removesuffix(f":{key}")] = run_id
    return ids


def _repeated(action: Callable[[], Result]) -> Result:
    """Call an action that creates runs; repeat it if another repository created one of them first."""
    for _ in range(ATTEMPTS):
        with contextlib.suppress(Superseded):
            return action()
    raise StoreError(f"other repositories kept creating the same runs {ATTEMPTS} times; try again later")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
