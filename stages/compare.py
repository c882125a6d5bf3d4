"""Outside the main job: what differs between experiments of `dvc exp run`, and what each says to deploy.

    python -m stages.compare          # `make compare`: the workspace, the last commit and its experiments
    python -m stages.compare --all    # `make compare ALL=1`: also earlier commits that have experiments

A row holds the form to deploy with its bytes and its objective on test, and the same of the searched allocation. Below
it are the settings that differ between the rows.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

from pipeline.reporting.experiments import compared
from pipeline.tracking.experiments import experiments_of_commits, head, runs
from pipeline.workflow import process


def run(every: bool) -> None:
    """Print the comparison.

    Args:
        every: also show experiments of other commits than the last one.

    Raises:
        ValueError: if there is no git repository, or DVC cannot read its experiments.
    """
    if not Path("dvc.yaml").is_file():
        raise ValueError(f"there is no dvc.yaml in {Path.cwd()}; call it in the folder that has one")
    commit, name = head()
    others = {other: number for other, number in experiments_of_commits().items() if other != commit}
    listed = runs([commit, *others] if every else [commit])
    if len(listed) > 2:
        print(compared(listed, datetime.now()))
    else:
        print(f"{name} has no experiments yet; this runs one: dvc exp run -S method.name=coded -S derive.budget=0.1")
    if others and not every:
        print(f"experiments of other commits: {sum(others.values())}; `make compare ALL=1` shows them")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also show experiments of other commits than the last one")
    options = parser.parse_args(sys.argv[1:])
    process.main(lambda: run(options.all), arguments=True)


if __name__ == "__main__":
    main()
