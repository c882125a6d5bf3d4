"""Compare approximate indices of the items of a model for retrieval with the exact search, from anywhere.

    python -m stages.indices artifacts/models/searched/seed-0
    python -m stages.indices exported hnsw hnsw:ef_search=256,m=32 ivfpq:m=16,nprobe=8 --top 100

MODEL is a folder that ``retrain`` or ``stages.export`` wrote. For each index it prints the share of the best items that
it finds, the time of a query alone and in a batch, the time to build it and its bytes. ``stages.score --index`` serves
with one of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.scoring.index import KINDS, Index
from pipeline.scoring.ranker import Ranker
from pipeline.scoring.recall import compare
from pipeline.workflow import process

TOP = 20


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help="by default hnsw and ivfpq")
    parser.add_argument("--top", type=int, default=TOP, metavar="K", help="items of each user, 20 by default")
    given = parser.parse_args()
    indices = [Index(asked) for asked in given.kinds]
    for line in compare(Ranker.load(given.model), given.top, indices).lines():
        print(line)


if __name__ == "__main__":
    process.main(run, arguments=True)
