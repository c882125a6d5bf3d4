"""The text that compares experiments: what each says to deploy, its figures on test, and the settings that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Any

from pipeline.tracking.experiments import Run
from pipeline.tracking.identity import flat
from pipeline.workflow.params import BESIDE

WIDTH = 100  # characters of a line
LONGEST = 30  # characters of a value
GAP = "  "
OPTIONS = "method.options."
UNKNOWN = "-"  # a figure


def compared(runs: Sequence[Run], now: datetime) -> str:
    """A block for each run, in lines of `WIDTH`: its figures, and below them the settings that differ between the runs.

    Args:
        runs: at least one.
        now: a time of the same day is shown without its day.
    """
    settings = [_settings(run.params) for run in runs]
    every = list(dict.fromkeys(name for own in settings for name in own))
    differing = [name for name in every if _differs(name, settings)]
    short = _short(every)
    head, *rows = _aligned([_head(runs), *map(_figures, runs)])
    lefts = [[run.name, *_time(run.when, now)] for run in runs]
    indent = min(max(len(word) for left in [["experiment"], *lefts] for word in left), WIDTH - len(GAP + head))
    blocks = [_block(["experiment"], [head], indent)]
    for run, left, row, own in zip(runs, lefts, rows, settings, strict=True):
        shown = [f"{short[name]}={_cut(own[name], LONGEST)}" for name in differing if name in own]
        blocks.append(_block(left, [run.state or row, *_lines(shown, GAP, WIDTH - indent - len(GAP))], indent))
    told = f"The settings that differ, in full: {', '.join(differing)}" if differing else "No setting differs."
    return "\n\n".join([*blocks, "\n".join(_lines(told.split(" "), " ", WIDTH))])


def _block(left: Sequence[str], right: Sequence[str], indent: int) -> str:
    """Two columns of lines, the left one of this width."""
    pairs = zip_longest(left, right, fillvalue="")
    return "\n".join(f"{_cut(word, indent):<{indent}}{GAP}{line}".rstrip() for word, line in pairs)


def _differs(name: str, settings: Sequence[Mapping[str, str]]) -> bool:
    """Whether a parameter is not the same in all runs that have parameters; an option only in those of its method."""
    option = name.startswith(OPTIONS)
    return len({own.get(name) for own in settings if (name in own if option else own)}) > 1


def _settings(params: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of the main job, by dotted name, without the options of other methods."""
    values = flat({section: value for section, value in params.items() if section not in BESIDE})
    own = f"{OPTIONS}{values.get('method.name')}."
    return {
        name: value
        for name, value in values.items()
        if value != "{}" and (name.startswith(own) or not name.startswith(OPTIONS))
    }


def _short(names: Iterable[str]) -> dict[str, str]:
    """For each dotted name the shortest end that no other name has; "method" for ``method.name``."""
    ends = {name: _ends(name.removesuffix(".name")) for name in names}
    known = Counter(end for of_name in ends.values() for end in of_name)
    return {name: next((end for end in of_name if known[end] == 1), name) for name, of_name in ends.items()}


def _ends(name: str) -> list[str]:
    """``c``, ``b.c`` and ``a.b.c`` for ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in reversed(range(len(parts)))]


def _head(runs: Sequence[Run]) -> list[str]:
    objectives = {_objective(run.figures["deploy"]) for run in runs if "deploy" in run.figures}
    title = f"{objectives.pop() if len(objectives) == 1 else 'objective'} on test"
    return ["deploy", "bytes", "of full", title, "searched", title]


def _figures(run: Run) -> list[str]:
    """The cells of a run: the form to deploy with its figures, and bytes and objective of the searched allocation."""
    deploy, searched = run.figures.get("deploy"), run.figures.get("searched")
    if not deploy or not searched:  # of a version that did not record them
        return [UNKNOWN] * 6
    objective = _objective(deploy)
    return [
        deploy["form"],
        f"{deploy['bytes']:,}",
        f"{deploy['of_full']:.1%}",
        _mean_sd(deploy, objective),
        f"{searched['bytes']:,}",
        _mean_sd(searched, objective),
    ]


def _objective(deploy: Mapping[str, Any]) -> str:
    return next(name for name in deploy if name not in ("form", "bytes", "of_full"))


def _mean_sd(figures: Mapping[str, Any], objective: str) -> str:
    sd = figures.get(f"{objective}_sd")  # there is none for one seed
    return f"{figures[objective]:.4f}" + ("" if sd is None else f" ± {sd:.4f}")


def _time(when: datetime | None, now: datetime) -> list[str]:
    """The time as a text, if there is one."""
    if when is None:
        return []
    return [f"{when:%H:%M}" if when.date() == now.date() else f"{when.day} {when:%b %H:%M}"]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines; the first column is flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [GAP.join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _lines(words: Iterable[str], gap: str, width: int) -> list[str]:
    """The words in lines of at most this width; no word is broken."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1] + gap + word) <= width:
            lines[-1] += gap + word
        else:
            lines.append(word)
    return lines


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
