"""Experiment tracking: journal first, MLflow second. The only file that knows MLflow.

Every record is appended to a journal on disk, ``<root>/.pipeline/tracking/<stage>-<key>.jsonl``, before anything
else happens to it. A separate process reads the journal and brings it to the MLflow store in batches, so that
neither MLflow's import nor its SQL takes time from training, a store that is down costs nothing but one warning,
and a killed stage is marked as such by the process that outlives it. `synchronise` replays journals that never
arrived, or that DVC restored from its cache without starting any process.

Runs have two levels and are found by what they are, never by when they ran:

* the parent, one per configuration, by tag ``pipeline.configuration``: a hash of all parameters;
* its children, one per stage and run name, by tag ``pipeline.key``: the stage's own content key.

A child that another configuration computed is not repeated: the parent gets ``pipeline.cached.<stage>`` instead,
with the ids of the runs. A child that is FINISHED is complete and never written again.

Metrics in MLflow carry the timestamp ``start of the run + step`` milliseconds: a replay writes the same points.
From the `EVERY_STEP`-th record of a series on MLflow gets every second, from twice as many on every fourth, ...
and the last; the journal holds them all.

Environment: ``MLFLOW_TRACKING_URI`` names a store other than ``<root>/mlflow.db``; ``PIPELINE_TRACKING=journal``
keeps the journal only (nodes without a network), for `synchronise` later.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import getpass
import hashlib
import json
import logging
import math
import os
import platform
import posixpath
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Protocol

EXPERIMENT = "autodim"
EVERY_STEP = 1000  # records of a series that all go to MLflow, before it thins out; MLflow draws 320 points per curve
TICK_SECONDS = 5.0  # between two looks at the journal: points of one series that arrive together are cheap to store
RETRY_SECONDS = 30.0  # after a store failed for the first time; doubles up to ten times as much
LAST_WORD_SECONDS = 10.0  # that a failing stage waits for the store
GRACE_SECONDS = 20.0  # that a journal left for later waits for another stage's uploader
METRICS_PER_BATCH, PARAMS_PER_BATCH, TAGS_PER_BATCH = 1000, 100, 100
KEY_CHARACTERS, PARAM_CHARACTERS, TAG_CHARACTERS = 250, 6000, 5000
ENVIRONMENT = {  # of the process that talks to MLflow, where the user has not set them: a dead server fails in seconds
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}

Status = Literal["FINISHED", "FAILED", "KILLED"]
log = logging.getLogger("pipeline.tracking")


class StoreError(RuntimeError):
    """The MLflow store cannot be reached, or refuses what it is given."""


class Values(Protocol):
    """What ``tolist()`` turns into floats: a one-dimensional array or tensor."""

    def tolist(self) -> Any: ...


def configuration_key(configuration: Mapping[str, Any]) -> str:
    """The name of a configuration: equal parameters, equal key, whatever their order."""
    canonical = json.dumps(configuration, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


def store_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the embedded database of the repository; a relative path counts from there."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    relative = re.fullmatch(r"sqlite:///([^/:].*)", uri)
    return f"sqlite:///{root / relative[1]}" if relative else uri


# --- what a stage uses ------------------------------------------------------------------------------------------


class Tracker:
    """Records what one stage does: a block that opens runs, and closes what is left open.

    Leaving the block normally ends its runs as FINISHED, copies the journal to ``publish`` and waits until the
    store has it all. An exception makes them FAILED; SystemExit (SIGTERM, in a stage) and Ctrl-C make them KILLED,
    and the journal stays where the same stage with the same key will continue it.

    Args:
        root: the repository (not the copy that ``dvc exp run --temp`` works in): journal, lock, store live there.
        stage: name of the stage.
        key: names the content that the stage computes; equal keys mean interchangeable results.
        configuration: all parameters of the pipeline, nested; they name the parent and become its params.
        tags: for the parent and every run of this stage, e.g. dataset, method, backbone.
        dataset: ``name`` and ``digest`` (at most 36 characters), perhaps ``source``; MLflow's dataset lineage.
        publish: where the whole journal goes when the stage succeeds, relative to the working directory.
        later: do not wait for the store, which takes seconds: the next stage's uploader brings the journal in, or,
            if none comes, a process that this one leaves behind.
    """

    def __init__(
        self,
        root: Path,
        stage: str,
        key: str,
        configuration: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        dataset: Mapping[str, str] | None = None,
        publish: str | Path | None = None,
        experiment: str = EXPERIMENT,
        later: bool = False,
    ) -> None:
        for word in (stage, key):
            if not re.fullmatch(r"[\w.\-]+", word):
                raise ValueError(f"stage and key name a file: letters, digits, '_', '.', '-' only, however: {word!r}")
        self.stage, self.key, self.publish = stage, key, publish
        self._root = Path(root).resolve()
        self._journal = _Journal(_folder(self._root) / f"{stage}-{key}.jsonl")
        self._runs: dict[str, Run] = {}
        self._journal.append(
            {
                "k": "open",
                "stage": stage,
                "key": key,
                "experiment": experiment,
                "configuration": configuration,
                "tags": dict(tags or {}),
                "dataset": dict(dataset) if dataset else None,
                "origin": _origin(self._root),
                "time": _now(),
            }
        )
        self._uploader: _Uploader | None = None
        uploaded = os.environ.get("PIPELINE_TRACKING") != "journal"
        self._left_behind = (self._journal.path, self._root, experiment) if uploaded and later else None
        if uploaded and not later:
            self._uploader = _uploader()
            self._uploader.open(self._journal.path, self._root, experiment)

    def run(
        self,
        name: str | None = None,
        *,
        seed: int | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        started: float | None = None,
    ) -> Run:
        """Open a run, or continue the one of this name in a journal that was cut short.

        Args:
            name: unique within stage and key, e.g. ``searched/seed-1``; ``seed-<seed>`` or the stage's name if left
                out.
            params: nested dicts are flattened with dots.
            started: seconds since the epoch, if the run began before it could be named.
        Raises:
            ValueError: if this tracker has opened a run of that name before, or the name holds a quote.
        """
        name = name or (self.stage if seed is None else f"seed-{seed}")
        if name in self._runs or "'" in name:
            raise ValueError(
                f"stage {self.stage!r}: run name {name!r} must be new and without quotes; there are {list(self._runs)}"
            )
        tags = {**({} if seed is None else {"seed": str(seed)}), **(tags or {})}
        begun = _now() if started is None else int(started * 1000)
        self._journal.append({"k": "run", "run": name, "params": _flat(params or {}), "tags": tags, "time": begun})
        self._runs[name] = Run(self._journal, name)
        return self._runs[name]

    def parent(
        self,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Iterable[str | Path] = (),
    ) -> None:
        """Give the configuration's own run final figures: the row by which configurations are compared."""
        self._journal.append({"k": "parent", "metrics": dict(metrics or {}), "tags": dict(tags or {})})
        for path in artifacts:
            self._journal.artifact(None, path, "")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = _status(error)
        for run in self._runs.values():
            if error is not None and status != "FINISHED" and not run.ended:
                run.tag("pipeline.error", f"{type(error).__name__}: {error}")
            run.end(status)
        self._journal.append({"k": "close", "status": status, "time": _now()})
        try:
            if self.publish is not None and status == "FINISHED":
                self._journal.copy_to(Path(self.publish))
        finally:
            arrived = False
            if self._uploader is not None:
                arrived = self._uploader.close(self._journal.path, None if status == "FINISHED" else LAST_WORD_SECONDS)
            if arrived and status == "FINISHED":
                self._journal.remove()
            self._journal.close()
            if self._left_behind:
                _bring_in_later(*self._left_behind)


class Run:
    """One run of a stage. `Tracker.run` makes them."""

    def __init__(self, journal: _Journal, name: str) -> None:
        self.name = name
        self.ended = False
        self._journal = journal
        self._marks = journal.marks.setdefault(name, {})
        self._blocks: dict[tuple[str, ...], int] = {}

    def metrics(
        self,
        step: int,
        names: Mapping[str, float] | tuple[str, ...],
        values: Sequence[float] | Values | None = None,
    ) -> None:
        """Record metrics at a step, as a mapping, or as a tuple of names and as many values.

        The second form is for hundreds of series at every step: keep one tuple and pass it again; values are
        written with 7 significant digits, all that single precision has. The first form keeps every digit.

        Steps of one metric only grow: a step not above its last one is a repeat, as after a resume, and dropped.

        Raises:
            ValueError: if the run has ended, or names and values differ in number.
        """
        self._check_open()
        exact = isinstance(names, Mapping)
        numbers: Sequence[float]
        if isinstance(names, Mapping):
            numbers = [float(value) for value in names.values()]
            names = tuple(names)
        elif isinstance(values, Sequence):
            numbers = values
        elif values is not None:
            numbers = values.tolist()
        else:
            raise ValueError(f"run {self.name!r}, step {step}: names without values")
        if len(numbers) != len(names):
            raise ValueError(f"run {self.name!r}, step {step}: {len(names)} names for {len(numbers)} values")
        mark = self._marks.get
        fresh = [place for place, name in enumerate(names) if mark(name, step - 1) < step]
        if len(fresh) < len(names):
            names, numbers = tuple(names[i] for i in fresh), [numbers[i] for i in fresh]
            if not names:
                return
        block = self._blocks.get(names)
        if block is None:
            block = self._blocks[names] = self._journal.declare(self.name, names)
        self._marks.update(dict.fromkeys(names, step))
        self._journal.points(block, int(step), numbers, exact)

    def tag(self, name: str, value: str) -> None:
        self._check_open()
        self._journal.append({"k": "tags", "run": self.name, "tags": {name: str(value)}})

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Keep a small file with the run, as it is now, under ``folder`` among the run's artifacts.

        The file is copied beside the journal, since the workspace may change or go before the upload. After a
        restore from DVC's cache it is taken from ``path`` again, if its checksum still agrees.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        self._check_open()
        self._journal.artifact(self.name, path, folder)

    def end(self, status: Status = "FINISHED") -> None:
        """End the run; a second call does nothing. Leaving the tracker's block ends what is open."""
        if not self.ended:
            self.ended = True
            self._journal.append({"k": "end", "run": self.name, "status": status, "time": _now()})

    def _check_open(self) -> None:
        if self.ended:
            raise ValueError(f"run {self.name!r} has ended; record before `end`, or open a run of another name")


def synchronise(
    root: Path,
    configuration: Mapping[str, Any] | None = None,
    published: Iterable[str | Path] = (),
    workspace: Path | None = None,
    experiment: str = EXPERIMENT,
) -> list[str]:
    """Bring to the store what is on disk and missing there. Doing it twice changes nothing.

    Journals left in ``<root>/.pipeline/tracking`` keep the configuration they were written under; those in use by
    a living process are left alone. Published journals count for ``configuration``.

    Args:
        configuration: all parameters; needed with ``published``.
        published: journals of the stages as they stand in the workspace, in the order of the stages.
        workspace: what paths of artifacts are relative to; the working directory if left out.
    Returns:
        One line per journal, and one per artifact that could not be found.
    Raises:
        StoreError: if the store does not answer; what has not arrived stays for the next time.
    """
    root, workspace = Path(root).resolve(), (workspace or Path()).resolve()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    journals = list(map(Path, published))
    if journals and configuration is None:
        raise ValueError("published journals need the configuration that they count for")
    lines: list[str] = []
    with contextlib.redirect_stdout(sys.stderr), _quiet():
        try:
            store = _Store(store_uri(root), root, experiment)
            store.reap()
            lines += _bring_in(store, workspace)
            for path in journals:
                replay = _Replay(store, path, workspace, configuration)
                replay.advance()
                lines += [f"{path}: {line}" for line in replay.summary()]
        except (ValueError, FileNotFoundError):
            raise
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
            raise StoreError(_refusal(store_uri(root), error)) from error
    return lines


def _bring_in(store: _Store, workspace: Path | None = None) -> Iterator[str]:
    """Replay the journals that nobody writes; those that are complete go, the others are marked as brought in."""
    mark = {"k": "uploaded", "to": store.uri}
    for path in sorted(_folder(store.root).glob("*.jsonl")):
        with _owned(path) as owned:
            if not owned:
                yield f"{path.name}: in use, left alone"
            elif _last_record(path) != mark:
                replay = _Replay(store, path, workspace)
                replay.advance()
                yield from (f"{path.name}: {line}" for line in replay.summary())
                if replay.closed == "FINISHED":
                    _remove(path)
                else:
                    replay.abandon()
                    with path.open("a") as journal:
                        journal.write(json.dumps(mark) + "\n")


# --- journal ----------------------------------------------------------------------------------------------------


class _Journal:
    """An append-only file of JSON lines, one writer at a time; each line reaches the system before the next.

    A line is a record ``{"k": kind, ...}`` or, for metrics, ``[block, step, [values]]``, where a record of kind
    "names" has declared what the block's values are called.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        if not _lock_now(self._file):  # the same content is being computed elsewhere: the runs will be shared
            self._file.close()
            path = path.with_name(f"{path.stem}-{os.getpid()}.jsonl")
            self._file = path.open("a+b", buffering=0)
            _lock_now(self._file)
        self.path = path
        self.marks: dict[str, dict[str, int]] = {}  # run -> metric -> last step
        self._formats: dict[int, str] = {}
        self._blocks = 0
        self._continue()

    def _continue(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # torn by a kill
            self._file.truncate(whole)
        blocks: dict[int, tuple[str, list[str]]] = {}
        step: int
        for line in content[:whole].splitlines():
            record = json.loads(line)
            if isinstance(record, list):
                run, names = blocks[record[0]]
                step = record[1]
                self.marks[run].update(dict.fromkeys(names, step))
            elif record["k"] == "names":
                blocks[record["id"]] = record["run"], record["names"]
                self.marks.setdefault(record["run"], {})
        self._blocks = max(blocks, default=-1) + 1

    def append(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, default=str).encode() + b"\n")

    def declare(self, run: str, names: tuple[str, ...]) -> int:
        block = self._blocks
        self._blocks += 1
        self._formats[block] = "[%d,%d,[" + ",".join(["%.7g"] * len(names)) + "]]\n"
        self.append({"k": "names", "id": block, "run": run, "names": names})
        return block

    def points(self, block: int, step: int, values: Sequence[float], exact: bool) -> None:
        if exact:
            self._file.write(f"[{block},{step},{json.dumps(values)}]\n".encode())
            return
        line = self._formats[block] % (block, step, *values)
        if "n" in line:  # inf, nan: JSON as Python reads it has other names for them
            line = line.replace("inf", "Infinity").replace("nan", "NaN")
        self._file.write(line.encode())

    def artifact(self, run: str | None, path: str | Path, folder: str) -> None:
        content = Path(path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        kept = _kept(self.path, digest, path)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(content)
        name = os.path.relpath(path) if Path(path).is_absolute() else str(path)
        self.append({"k": "artifact", "run": run, "path": name, "sha256": digest, "folder": folder})

    def copy_to(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(self.path, draft)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def remove(self) -> None:
        _remove(self.path)

    def close(self) -> None:
        self._file.close()


def _folder(root: Path) -> Path:
    folder = root / ".pipeline" / "tracking"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _kept(journal: Path, digest: str, path: str | Path) -> Path:
    """Where the journal's own copy of an artifact is."""
    return journal.with_suffix(".files") / digest[:20] / Path(path).name


def _remove(journal: Path) -> None:
    shutil.rmtree(journal.with_suffix(".files"), ignore_errors=True)
    journal.unlink(missing_ok=True)


def _lock_now(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _owned(journal: Path) -> Iterator[bool]:
    """Whether the journal is there and nobody writes it; holds it for the length of the block if so."""
    try:
        file = journal.open("rb")
    except FileNotFoundError:  # somebody has brought it in since it was listed
        yield False
        return
    with file:
        yield _lock_now(file) and journal.exists()


def _last_record(journal: Path) -> Any:
    """The last line of a journal; None if there is none, or it is torn."""
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - 4096))
        lines = file.read().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def _status(error: BaseException | None) -> Status:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def _now() -> int:
    return int(time.time() * 1000)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _origin(root: Path) -> dict[str, str]:
    """Tags that say who runs which code; without git, only who."""
    origin = {"mlflow.user": getpass.getuser()}
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        if name in os.environ:
            origin[name.lower().replace("_", ".", 1)] = os.environ[name]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head, state = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
        origin["mlflow.source.git.commit"] = head.stdout.strip()
        origin["git.dirty"] = "true" if state.stdout.strip() else "false"
    return origin


# --- the stage's end of the uploader ----------------------------------------------------------------------------


class _Uploader:
    """The process that brings journals to the store: `_serve` in a fresh interpreter, one for all trackers.

    A process and not a thread: MLflow needs 100 microseconds of interpreter per point, which a thread would take
    from training. It reads commands from its stdin, answers on its stdout, and sees by its end when we are gone.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._answers: dict[str, bool] = {}
        self._points_left = 0
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",  # one that stays: trackers of several repositories may share this process
            env=ENVIRONMENT | dict(os.environ),
            start_new_session=True,  # Ctrl-C is for the stage; this process outlives it to write down how it ended
        )
        commands, answers = self._process.stdin, self._process.stdout
        if commands is None or answers is None:
            raise OSError("the uploader process has no pipes")
        self._commands = commands
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def open(self, journal: Path, root: Path, experiment: str) -> None:
        self._answers.pop(str(journal), None)
        uri = store_uri(root)
        self._send(
            {"open": str(journal), "root": str(root), "uri": uri, "experiment": experiment, "process": _process()}
        )

    def close(self, journal: Path, timeout: float | None) -> bool:
        """Wait until the store has all of a journal; False if it does not, or not in time."""
        self._send({"close": str(journal)})
        began = time.monotonic()
        shown = 0.0
        with self._changed:
            while str(journal) not in self._answers and not self._answers.get("gone"):
                waited = time.monotonic() - began
                if timeout is not None and waited > timeout:
                    return False
                if waited - shown > 2:
                    shown = waited
                    left = f", {self._points_left:,} points left" if self._points_left else ""
                    print(f"tracking: bringing the journal to MLflow, {waited:.0f} s{left}", file=sys.stderr)
                self._changed.wait(0.2)
            return self._answers.get(str(journal), False)

    def stop(self) -> None:
        if self.owner == os.getpid():
            with contextlib.suppress(OSError):
                self._commands.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1.0)

    def _send(self, command: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it is gone: `_listen` says so
            self._commands.write(json.dumps(command).encode() + b"\n")
            self._commands.flush()

    def _listen(self, answers: IO[bytes]) -> None:
        with answers:
            for line in answers:
                answer = json.loads(line)
                if "warning" in answer:
                    log.warning("%s", answer["warning"])
                with self._changed:
                    self._points_left = answer.get("left", self._points_left)
                    if "closed" in answer:
                        self._answers[answer["closed"]] = answer["arrived"]
                    self._changed.notify_all()
        with self._changed:
            self._answers["gone"] = True
            self._changed.notify_all()


_current: _Uploader | None = None


def _uploader() -> _Uploader:
    global _current
    if _current is None or _current.owner != os.getpid() or not _current.alive:
        _current = _Uploader()
        atexit.register(_current.stop)
    return _current


_behind: list[subprocess.Popen[bytes]] = []


def _bring_in_later(journal: Path, root: Path, experiment: str) -> None:
    """Start a process that waits for somebody else to bring the journal in, and does it if nobody comes.

    It waits `GRACE_SECONDS`, but no longer than the process that runs the stages, e.g. dvc.
    """
    _behind.append(
        subprocess.Popen(
            [sys.executable, "-P", __file__, str(journal), str(root), experiment, str(os.getppid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    )


def _bring_in_if_left(journal: Path, root: Path, experiment: str, starter: int) -> None:
    import psutil

    os.nice(10)
    deadline = time.monotonic() + GRACE_SECONDS
    while journal.exists() and time.monotonic() < deadline and psutil.pid_exists(starter):
        time.sleep(0.5)
    if journal.exists():
        with contextlib.suppress(StoreError):  # the next uploader warns
            synchronise(root, experiment=experiment)


def _process() -> dict[str, str]:
    """What tells this process from any other, also from a later one of the same number."""
    import psutil

    return {
        "pipeline.host": platform.node(),
        "pipeline.pid": str(os.getpid()),
        "pipeline.started": f"{psutil.Process().create_time():.2f}",
    }


def _is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process of `_process` has ended; a process of another host counts as alive."""
    import psutil

    if tags.get("pipeline.host") != platform.node() or "pipeline.pid" not in tags:
        return False
    try:
        process = psutil.Process(int(tags["pipeline.pid"]))
        gone = process.status() == psutil.STATUS_ZOMBIE
        return gone or abs(process.create_time() - float(tags["pipeline.started"])) > 1
    except psutil.NoSuchProcess:
        return True


# --- MLflow -----------------------------------------------------------------------------------------------------


class _Store:
    """One experiment of an MLflow store. Made under the repository's lock: MLflow's migrations do not bear two."""

    def __init__(self, uri: str, root: Path, experiment: str) -> None:
        for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        from mlflow import MlflowClient

        self.root = root
        self.uri = uri
        with self.lock():
            self.client = MlflowClient(uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                # a server has artifact storage of its own; anything else would put them into the working directory
                place = None if uri.startswith("http") else (root / "mlartifacts").as_uri()
                self.experiment_id = self.client.create_experiment(experiment, artifact_location=place)
            elif found.lifecycle_stage != "active":
                raise StoreError(f"experiment {experiment!r} is deleted; `mlflow experiments restore` brings it back")
            else:
                self.experiment_id = found.experiment_id

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with (_folder(self.root) / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def reap(self) -> None:
        """Runs of ours that say RUNNING though their process is gone were killed."""
        for run in self.client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'", max_results=1000):
            if _is_dead(run.data.tags):
                self.client.set_terminated(run.info.run_id, "KILLED")

    def find(self, tag: str, value: str) -> Any:
        """The run with this tag: a finished one before others, the oldest first; None if there is none."""
        runs = self.client.search_runs([self.experiment_id], f"tags.`{tag}` = '{value}'", order_by=["start_time ASC"])
        return next((run for run in runs if run.info.status == "FINISHED"), runs[0] if runs else None)

    def create(self, start: int, name: str, tags: Mapping[str, str]) -> Any:
        return self.client.create_run(self.experiment_id, start_time=start, run_name=name, tags=_legal_tags(tags))

    def write(self, run: Any, tags: Mapping[str, str], params: Mapping[str, str] | None = None) -> None:
        """Set tags, and the params that the run does not have: MLflow refuses a param that changes."""
        from mlflow.entities import Param, RunTag

        run_id = run.info.run_id
        new_tags = [RunTag(*item) for item in _legal_tags(tags).items() if run.data.tags.get(item[0]) != item[1]]
        legal = {_legal_key(name): _legal_param(value) for name, value in (params or {}).items()}
        new_params = [Param(*item) for item in legal.items() if item[0] not in run.data.params]
        for part in _parts(new_tags, TAGS_PER_BATCH):
            self.client.log_batch(run_id, tags=part)
        for part in _parts(new_params, PARAMS_PER_BATCH):
            self.client.log_batch(run_id, params=part)


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _legal_key(name: str) -> str:
    """The name itself where MLflow takes it; else a name like it that no other name turns into."""
    key = re.sub(r"[^/\w.\- :]", "_", name)
    if posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == ".":
        key = "/".join(part if part.strip(".") else "_" for part in key.split("/"))
    if key != name or len(key) > KEY_CHARACTERS:
        key = f"{key[: KEY_CHARACTERS - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return key


def _legal_param(value: str) -> str:
    if len(value) <= PARAM_CHARACTERS:
        return value
    tail = f"... sha256:{hashlib.sha256(value.encode()).hexdigest()}"
    return value[: PARAM_CHARACTERS - len(tail)] + tail


def _legal_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {_legal_key(name): str(value)[:TAG_CHARACTERS] for name, value in tags.items()}


def _refusal(uri: str, error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error))[:200]
    place = re.sub(r"//[^/@]*@", "//", uri)  # no password in a message
    return (
        f"MLflow at {place} does not take the records ({type(error).__name__}: {text}); "
        "they stay in .pipeline/tracking, `python -m stages.sync` brings them in later"
    )


class _Series:
    """The points of one run on their way to the store."""

    def __init__(self, run: Any, complete: bool) -> None:
        self.run = run
        self.complete = complete
        self.ended = False
        self.sent = 0
        self.waiting: dict[str, list[tuple[int, float]]] = {}
        self.held_back: dict[tuple[str, ...], tuple[int, list[float]]] = {}  # thinned out, unless the last
        self.records: dict[tuple[str, ...], int] = {}
        self.marks = {metric.key: metric.step for metric in run.data.to_proto().metrics}  # what the store has
        self.nonfinite: dict[str, str] = {}

    def add(self, keys: tuple[str, ...], step: int, values: list[float]) -> int:
        """Take one line of the journal. Returns the number of points that wait because of it."""
        count = self.records[keys] = self.records.get(keys, -1) + 1
        if count >= EVERY_STEP and count % (1 << (count // EVERY_STEP).bit_length()):
            self.held_back[keys] = step, values
            return 0
        self.held_back.pop(keys, None)
        return self._wait(keys, step, values)

    def add_last(self) -> None:
        for keys, (step, values) in self.held_back.items():
            self._wait(keys, step, values)
        self.held_back.clear()

    def _wait(self, keys: tuple[str, ...], step: int, values: list[float]) -> int:
        for key, value in zip(keys, values, strict=True):
            if math.isinf(value):  # MLflow would store 1.8e308, and no chart survives that
                self.nonfinite.setdefault(key, f"{value} at step {step}")
            elif self.marks.get(key, step - 1) < step:
                self.waiting.setdefault(key, []).append((step, value))
        return len(keys)

    def points(self) -> list[tuple[str, int, float]]:
        """All that waits, series by series: a batch of few series is half as expensive to store."""
        return [(key, step, value) for key, line in self.waiting.items() for step, value in line]


class _Replay:
    """Brings one journal to the store, line by line, as far as it has been written.

    After an error it is of no more use; another one from the beginning of the journal finds out what the store has.

    Args:
        configuration: counts instead of the journal's own; for journals that DVC has restored.
        process: tags of the living process that writes the journal; None for a journal that nobody writes.
    """

    def __init__(
        self,
        store: _Store,
        journal: Path,
        workspace: Path | None = None,
        configuration: Mapping[str, Any] | None = None,
        process: Mapping[str, str] | None = None,
        progress: Callable[[int], None] = lambda left: None,
    ) -> None:
        self.closed: Status | None = None
        self._store, self._journal, self._workspace = store, journal, workspace
        self._configuration = configuration
        self._live = process is not None
        self._process = process or _process()
        self._progress = progress
        self._offset = 0
        self._open: dict[str, Any] = {}
        self._parent: Any = None
        self._series: dict[str, _Series] = {}
        self._blocks: dict[int, tuple[str, tuple[str, ...]]] = {}
        self._cached: dict[str, str] = {}  # run name -> run id
        self._waiting = 0
        self._notes: list[str] = []

    def advance(self) -> None:
        """Bring in what has been written since the last time; a line that is not complete waits."""
        with self._journal.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                record = json.loads(line)
                if isinstance(record, list):
                    self._points(*record)
                else:
                    self._record(record)
        for series in self._series.values():
            self._send(series)

    def abandon(self) -> None:
        """The writer is gone: whatever has no end was killed."""
        for series in self._series.values():
            if not series.complete and not series.ended:
                self._end(series, "KILLED", _now())
        if self._parent is not None and self.closed is None:
            self._end_parent("KILLED")

    def summary(self) -> Iterator[str]:
        for name, series in self._series.items():
            run_id = series.run.info.run_id
            if name in self._cached and series.complete:
                yield f"run {name} {run_id} is another configuration's, linked"
            else:
                yield f"run {name} {run_id} " + (
                    "was complete" if series.complete else f"brought in, {series.sent} points"
                )
        yield from self._notes

    def _record(self, record: dict[str, Any]) -> None:
        kind, name = record["k"], record.get("run")
        if kind == "open":
            self._open_parent(record)
        elif kind == "run":
            self._open_run(record)
        elif kind == "parent":
            self._write_parent(record)
        elif kind == "artifact":
            if name is None or not self._series[name].complete:
                self._send_artifact(self._parent if name is None else self._series[name].run, record)
        elif kind == "names":
            self._blocks[record["id"]] = record["run"], tuple(map(_legal_key, record["names"]))
        elif kind == "tags":
            if not self._series[record["run"]].complete:
                self._store.write(self._series[record["run"]].run, record["tags"])
        elif kind == "end":
            series = self._series[record["run"]]
            if not series.complete and not series.ended:
                self._end(series, record["status"], record["time"])
        elif kind == "close":
            self.closed = record["status"]
            cached = f"pipeline.cached.{self._open['stage']}"
            if not self._cached and cached in self._parent.data.tags:  # since then it has computed its own
                self._store.client.delete_tag(self._parent.info.run_id, cached)
            self._end_parent(record["status"])

    def _open_parent(self, record: dict[str, Any]) -> None:
        self._open, self.closed = record, None
        configuration = record["configuration"] if self._configuration is None else self._configuration
        key = configuration_key(configuration)
        tags = dict(record["tags"])
        if self._live:
            tags |= record["origin"]
            tags |= self._process
        with self._store.lock():
            run = self._store.find("pipeline.configuration", key)
            if run is None:
                origin = _origin(self._store.root) if self._configuration is not None else record["origin"]
                identity = {"pipeline.configuration": key, "mlflow.source.name": "pipeline", **origin, **self._process}
                run = self._store.create(record["time"], f"pipeline {key[:8]}", {**tags, **identity})
                if not self._live:
                    self._store.client.set_terminated(run.info.run_id, "FINISHED")
            elif self._live and run.info.status != "RUNNING":
                self._store.client.update_run(run.info.run_id, status="RUNNING")
            self._store.write(run, tags, _flat(configuration))
            self._parent = self._store.client.get_run(run.info.run_id)
        if record["dataset"]:
            self._send_dataset(self._parent, record["dataset"])

    def _open_run(self, record: dict[str, Any]) -> None:
        name, stage = record["run"], self._open["stage"]
        parent_id = self._parent.info.run_id
        key = f"{stage}/{name}:{self._open['key']}"
        tags = {"pipeline.stage": stage, **self._open["tags"], **record["tags"], **self._process}
        with self._store.lock():
            run = self._store.find("pipeline.key", key)
            if run is None:
                identity = {"pipeline.key": key, "mlflow.parentRunId": parent_id, "mlflow.source.name": stage}
                title = stage if name == stage else f"{stage}/{name}"
                run = self._store.create(record["time"], title, {**tags, **self._open["origin"], **identity})
            complete = run.info.status == "FINISHED"
            if not complete and run.info.status != "RUNNING":
                self._store.client.update_run(run.info.run_id, status="RUNNING")
        known = self._series.get(name)
        if known is None or known.ended:
            self._series[name] = _Series(run, complete)
        if not complete:
            self._store.write(run, tags, record["params"])
            if self._open["dataset"]:
                self._send_dataset(run, self._open["dataset"])
        if run.data.tags.get("mlflow.parentRunId") != parent_id:
            self._cached[name] = run.info.run_id
            self._store.write(self._parent, {f"pipeline.cached.{stage}": ",".join(self._cached.values())})

    def _points(self, block: int, step: int, values: list[float]) -> None:
        run, keys = self._blocks[block]
        series = self._series[run]
        if series.complete:
            return
        self._waiting += series.add(keys, step, values)
        if self._waiting >= 50 * METRICS_PER_BATCH:
            for series in self._series.values():
                self._send(series)

    def _send(self, series: _Series) -> None:
        from mlflow.entities import Metric

        run_id, start = series.run.info.run_id, series.run.info.start_time
        points = series.points()
        left = len(points)
        for part in _parts(points, METRICS_PER_BATCH):
            self._progress(left)
            left -= len(part)
            metrics = [Metric(key, value, start + step, step) for key, step, value in part]
            self._store.client.log_batch(run_id, metrics=metrics)
            series.sent += len(part)
            series.marks.update((key, step) for key, step, _ in part)
        series.waiting.clear()
        self._waiting = 0
        if series.nonfinite:
            self._store.write(series.run, {f"nonfinite.{key}": text for key, text in series.nonfinite.items()})
            series.nonfinite.clear()

    def _end(self, series: _Series, status: Status, when: int) -> None:
        series.add_last()
        self._send(series)
        series.ended = True
        self._store.client.set_terminated(series.run.info.run_id, status, end_time=when)

    def _write_parent(self, record: dict[str, Any]) -> None:
        """Figures of the parent are replaced if they differ: the latest in time is the one MLflow shows."""
        from mlflow.entities import Metric

        run = self._store.client.get_run(self._parent.info.run_id)
        figures = {_legal_key(name): value for name, value in record["metrics"].items()}
        infinite = {f"nonfinite.{key}": str(value) for key, value in figures.items() if math.isinf(value)}
        changed = [
            Metric(key, value, _now(), 0)
            for key, value in figures.items()
            if not math.isinf(value) and repr(run.data.metrics.get(key)) != repr(float(value))
        ]
        for part in _parts(changed, METRICS_PER_BATCH):
            self._store.client.log_batch(run.info.run_id, metrics=part)
        self._store.write(run, record["tags"] | infinite)

    def _end_parent(self, status: Status) -> None:
        run = self._store.client.get_run(self._parent.info.run_id)
        busy = run.info.status == "RUNNING" and not _is_dead(run.data.tags)
        if self._live or (run.info.status != "FINISHED" and not busy):
            self._store.client.set_terminated(run.info.run_id, status)

    def _send_artifact(self, run: Any, record: dict[str, Any]) -> None:
        places = [_kept(self._journal, record["sha256"], record["path"])]
        if self._workspace is not None:
            places.append(self._workspace / record["path"])
        for place in places:
            if place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == record["sha256"]:
                self._store.client.log_artifact(run.info.run_id, str(place), record["folder"] or None)
                return
        self._notes.append(f"artifact {record['path']} of run {record['run'] or 'parent'} is gone or has changed")

    def _send_dataset(self, run: Any, dataset: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        source = json.dumps({"uri": dataset.get("source", dataset["name"])})
        entity = Dataset(dataset["name"][:500], dataset["digest"][:36], "local", source)
        known = run.inputs.dataset_inputs if run.inputs else []
        if all(given.dataset.digest != entity.digest for given in known):
            self._store.client.log_inputs(run.info.run_id, [DatasetInput(entity, [])])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Third parties' warnings are not the user's; they would hide ours."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- the uploader's own process ---------------------------------------------------------------------------------


Say = Callable[[Mapping[str, Any]], None]


class _Job:
    """One journal in the hands of the uploader process."""

    def __init__(self, command: dict[str, Any], stores: dict[tuple[str, ...], _Store]) -> None:
        self.journal = Path(command["open"])
        self.command = command
        self.warned = False
        self.failed_at = -math.inf
        self.pause = RETRY_SECONDS
        self._replay: _Replay | None = None
        self._stores = stores

    def advance(self, say: Say) -> bool:
        """Bring in what is new. Returns whether the store has all that the journal holds."""
        uri, root, experiment = place = tuple(self.command[word] for word in ("uri", "root", "experiment"))
        try:
            if self._replay is None:
                store = self._stores.get(place) or _Store(uri, Path(root), experiment)
                self._stores[place] = store
                store.reap()
                with contextlib.suppress(Exception):  # it stays, and must not keep this journal from arriving
                    list(_bring_in(store))
                process = self.command["process"]
                self._replay = _Replay(store, self.journal, process=process, progress=lambda left: say({"left": left}))
            self._replay.advance()
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class; training must not notice
            self._replay = None
            self.pause = min(self.pause * 2, RETRY_SECONDS * 10) if self.warned else RETRY_SECONDS
            self.failed_at = time.monotonic()
            if not self.warned:
                say({"warning": _refusal(uri, error)})
            self.warned = True
            return False
        return True

    def close(self, say: Say) -> bool:
        """The last attempt; not made where one has just failed."""
        return time.monotonic() - self.failed_at > 15 and self.advance(say)

    def outlive(self, say: Say) -> None:
        """The stage is gone without a word: write down that it was killed, unless it has come back already."""
        if not self.journal.exists() or not self.close(say) or self._replay is None:
            return
        for _ in range(20):  # a stage's own workers may hold the journal for a while longer
            with contextlib.suppress(Exception), _owned(self.journal) as owned:
                if owned:
                    self._replay.abandon()
                    return
            time.sleep(0.5)


def _serve() -> None:
    """Commands on stdin, one JSON line each, until its end; answers on what was stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stage = os.getppid()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # MLflow prints links to runs
    os.nice(10)

    def say(answer: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

    jobs: dict[str, _Job] = {}
    stores: dict[tuple[str, ...], _Store] = {}
    unread = b""
    due = 0.0
    while True:
        wait = max(0.0, min(due - time.monotonic(), 1.0)) if jobs else 1.0
        if select.select([0], [], [], wait)[0]:
            received = os.read(0, 65536)
            if not received:
                break
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                command = json.loads(line)
                if "open" in command:
                    jobs[command["open"]] = _Job(command, stores)
                    due = 0.0
                elif command["close"] in jobs:
                    job = jobs.pop(command["close"])
                    say({"closed": command["close"], "arrived": job.close(say)})
        elif os.getppid() != stage:
            break
        if time.monotonic() >= due:
            for job in jobs.values():
                if time.monotonic() - job.failed_at > job.pause:
                    job.advance(say)
            due = time.monotonic() + TICK_SECONDS
    for job in jobs.values():
        job.outlive(say)


if __name__ == "__main__":
    with _quiet():
        if sys.argv[1:]:
            _bring_in_if_left(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        else:
            _serve()
