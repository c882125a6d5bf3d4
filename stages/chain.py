"""Outside the main job: agents of two pages in simulated sessions (DeepChain). `make chain` runs it.

In every world and for every seed, a log is written, a behaviour model and agents learn from it, and all of them play
sessions with new luck in the same world and, where the world names some, in others. With ``chain.users: encoded``, it
reads ``artifacts/encoded``, which must hold interactions. Writes the folder ``artifacts/chain``: ``report.html`` and
``table.md`` (all tables), ``rewards.csv``, ``behaviour.csv`` and ``bounds.csv`` (all figures), and pictures.

Finished passes, behaviour models and the last checkpoints of agents are kept in ``.pipeline/chain``. After an
interruption the same command goes on from them, with the same results.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data.encoded import Encoded
from pipeline.tracking.stage import beside_tracker
from pipeline.tracking.tracker import Run, Tracker
from pipeline.workflow import process
from pipeline.workflow.chain import Chain
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import read_json, write_json
from pipeline.workflow.params import Params
from pipeline.workflow.places import ENCODED, root, work
from pipeline.workflow.plug import file_of, names
from pipeline.workflow.progress import progress, ticking
from pipeline.workflow.workers import Send, run_jobs, start_server

if TYPE_CHECKING:
    from pipeline.chain.compare import Pass, Scene

OUT = Path("artifacts/chain")
WORLDS = "chain/worlds"
REMEDY = "there may be too little memory: lower chain.workers or chain.transitions in params.yaml"


class Job(NamedTuple):
    """One world with one seed, and what is left to do there."""

    scene: Scene
    todo: list[Pass]


def run() -> None:
    from pipeline.chain.compare import passes, scenes, worlds  # torch, and thus after the parameters

    started = time.monotonic()
    params = Params.of_stage("chain")
    settings = params.chain
    folder = str(ENCODED) if settings.users == "encoded" else None
    key = _key(params)
    kept = work("chain", key)
    for name in settings.worlds:  # so that a wrong option is told before anything is done
        worlds(settings, name, settings.seeds[0], folder)
    every = list(scenes(settings, folder, kept))
    jobs = [Job(scene, [one for one in passes(settings) if not _file(scene, one).exists()]) for scene in every]
    jobs = [job for job in jobs if job.todo]
    if settings.workers > 1:
        process.share_cores(settings.workers)
        start_server("pipeline.chain.compare")
    users = settings.users if folder is None else Encoded.load(folder).raw_sha256
    title = f"agents in {', '.join(settings.worlds)}"
    configuration = {**params.to_dict(), "users": users}
    with beside_tracker("chain", key, users, Params.load(), configuration, title) as tracker:
        runs = _Runs(every, settings, tracker)
        _work_off(jobs, settings, runs)
        runs.end()
        figures = _write(every, settings)
        tracker.parent(metrics=figures, artifacts=[OUT / "report.html", OUT / "table.md"])
    done = sum(len(job.todo) for job in jobs)
    print(f"chain: {done} of {len(every) * len(passes(settings))} passes, {time.monotonic() - started:.0f} s")


def work_off(job: Job, send: Send) -> None:
    """The work of a worker: send (pass, step, names, values) of every loss, and (pass, rows) of every pass."""
    for one in job.todo:

        def record(step: int, names: tuple[str, ...], values: Sequence[float], one: Pass = one) -> None:
            send((one, step, names, values))

        send((one, [*job.scene.run(one, record)], job.scene.quality(one.transitions, record)))


class _Runs:
    """The run of every policy with every seed, in every world. It is opened again for what it learned before a kill."""

    def __init__(self, every: list[Scene], settings: Chain, tracker: Tracker) -> None:
        self._every, self._settings, self._tracker = every, settings, tracker
        self._runs: dict[str, Run] = {}

    def of(self, scene: Scene, one: Pass) -> Run:
        name = f"{scene.name}/{one.policy}/seed-{scene.seed}"
        if name not in self._runs:
            tags = {"world": scene.name, "agents": one.policy}
            self._runs[name] = self._tracker.run(name, seed=scene.seed, tags=tags)
        return self._runs[name]

    def losses(self, scene: Scene, one: Pass, step: int, names: Sequence[str], values: Sequence[float]) -> None:
        prefix = f"{one.transitions}/" if len(self._settings.transitions) > 1 else ""
        self.of(scene, one).metrics(step, {f"{prefix}{name}": v for name, v in zip(names, values, strict=True)})

    def end(self) -> None:
        """Record the figures of all tests, and end the runs."""
        from pipeline.chain.compare import passes

        for scene in self._every:
            for one in passes(self._settings):
                for row in read_json(_file(scene, one))["rows"]:
                    figures = {f"{row['test']}/{name}": v for name, v in row.items() if isinstance(v, float)}
                    self.of(scene, one).metrics(one.transitions, figures)
        for run in self._runs.values():
            run.end()


def _work_off(jobs: list[Job], settings: Chain, runs: _Runs) -> None:
    """Run all jobs. The tracker's journal belongs to this process, so workers send their records."""
    total = sum(len(job.todo) for job in jobs)
    with ticking(progress(total=total, desc="chain", unit=" passes")) as bar:
        for number, (one, *sent) in run_jobs(work_off, jobs, settings.workers, REMEDY):
            scene = jobs[number].scene
            if len(sent) == 3:
                runs.losses(scene, one, *sent)
                continue
            rows, quality = sent
            write_json(_file(scene, one), {"rows": rows, "quality": quality})
            shutil.rmtree(scene.checkpoint(one), ignore_errors=True)
            place = f"{scene.name}, {one.policy}, seed {scene.seed}, {one.transitions:,} transitions"
            with bar.external_write_mode():
                print(f"chain: {place}: reward {rows[0]['reward']:.3f} per session", flush=True)
            bar.update(1)


def _write(every: list[Scene], settings: Chain) -> dict[str, float]:
    """Write the report; the mean rewards, for comparisons in MLflow."""
    import pandas as pd

    from pipeline.chain.compare import passes
    from pipeline.chain.report import Frames, write

    kept = [(scene, read_json(_file(scene, one))) for scene in every for one in passes(settings)]
    rows = pd.DataFrame([row for _, of_pass in kept for row in of_pass["rows"]])
    qualities = pd.DataFrame([of_pass["quality"] for _, of_pass in kept])
    qualities = qualities.drop_duplicates(["world", "seed", "transitions"])
    bounds: list[dict[str, Any]] = [
        {"world": scene.name, "seed": scene.seed, "policy": name, "reward": reward}
        for scene in every
        for name, reward in scene.bounds().items()
    ]
    frame = pd.DataFrame(bounds, columns=["world", "seed", "policy", "reward"])
    seeds = ", ".join(map(str, settings.seeds))
    about = [
        f"A simulation study: sessions on two pages in {', '.join(settings.worlds)}, seeds {seeds}; each figure is of "
        f"{settings.sessions:,} sessions of at most {settings.longest} steps for each seed. A click is worth "
        f"{settings.rewards.click:g}, an order {settings.rewards.order:g}."
    ]
    write(Frames(rows, qualities, frame), OUT, about)
    means = rows[rows.transitions == max(settings.transitions)].groupby(["world", "test", "policy"]).reward.mean()
    return {"/".join(map(str, place)): float(value) for place, value in means.items()}


def _file(scene: Scene, one: Pass) -> Path:
    return scene.work / f"{one.policy}-{one.transitions}.json"


def _key(params: Params) -> str:
    """Identifies what a pass depends on besides its seed and its agents, so that more of them find the others done."""
    values = params.chain.model_dump(mode="json", exclude={"seeds", "agents"})
    code = ["pipeline/chain/compare.py", *(file_of(WORLDS, name) for name in names(WORLDS))]
    inputs = [root() / file for file in params.chain.files]
    inputs += [ENCODED / "schema.json"] if params.chain.users == "encoded" else []
    return content_key(code, values, inputs=inputs)


if __name__ == "__main__":
    process.main(run, kept="finished passes and the last checkpoints are kept, and the same command goes on from them")
