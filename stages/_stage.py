"""What all stages share: parameters, a fingerprint, outputs that appear whole or not at all, an orderly end."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_type_hints

import yaml

from pipeline.workflow.code import content_key
from pipeline.workflow.plug import Least, check_value, names

if TYPE_CHECKING:
    from pipeline.tracking import Tracker

RAW = Path("artifacts/raw")
ENCODED = Path("artifacts/encoded")
SCORES = Path("artifacts/search/scores.json")
MODELS = Path("artifacts/models")
POLL_SECONDS = 1.0
BESIDE = ("sweep", "stream")  # sections of params.yaml that no stage of the main job reads

Whole = Annotated[int, Least(0)]
Count = Annotated[int, Least(1)]
Rate = Annotated[float, Least(0)]
BatchSize = Annotated[int, Least(3)]  # two would leave some batch of one row, which BatchNorm refuses


class Named(TypedDict):
    name: str


class Plug(Named, total=False):
    options: Mapping[str, Any] | None


class Method(Named, total=False):
    options: Mapping[str, Mapping[str, Any] | None] | None  # by name of the method


class Dataset(Plug):
    path: str


class Search(TypedDict):
    candidates: str | Mapping[str, str]
    batch_size: BatchSize
    epochs: Count
    lr: Rate
    weight_decay: Rate
    seed: Whole
    checkpoint_seconds: Rate
    architecture: Mapping[str, Any]


class Derive(TypedDict):
    budget: Any  # `pipeline.budget.in_bytes` says what it may be


class Retrain(TypedDict):
    seeds: Sequence[Whole]
    batch_size: BatchSize
    epochs: Count
    patience: Count | None
    lr: Rate
    weight_decay: Rate
    checkpoint_seconds: Rate


class Evaluate(TypedDict):
    resamples: Count
    seed: Whole


class Sweep(TypedDict):
    name: str
    trials: Count
    seed: Whole
    sampler: Literal["tpe", "random", "nsga2"]
    objective: Literal["pareto", "budget"]
    budget: Any  # as derive.budget
    space: Mapping[str, Any]  # `stages._space.read` says what it may be
    storage: str | None
    workers: Count


class Stream(TypedDict):
    dims: Sequence[Count]
    seeds: Sequence[Whole]
    rows: Count | None
    batch_size: BatchSize
    lr: Rate
    arch_lr: Rate
    windows: Count


class Params(TypedDict):
    """What params.yaml holds, as far as no signature says it: options are those of the function they go to."""

    dataset: Dataset
    encode: Mapping[str, Any]
    dim: Count
    candidates: Mapping[str, Sequence[Whole]]
    method: Method
    backbone: Plug
    search: Search
    derive: Derive
    retrain: Retrain
    evaluate: Evaluate
    sweep: Sweep
    stream: Stream


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads 1e-05 as a number, as DVC does, which writes it so."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def parsed(text: str) -> Any:
    """YAML, read as DVC reads it."""
    return yaml.load(text, _Loader)


def root() -> Path:
    """The repository itself, even where `dvc exp run --temp` works in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def params(stage: str) -> dict[str, Any]:
    """The parameters that ``dvc.yaml`` declares for a stage, and no others.

    A stage can therefore not depend on a parameter that DVC does not know it depends on.

    Raises:
        ValueError: if one is missing, or anything in params.yaml is not as `Params` says.
    """
    declared = in_dvc(stage).get("params", [])
    values = checked(all_params())
    given: dict[str, Any] = {}
    for key in declared:
        source, target = values, given
        *parents, last = key.split(".")
        for parent in parents:
            source, target = source.get(parent, {}), target.setdefault(parent, {})
        if last not in source:
            raise ValueError(f"params.yaml has no {key!r}, which stage {stage!r} needs")
        target[last] = source[last]
    return given


def in_dvc(stage: str) -> dict[str, Any]:
    """What DVC is told of a stage. One that plain ``dvc repro`` leaves out has a dvc.yaml in a folder of its name."""
    own = Path(stage) / "dvc.yaml"
    record: dict[str, Any] = yaml.safe_load((own if own.is_file() else Path("dvc.yaml")).read_text())["stages"][stage]
    return record


def configuration() -> dict[str, Any]:
    """The parameters by which MLflow tells runs of the pipeline apart: all that some stage of it reads."""
    return {section: value for section, value in _of_the_method(all_params()).items() if section not in BESIDE}


def all_params() -> dict[str, Any]:
    """The whole of params.yaml; no stage computes with it."""
    try:
        values: dict[str, Any] = parsed(Path("params.yaml").read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"params.yaml is no YAML: {' '.join(str(error).split())}; correct it") from error
    check_value(values, Mapping[str, Any], "params.yaml")
    return values


def checked(values: dict[str, Any]) -> dict[str, Any]:
    """All of params.yaml, so that a slip in ``evaluate`` shows before the search and not after it.

    Options of methods stand under the methods' names, so that another name alone is another method; the result has
    none but those of the method that is named.

    Raises:
        ValueError: if anything is not as `Params` says.
    """
    values = copy.deepcopy(values)
    for section, hint in get_type_hints(Params, include_extras=True).items():
        if section in values:
            check_value(values[section], hint, f"params.yaml: {section}")
    for section in {"dataset", "method", "backbone"} & set(values):
        values[section]["options"] = values[section].get("options") or {}
    if "method" in values:
        for name in values["method"]["options"]:
            if name.replace("-", "_") not in names("methods"):
                there = ", ".join(names("methods"))
                raise ValueError(f"params.yaml: method.options: no method {name!r}; options stand under {there}")
    seeds = values.get("retrain", {}).get("seeds", [0])
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"params.yaml: retrain: seeds must be distinct, and at least one, however {seeds}")
    return _of_the_method(values)


def _of_the_method(values: dict[str, Any]) -> dict[str, Any]:
    """The same without the options of methods that are not the one that is named."""
    if "method" not in values:
        return values
    method = values["method"]
    name = method["name"]
    return {**values, "method": {**method, "options": {name: (method.get("options") or {}).get(name) or {}}}}


def read(path: Path) -> Any:
    """A JSON file that an earlier stage wrote."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise broken(path, error) from error


def broken(path: Path, why: object) -> ValueError:
    """The error for a file that is not as the stage that wrote it left it, or that was made under other settings."""
    return ValueError(f"{path}: {why}; delete it and run `dvc repro`, which makes it again")


def fingerprint(stage: str, contents: Iterable[str | Path] = ()) -> str:
    """Names what a stage is about to compute: its parameters, its code, and the contents of small inputs.

    Args:
        stage: supplies the declared parameters and, from ``deps`` in dvc.yaml, the code files.
        contents: files whose bytes count, e.g. a schema.json, which holds checksums of the large arrays.
    """
    return content_key(code(stage), params(stage), inputs=contents)


def code(stage: str) -> list[str]:
    """The files in which a stage's code starts: its own, and those of the plugs that it is told to use."""
    deps = [re.sub(r"\$\{([\w.]+)\}", _value, path) for path in in_dvc(stage)["deps"]]
    return sorted(path for path in deps if path.endswith(".py"))


def _value(reference: re.Match[str]) -> str:
    """What ``${section.key}`` in dvc.yaml stands for."""
    value: Any = all_params()
    for key in reference[1].split("."):
        value = value[key]
    return str(value).replace("-", "_")


def tracker(
    stage: str,
    key: str,
    raw_sha256: str | None = None,
    later: bool = False,
    given: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> Tracker:
    """Where a stage's runs are recorded: MLflow, through ``artifacts/runs/<stage>.jsonl``.

    Args:
        key: names what the stage computes, e.g. its `fingerprint`.
        raw_sha256: checksum of the raw table, by which MLflow tells data sets apart; schema.json's if left out.
        later: do not wait for the upload; for stages that are shorter than it.
        given: what names the parent run; `configuration` if left out, and then the journal is an output of the stage.
        title: of the parent run.
    """
    from pipeline.tracking import Tracker

    plain = configuration()
    publish = f"artifacts/runs/{stage}.jsonl" if given is None else None
    tags = {name: plain[name]["name"] for name in ("dataset", "backbone", "method")}
    digest = raw_sha256 or read(ENCODED / "schema.json")["raw_sha256"]
    dataset = {"name": plain["dataset"]["name"], "digest": digest[:36], "source": plain["dataset"]["path"]}
    named = given or plain
    return Tracker(root(), stage, key, named, tags=tags, dataset=dataset, publish=publish, later=later, title=title)


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A place to write ``path`` (file or folder) to; it becomes ``path`` only if the block ends without error."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        yield draft
        if final.is_dir() and draft.exists():
            shutil.rmtree(final)
        draft.replace(final)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)


def main(run: Callable[[], None], arguments: bool = False) -> None:
    """Run a stage as a process: end when DVC ends, end in order on SIGTERM, report bad input in one line.

    Args:
        arguments: whether it takes some. To one that takes none they are a request for help.
    """
    if sys.argv[1:] and not arguments:
        print((sys.modules["__main__"].__doc__ or "").strip())
        asked = sys.argv[1:] in (["--help"], ["-h"])
        sys.exit(0 if asked else f"error: it takes no arguments, however {sys.argv[1:]}; its parameters: params.yaml")
    signal.signal(signal.SIGTERM, _terminate)
    watched = _dvc_ancestors()
    if watched:
        threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    try:
        run()
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("PIPELINE_TRACEBACK"):
            traceback.print_exc()
        remedy = ""
        if isinstance(error, FileNotFoundError) and Path(str(error.filename)).parts[:1] == RAW.parts[:1]:
            error, remedy = FileNotFoundError(f"there is no {error.filename}"), "; run `dvc repro`, which makes it"
        print(f"error: {error}{remedy}\n(the traceback is shown with PIPELINE_TRACEBACK=1)", file=sys.stderr)
        sys.exit(1)


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def _dvc_ancestors() -> list[tuple[int, float]]:
    """(pid, start time) of the processes between this one and the dvc that started it, dvc included."""
    if "DVC_STAGE" not in os.environ:
        return []
    import psutil

    chain = []
    for parent in psutil.Process().parents():
        chain.append((parent.pid, parent.create_time()))
        with contextlib.suppress(psutil.Error):
            if any("dvc" in Path(word).name for word in parent.cmdline()[:3]):
                return chain
    return chain[:1]


def end_with(pid: int) -> None:
    """End when the process with this id does."""
    import psutil

    try:
        watched = [(pid, psutil.Process(pid).create_time())]
    except psutil.NoSuchProcess:
        sys.exit(1)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _end_with(watched: list[tuple[int, float]]) -> None:
    """SIGTERM to dvc does not reach the stage it runs; without this the stage would train on, unrecorded."""
    import psutil

    while True:
        time.sleep(POLL_SECONDS)
        for pid, started in watched:
            try:
                alive = psutil.Process(pid).create_time() == started
            except psutil.NoSuchProcess:
                alive = False
            if not alive:
                os.kill(os.getpid(), signal.SIGTERM)
                return
