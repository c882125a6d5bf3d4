"""How a study's cells are run: which, in which order, with what in their environment, and how they end."""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.studies import run
from pipeline.studies.grid import Study
from pipeline.studies.machines import ThisMachine
from pipeline.studies.results import Results
from pipeline.workflow import progress
from pipeline.workflow.process import WATCHED, this_process
from stages import study as stage
from tests.processes import awaited, check_ended, start
from tests.project import ROOT
from tests.studies.small import ENDLESS, SMALL, TINY, changed, checkout, command, one_method, written

Begun = Callable[[], list[str]]
CELL = re.compile(r"cell-quick@(\S+)")


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begun:
    """What DVC is called with; in its place is a program that notes it, and fails if a stage's name ends in "full"."""
    calls, program = tmp_path / "calls", tmp_path / "dvc"
    program.write_text(
        f"""#!/bin/sh
        echo "$@" >> {calls}
        echo "$PYTHONPATH $OMP_NUM_THREADS ${WATCHED}" > {tmp_path}/environment
        case "$*" in *full) printf 'line %s\\n\\n' 1 2 3 4 5 6 7 8 9 10 11 12 13; exit 1;; esac
        """
    )
    program.chmod(0o755)
    monkeypatch.setattr(run, "dvc", lambda: str(program))
    return lambda: calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "pipeline.studies")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "pipeline.studies"]


def methods(**entries: dict[str, Any]) -> dict[str, Any]:
    quick = {**SMALL["quick"], "method": list(entries)}
    return {**SMALL, "quick": quick, "method": {name: {"seconds": 10, **entry} for name, entry in entries.items()}}


def test_the_longest_cells_begin_first_after_keys_and_data(
    tiny: Study, begun: Begun, said: Callable[[], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise one of them may be left over for one core at the end."""
    given = methods(int8={"arms": ["full"]}, autodim=SMALL["method"]["autodim"], drop={"arms": [], "slower": 100})
    table = tiny.folder / "results/quick/table.md"
    table.parent.mkdir(parents=True)
    table.write_text("the table\n")
    stage.run(changed(tiny, given), {}, ThisMachine(1))
    init, keys, data, *cells, report = begun()
    assert init.startswith("init --quiet ") and keys == "--wait-for-lock repro --single-item keys-quick"
    assert data == "--wait-for-lock repro --single-item data-quick@tiny"
    assert cells == [
        f"--wait-for-lock repro --single-item cell-quick@tiny-fm-{name}" for name in ("drop", "autodim", "int8")
    ]
    assert report == "repro --quiet --single-item report-quick" and capsys.readouterr().out == "the table\n\n"
    plan, *done = said()
    runs = 2 * 1 + 2 * 4 + 2 * 1  # seeds times searches and arms
    told = f"study overall, profile quick: 3 cells, 2 seeds, {runs} searches and trainings; about 35 min with 1 job, "
    assert plan == told + "less if some results exist already"
    numbers, names = zip(*(line.split(" ") for line in done), strict=True)
    assert numbers == ("[1/3]", "[2/3]", "[3/3]") and sorted(names) == sorted(CELL.findall(" ".join(cells)))
    code, threads, watched = (tmp_path / "environment").read_text().split()
    assert code.split(os.pathsep)[0] == str(ROOT) and int(threads) >= 1 and watched == this_process()


def test_cells_that_are_here_come_first_and_are_no_work_in_the_estimate(
    done: Study,
    tiny: Study,
    begun: Begun,
    said: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = Results(tiny).kept(tiny.cells()[0])
    kept.parent.mkdir(parents=True)
    shutil.copy(done.folder / "artifacts/cells/quick/tiny-fm-autodim.json", kept)
    Path(".dvc").mkdir()
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    run.StudyRun(tiny, ThisMachine(1)).run({})
    _, here, *cells = said()
    assert here == "finished already: 1 of 2 cells"
    assert cells == ["[1/2] tiny-fm-autodim", "[2/2] tiny-fm-full FAILED"]
    assert not [call for call in begun() if call.startswith("init")]
    *_, shown = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"study overall: 100%\|#+\| \[00:\d\d<00:00, 2/2 cells, [\d.e+]+ cells/h\]", shown)


def test_a_cell_that_fails_is_told_with_the_end_of_its_log_and_the_others_are_run(tiny: Study, begun: Begun) -> None:
    study = changed(tiny, methods(full=SMALL["method"]["full"] | {"slower": 9}, autodim=SMALL["method"]["autodim"]))
    with pytest.raises(SystemExit) as end:
        stage.run(study, {}, ThisMachine(1))
    head, failed, *tail = str(end.value).splitlines()
    assert head == "these cells failed; run the study again to retry them:"
    assert failed == f"tiny-fm-full: see {tiny.folder}/artifacts/logs/quick/tiny-fm-full.log"
    assert tail == [f"  line {number}" for number in range(2, 14)]
    assert [name for call in begun() for name in CELL.findall(call)] == ["tiny-fm-full", "tiny-fm-autodim"]
    assert not [call for call in begun() if "report" in call]


def test_cells_of_data_that_fail_are_not_begun(tiny: Study, begun: Begun) -> None:
    folder = written(tiny.folder.parents[1], one_method("autodim", {"dataset": ["half-full", "tiny"]}))
    datasets = {"quick": {name: {"params": TINY} for name in ("half-full", "tiny")}}
    (folder.parent / "datasets.yaml").write_text(yaml.safe_dump(datasets))
    [failed] = run.StudyRun(Study("overall", "quick", folder), ThisMachine(1)).run({})
    assert failed.startswith("half-full: see ")
    assert [name for call in begun() for name in CELL.findall(call)] == ["tiny-fm-autodim"]


def test_only_some_cells_are_run_and_reported(
    done: Study, tiny: Study, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[bool] = []
    monkeypatch.setattr(stage, "report", lambda study, partial=False: reported.append(partial))
    stage.run(tiny, {"method": ["autodim"], "backbone": ["fm"]}, ThisMachine(1))
    assert [name for call in begun() for name in CELL.findall(call)] == ["tiny-fm-autodim"] and reported == [True]


def act(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Give the command line to the stage."""
    monkeypatch.setattr(sys, "argv", ["study", *words])
    monkeypatch.setattr(stage.process, "main", lambda act, arguments, kept: act())
    stage.main()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=full,autodimm"], r"quick, has no method autodimm; it has autodim, full"),
        (["methods=full"], r"study overall has no key methods; it has dataset, backbone, method"),
        (["full"], r"keys must be written as key=value, got 'full'"),
        (["method=full", "--jobs", "0"], r"--jobs must be at least 1, got 0"),
        (["method=full", "--on", "auto"], 'the package ray; install it: pip install -e ".[ray]"'),
    ],
)
def test_what_a_study_does_not_have_is_told_with_what_it_has(
    tiny: Study, begun: Begun, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setenv("DVC_ROOT", "")
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.setattr(stage, "Study", lambda name, profile: Study(name, profile, tiny.folder))
    with pytest.raises(ValueError, match=re.escape(message)):
        act(monkeypatch, "run", "overall", "--only", *words)
    assert not begun() and not Path(".dvc").exists()


# --- how a study ends


def study_with_a_waiting_dvc() -> None:
    """Run the study of the working directory; in the place of DVC is a program that waits in the cells."""
    program = str(Path("../../dvc").resolve())
    run.dvc = lambda: program
    stage.run(Study("overall", "quick", Path.cwd()), {}, ThisMachine(1))


def test_a_terminated_study_begins_no_further_cell_and_ends_those_that_run(
    tiny: Study, tmp_path: Path, forks: None
) -> None:
    waiting, program = tmp_path / "waiting", tmp_path / "dvc"
    waiting.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in *cell-*) touch {waiting}/$$; exec sleep 60;; esac\n')
    program.chmod(0o755)
    running = start(study_with_a_waiting_dvc, tiny.folder, tmp_path / "printed.txt")
    cell = psutil.Process(int(awaited(lambda: next(waiting.iterdir(), None), running.is_alive).name))
    running.terminate()
    running.join(20)
    assert running.exitcode == 143
    check_ended([cell])
    assert [path.name for path in waiting.iterdir()] == [str(cell.pid)]


@pytest.fixture
def second(done: Study, tmp_path: Path) -> Path:
    """A checkout of its own, whose code tells where it is, with a study whose only cell trains for hours."""
    place = checkout(tmp_path / "second", one_method("full", params=ENDLESS, arms=["full"]), done)
    with (place / "stages/__init__.py").open("a") as code:
        code.write('print("the code of", __file__, flush=True)\n')
    return place


def test_a_second_checkout_runs_its_own_code_and_a_killed_study_takes_its_cells_along(
    second: Path, tmp_path: Path
) -> None:
    """The first checkout can be imported too, as with an editable installation. DVC runs the cell; the rest is here."""
    printed = tmp_path / "printed.txt"
    words, environment = command(second, "--jobs", "1")
    with printed.open("w") as file:
        study = subprocess.Popen(words, cwd=second, env=environment, stdout=file, stderr=file)
    log = second / "studies/own/artifacts/logs/quick/tiny-fm-full.log"
    try:
        awaited(lambda: next(second.glob(".pipeline/tracking/*.jsonl"), None), lambda: study.poll() is None)
        employed = psutil.Process(study.pid).children(recursive=True)
    finally:
        study.kill()
        study.wait()
    assert len(employed) > 1  # DVC and the cell
    check_ended(employed)
    assert f"the code of {second}/stages/__init__.py" in log.read_text() and f"of {ROOT}/" not in log.read_text()
    assert f"the code of {second}/stages/__init__.py" in printed.read_text()
