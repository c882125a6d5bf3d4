"""Damage the files that the project reads, and see whether its commands refuse them in one line or are right.

python -m tests.fuzz                      # some minutes; `make fuzz` does this
python -m tests.fuzz --seed 7 --cases 50  # other damage, and so many random cases of each kind
python -m tests.fuzz --only csv,zip       # some kinds
python -m tests.fuzz --case zip:31        # one case again, with what the command said; also with --seed
python -m tests.fuzz --corpus             # only what failed once; a test does this

Each case is a process with a limit of time and memory. A kind's cases are those that are made for it, those of
tests/fuzz/corpus.json, which failed once, and random ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from pipeline.workflow import process
from tests.fuzz.kinds import KINDS
from tests.fuzz.run import Fuzzer, Tried

CORPUS = Path(__file__).with_name("corpus.json")
VERDICTS = ("refused", "harmless", "other", "failed")


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=25, help="random cases of each kind (25); of a slow one a quarter")
    parser.add_argument("--only", default="", metavar="KIND,KIND", help=f"kinds: {', '.join(KINDS)}")
    parser.add_argument("--corpus", action="store_true", help="only cases that failed once")
    parser.add_argument("--case", metavar="KIND:NUMBER", help="one case, with what the command said")
    parser.add_argument("--jobs", type=int, default=process.cores(), help="cases at the same time")
    given = parser.parse_args()
    began, corpus = time.monotonic(), json.loads(CORPUS.read_text())
    kinds = [name.strip() for name in given.only.split(",") if name.strip()] or list(corpus if given.corpus else KINDS)
    kind, _, number = (given.case or "").rpartition(":")
    if unknown := sorted({*kinds, *([kind] if kind else [])} - set(KINDS)):
        parser.error(f"there is no kind {', '.join(unknown)}; there are {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        fuzzer = Fuzzer(Path(folder), given.seed, corpus, [kind] if kind else kinds)
        if kind:
            tried = fuzzer.one(kind, int(number))
            print(f"{json.dumps(tried.recipe)}\n{tried.outcome.said}\n{_line(tried)}")
            sys.exit(tried.outcome.verdict == "failed")
        cases = fuzzer.of_corpus if given.corpus else partial(fuzzer.of_kind, cases=given.cases)
        failed = _all({name: cases(name, jobs=given.jobs) for name in kinds})
    print(f"fuzz: seed {given.seed}, {time.monotonic() - began:.0f} s")
    sys.exit(bool(failed))


def _all(cases: Mapping[str, Iterator[Tried]]) -> int:
    """Try all cases; print those that fail as they end, and a row for each kind; the number of those that failed."""
    print(
        "| kind | tried | refused clearly | harmless | other content | failed |\n| --- | --- | --- | --- | --- | --- |"
    )
    sums = dict.fromkeys(VERDICTS, 0)
    for name, of_kind in cases.items():
        counts = dict.fromkeys(VERDICTS, 0)
        for tried in of_kind:
            counts[tried.outcome.verdict] += 1
            if tried.outcome.verdict == "failed":
                print(_told(tried), file=sys.stderr, flush=True)
        print(_row(name, counts), flush=True)
        sums = {verdict: sums[verdict] + counts[verdict] for verdict in VERDICTS}
    print(_row("all", sums))
    return sums["failed"]


def _row(name: str, counts: dict[str, int]) -> str:
    return f"| {name} | {sum(counts.values()):,} | {' | '.join(f'{counts[verdict]:,}' for verdict in VERDICTS)} |"


def _told(tried: Tried) -> str:
    """What failed, the damage, and the last words of the command."""
    said = [line for line in tried.outcome.said.splitlines() if line.strip() and not line.startswith("(PIPELINE")]
    return f"{_line(tried)}\n    {json.dumps(tried.recipe)[:200]}\n    {''.join(said[-1:])[:400]}"


def _line(tried: Tried) -> str:
    outcome = tried.outcome
    why = f": {outcome.why}" if outcome.why else ""
    return f"{tried.kind}:{tried.number} {outcome.verdict}{why} ({outcome.seconds:.1f} s, {outcome.memory >> 20} MiB)"


if __name__ == "__main__":
    process.main(run, arguments=True)
