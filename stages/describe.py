"""Outside the main job: write the settings for a table of your own, from what its columns hold.

Reads some rows of a CSV, TSV or Parquet file, plain, gzipped or in a zip, or of a folder of part files. Writes
``params/<name>.yaml``, which is laid over params.yaml, and prints what each column is used as, and why.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from pipeline.describing.commented import yaml_of
from pipeline.describing.describe import described
from pipeline.describing.overlay import heading, overlay, table
from pipeline.experiment.experiment import check_params
from pipeline.sources.opening import opened
from pipeline.workflow import process
from pipeline.workflow.outputs import whole
from pipeline.workflow.overlay import FOLDER, committed, laid_over
from pipeline.workflow.params import FILE, Params
from pipeline.workflow.places import root
from pipeline.workflow.validation import validated
from pipeline.workflow.yaml_values import values_of

ROWS = 200_000  # that are read with the settings before these are kept


def run(options: argparse.Namespace) -> None:
    out = options.out or FOLDER / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', options.file.name.split('.')[0]) or 'table'}.yaml"
    if out.exists() and not options.force:
        raise ValueError(
            f"{out} is there already; replace it with --force (make: FORCE=1), or name another file with --out"
        )
    if not options.file.exists():
        raise ValueError(f"there is no {options.file}; name the file or the folder of the table")
    file = options.file.resolve()
    path = str(file.relative_to(root()) if file.is_relative_to(root()) else file)
    description = described(options.file, options.label, options.positive, options.time)
    comments = [f"# {line}".rstrip() for line in heading(description, path)]
    with whole(out) as draft:
        draft.write_text("\n".join([*comments, "", yaml_of(overlay(description, path))]), encoding="utf-8")
        base = committed() or FILE.read_text(encoding="utf-8")
        params = validated(Params, values_of(laid_over(base, draft)), str(out))
        check_params(params, str(out))
        rows = 0
        for batch in opened(params.dataset).batches:
            rows += len(batch)
            if rows >= ROWS:
                break
    print(f"{table(description)}\n\ndescribe: wrote {out}; correct it where it is wrong")
    if out.parent == FOLDER:
        print(f"then: make repro PARAMS={out.stem}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the table, or a folder of part files")
    parser.add_argument("--label", help="column of the label; without it, a column of two values named like one")
    parser.add_argument("--positive", help="value of the label that means 1")
    parser.add_argument("--time", help="column that orders the rows; without it, one that holds times")
    parser.add_argument("--out", type=Path, help="file to write; params/<name of the table>.yaml if it is not given")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there already")
    options = parser.parse_args()
    process.main(lambda: run(options), arguments=True)


if __name__ == "__main__":
    main()
