"""The comparison of agents as tables, figures and a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from pipeline.chain import figures
from pipeline.chain.compare import SAME, UNTRAINED
from pipeline.metrics.difference import LEVEL, difference
from pipeline.reporting import page, style
from pipeline.reporting.statistics import holm
from pipeline.reporting.text import Table, mean_sd, p_value, with_interval
from pipeline.workflow.outputs import whole

DIGITS = 3
OURS = "deepchain"
TITLES = {SAME: "where the log comes from", "test": "other users", "shifted": "other users, other answers"}
OF_SESSIONS = {
    "steps": "steps",
    "clicks": "clicks",
    "orders": "orders",
    "on_detail": "share of steps on the detail page",
    "leaves": "share of steps that end the session",
}


@dataclass(frozen=True)
class Frames:
    """What was measured.

    Args:
        rows: of `pipeline.chain.compare.Scene.run`.
        qualities: of `pipeline.chain.compare.Scene.quality`.
        bounds: ``world``, ``seed``, ``policy`` and ``reward`` of what is known exactly.
    """

    rows: pd.DataFrame
    qualities: pd.DataFrame
    bounds: pd.DataFrame

    def of_world(self, world: str) -> Frames:
        """The part on one world."""
        return Frames(*(frame[frame.world == world] for frame in (self.rows, self.qualities, self.bounds)))


def tables(found: Frames) -> list[Table]:
    """All tables, world by world."""
    return [table for world in found.rows.world.unique() for table in _of_world(world, found.of_world(world))]


def _of_world(world: str, found: Frames) -> Iterator[Table]:
    numbers = sorted(found.rows.transitions.unique())
    most = found.rows[found.rows.transitions == numbers[-1]]
    yield _rewards(f"{world}: reward per session, {numbers[-1]:,} known transitions", most, found.bounds)
    if found.rows.seed.nunique() > 1 and OURS in set(most.policy):
        yield _differences(world, most)
    yield _sessions(world, most)
    if len(numbers) > 1:
        yield from (_curve(world, test, rows) for test, rows in found.rows.groupby("test", sort=False))
    yield _qualities(world, found.qualities)


def _ordered(rows: pd.DataFrame) -> list[str]:
    """The policies, the best in the world of the log first."""
    same = rows[rows.test == SAME]
    return [str(name) for name in same.groupby("policy").reward.mean().sort_values(ascending=False).index]


def _rewards(title: str, rows: pd.DataFrame, bounds: pd.DataFrame) -> Table:
    tests = list(rows.test.unique())
    best = bounds[bounds.policy == "optimum"].set_index("seed").reward
    lines = []
    for policy in _ordered(rows):
        own = rows[rows.policy == policy]
        line = [policy, *(mean_sd(own[own.test == test].reward, DIGITS) for test in tests)]
        if len(best):
            same = own[own.test == SAME].set_index("seed").reward
            line.append(_share(same, best))
        lines.append(line)
    for name, of_bound in bounds.groupby("policy", sort=False):
        exact = of_bound.set_index("seed").reward
        empty = [""] * (len(tests) - 1)
        lines.append([f"{name}, exact", mean_sd(exact, DIGITS), *empty, _share(exact, best)])
    head = ["policy", *(TITLES.get(test, test) for test in tests), *(["of the optimum"] if len(best) else [])]
    note = "Means over the seeds ± the standard deviation. Each seed has users, a log and agents of its own."
    return Table(title, head, lines, note)


def _share(reward: pd.Series, best: pd.Series) -> str:
    share = (reward / best).dropna()
    return f"{100 * share.mean():.1f} %" + (f" ± {100 * share.std():.1f}" if len(share) > 1 else "")


def _differences(world: str, rows: pd.DataFrame) -> Table:
    """DeepChain minus each of the others, paired by seed, whose sessions meet the same users with the same luck."""
    tests = list(rows.test.unique())
    others = [name for name in _ordered(rows) if name != OURS]
    reward = rows.set_index(["test", "policy", "seed"]).sort_index().reward
    found = {
        (test, other): difference(reward[test, OURS].tolist(), reward[test, other].tolist())
        for test in tests
        for other in others
    }
    corrected = dict(zip(found, holm([one.p_value for one in found.values()]), strict=True))
    lines = [
        [other, *(text for test in tests for text in _cells(found[test, other], corrected[test, other]))]
        for other in others
    ]
    head = ["minus", *(text for test in tests for text in (TITLES.get(test, test), "p"))]
    note = f"{LEVEL:.0%} intervals cover seeds with their users and sessions. p is corrected for this table (Holm)."
    return Table(f"{world}: {OURS} minus the others, reward per session", head, lines, note)


def _cells(one: object, corrected: float | None) -> tuple[str, str]:
    return with_interval(one, DIGITS).replace(", seeds alone", ""), p_value(corrected)  # type: ignore[arg-type]


def _sessions(world: str, rows: pd.DataFrame) -> Table:
    same = rows[rows.test == SAME]
    lines = [
        [policy, *(mean_sd(same[same.policy == policy][name], DIGITS) for name in OF_SESSIONS)]
        for policy in _ordered(rows)
    ]
    return Table(f"{world}: sessions", ["policy", *OF_SESSIONS.values()], lines, "In the world of the log.")


def _curve(world: str, test: str, rows: pd.DataFrame) -> Table:
    numbers = sorted(rows.transitions.unique())
    lines = []
    for policy in dict.fromkeys(rows.policy):
        own = rows[rows.policy == policy]
        lines.append([str(policy), *(mean_sd(own[own.transitions == n].reward, DIGITS) for n in numbers)])
    title = f"{world}: reward per session by known transitions, {TITLES.get(test, test)}"
    return Table(title, ["policy", *(f"{number:,}" for number in numbers)], lines)


def _qualities(world: str, rows: pd.DataFrame) -> Table:
    lines = [
        [f"{number:,}", mean_sd(of_number.logloss), mean_sd(of_number.calibration_error)]
        for number, of_number in rows.groupby("transitions")
    ]
    head = ["known transitions", "log-loss", "calibration error"]
    note = "On transitions that are held out; the mean over skip, click, order and leave."
    return Table(f"{world}: the behaviour model", head, lines, note)


def drawings(found: Frames) -> dict[str, partial[Figure]]:
    """What draws the figures, by the name of the file."""
    made: dict[str, partial[Figure]] = {}
    for world in found.rows.world.unique():
        part = found.of_world(world)
        most = part.rows[part.rows.transitions == part.rows.transitions.max()]
        optimum = part.bounds[part.bounds.policy == "optimum"].reward.mean() if len(part.bounds) else None
        panels = {
            TITLES.get(test, test): {
                name: most[(most.test == test) & (most.policy == name)].reward.tolist() for name in _ordered(most)
            }
            for test in most.test.unique()
        }
        made[f"reward-{world}"] = partial(figures.rewards, panels, world, optimum)
        if part.rows.transitions.nunique() > 1:
            learned = part.rows[~part.rows.policy.isin([name for name in UNTRAINED if name != "greedy"])]
            for test, rows in learned.groupby("test", sort=False):
                curves = {
                    str(name): {n: of_number.reward.tolist() for n, of_number in own.groupby("transitions")}
                    for name, own in rows.groupby("policy", sort=False)
                }
                title = f"{world}, {TITLES.get(str(test), str(test))}"
                made[f"curve-{world}-{test}"] = partial(figures.curves, curves, title, optimum)
    return made


def write(found: Frames, folder: Path, about: Sequence[str]) -> None:
    """Write the folder: ``table.md``, ``rewards.csv``, ``behaviour.csv``, ``bounds.csv``, figures and ``report.html``.

    Args:
        found: what was measured.
        folder: to write, whole or not at all.
        about: paragraphs on what was compared.
    """
    made = tables(found)
    with whole(folder) as draft:
        draft.mkdir()
        for name, frame in (("rewards", found.rows), ("behaviour", found.qualities), ("bounds", found.bounds)):
            frame.to_csv(draft / f"{name}.csv", index=False, float_format="%.6g")
        (draft / "table.md").write_text("\n\n".join([*about, *(table.markdown() for table in made)]) + "\n")
        drawn = [name for name, draw in drawings(found).items() if style.attempt(draw, draft / name)]
        images = [page.image(draft / f"{name}.svg", name) for name in drawn]
        body = [
            piece
            for table in made
            for piece in (page.titled(table.title, table.note), page.table(table.head, table.rows))
        ]
        sections = [page.Section("Reward per session", [*images, *body])]
        lead = [page.paragraph(text) for text in about]
        (draft / "report.html").write_text(page.page("Whole-chain recommendations", sections, lead))
