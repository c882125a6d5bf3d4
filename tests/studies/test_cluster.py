"""Studies on a Ray cluster of two nodes, which are processes of this machine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.studies import run
from pipeline.studies.cluster import Cluster
from pipeline.studies.grid import Study
from tests.processes import awaited, check_ended
from tests.servers import free_address
from tests.studies.small import ENDLESS, SMALL, changed, checkout, command, figures, one_method

ray = pytest.importorskip("ray", reason="needs the extra ray")


NODES = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 0, "include_dashboard": False, "ray_client_server_port": int(sys.argv[1])}
nodes = Cluster(initialize_head=True, head_node_args=head)
for _ in range(2):
    nodes.add_node(num_cpus=1)
print("ready", flush=True)
sys.stdin.read()
nodes.shutdown()
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster: a head, which offers nothing, and two nodes with a processor each."""
    host, log = free_address().removeprefix("http://"), tmp_path_factory.mktemp("nodes") / "log"
    words, pipe = [sys.executable, "-c", NODES, host.partition(":")[2]], subprocess.PIPE
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "false"}  # otherwise the head refuses some clients
    with (
        log.open("w") as file,
        subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, stderr=file, text=True) as nodes,
    ):
        assert nodes.stdin is not None and nodes.stdout is not None
        assert "ready\n" in nodes.stdout, log.read_text()
        yield f"ray://{host}"
        nodes.communicate()  # the end of its input ends it


@pytest.fixture
def cluster(address: str, tiny: Study) -> Iterator[Cluster]:
    """The cluster, for a study whose stages are a program in the place of DVC."""
    yield Cluster(address)
    ray.shutdown()


def cells(place: Path) -> list[psutil.Process]:
    """The processes of DVC and of the stages that run cells of a `checkout`, wherever they were started."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = " ".join(process.info["cmdline"] or [])
        if (process.info["cwd"] or "").startswith(str(place)) and ("cell-quick@" in words or "study cell" in words):
            found.append(process)
    return found


def test_the_results_are_the_files_that_this_machine_would_write(address: str, done: Study, tmp_path: Path) -> None:
    place = checkout(tmp_path / "shared", SMALL, done)
    words, environment = command(place, "--on", address, "--only", "backbone=fm")
    for finished in False, True:
        study = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert study.returncode == 0, study.stdout + study.stderr
        assert ("finished already: 2 of 2 cells" in study.stdout) == finished
        assert ("with 2 jobs" in study.stdout) and "[2/2]" in study.stdout
    kept: list[dict[str, Any]] = [
        json.loads((folder / "artifacts/cells/quick/tiny-fm-autodim.json").read_text())
        for folder in (place / "studies/own", done.folder)
    ]
    assert kept[0]["key"] == kept[1]["key"] and figures(kept[0]) == figures(kept[1])
    lock = (place / "studies/own/dvc.lock").read_text()
    assert "cell-quick@tiny-fm-autodim" in lock and "cell-quick@tiny-fm-full" in lock


def test_a_cell_that_dies_with_its_node_is_told_in_one_line_and_the_others_are_run(
    cluster: Cluster, tiny: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, program = tmp_path / "calls", tmp_path / "dvc"
    program.write_text(
        f"""#!/bin/sh
        case "$1" in init) exit;; esac # here, not on a node
        echo "$4 $OMP_NUM_THREADS $PIPELINE_TRACKING" >> {calls}
        case "$4" in *autodim) kill -9 $PPID;; *full) exit 3;; esac
        """
    )
    program.chmod(0o755)
    monkeypatch.setattr(run, "dvc", lambda: str(program))
    monkeypatch.delenv("PIPELINE_TRACKING")
    given = {**SMALL, "quick": {**SMALL["quick"], "method": ["autodim", "full", "int8"]}}
    given["method"] = {**SMALL["method"], "int8": {"arms": ["full"]}}
    died, failed = sorted(run.StudyRun(changed(tiny, given), cluster).run({}))
    assert died.startswith("tiny-fm-autodim: ") and "\n" not in died and "died" in died
    assert failed == f"tiny-fm-full: see {tiny.folder}/artifacts/logs/quick/tiny-fm-full.log"
    begun = sorted(calls.read_text().splitlines())
    names = ["cell-quick@tiny-fm-autodim", "cell-quick@tiny-fm-full", "cell-quick@tiny-fm-int8"]
    assert begun == [f"{name} 1 journal" for name in [*names, "data-quick@tiny", "keys-quick"]]


def test_a_node_that_does_not_see_the_folder_says_so(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/elsewhere"))
    with pytest.raises(RuntimeError, match=r"^the node .* has no /elsewhere; all nodes must see the"):
        cluster.run(["true"], Path("output"))


def test_ctrl_c_ends_the_cells_on_the_nodes(address: str, done: Study, tmp_path: Path) -> None:
    place = checkout(tmp_path / "shared", one_method("full", params=ENDLESS, arms=["full"]), done)
    words, environment = command(place, "--on", address)
    printed = tmp_path / "printed.txt"
    with printed.open("w") as file:
        study = subprocess.Popen(words, cwd=place, env=environment, stdout=file, stderr=file)
    try:
        awaited(lambda: next(place.glob(".pipeline/tracking/*.jsonl"), None), lambda: study.poll() is None)
        running = cells(place)
        study.send_signal(signal.SIGINT)
        study.wait(60)
    finally:
        study.kill()
        study.wait()
    assert len(running) >= 2 and study.returncode == 130  # DVC and the cell
    assert "interrupted: finished cells and the last checkpoints are kept" in printed.read_text()
    check_ended(running)


def test_what_is_no_cluster_is_told(monkeypatch: pytest.MonkeyPatch, tiny: Study) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no answer\nadvice")))
    with pytest.raises(
        ValueError, match=r"^--on ray://nowhere:1: the Ray cluster cannot be used: no answer; docs/deploy"
    ):
        Cluster("ray://nowhere:1")
