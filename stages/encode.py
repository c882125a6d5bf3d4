"""Stage 2: the raw table -> feature ids in four parts, their vocabulary and their schema.

Reads ``encode`` of params.yaml; writes the folder ``artifacts/encoded``.
"""

from __future__ import annotations

import time

from pipeline.encode import Settings, encode
from pipeline.plug import check_options
from stages import _stage
from stages._stage import ENCODED, RAW


def run() -> None:
    started = time.monotonic()
    options = _stage.params("encode")["encode"]
    check_options(Settings, options, "encode in params.yaml")
    with _stage.whole(ENCODED) as folder:
        record = encode(RAW, folder, Settings(**options))
    rows = record["rows"]
    rate = sum(rows[part] * record["label_rate"][part] for part in rows) / sum(rows.values())
    print(
        f"encode: {sum(rows.values()):,} rows ({', '.join(f'{part} {n:,}' for part, n in rows.items())}), "
        f"{len(record['fields'])} fields with {sum(field['cardinality'] for field in record['fields']):,} ids, "
        f"label rate {rate:.4f}, {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    _stage.main(run)
