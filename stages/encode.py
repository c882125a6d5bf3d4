"""Stage 2: the raw table -> feature ids in four parts, their vocabulary and their schema.

Reads ``encode`` of params.yaml; writes the folder ``artifacts/encoded``.
"""

from __future__ import annotations

import time

from pipeline.encoding.encode import Settings, encode
from pipeline.workflow.plug import check_options
from stages import _stage
from stages._stage import ENCODED, RAW


def run() -> None:
    started = time.time()
    params = _stage.params("encode")
    options = params["encode"]
    check_options(Settings, options, "encode in params.yaml")
    settings = Settings(**options)
    raw_sha256 = _stage.read(RAW / "raw.json")["sha256"]
    key = _stage.fingerprint("encode", [RAW / "raw.json"])
    with _stage.tracker("encode", key, raw_sha256, later=True) as tracker:
        tracked = tracker.run(params=params, started=started)
        with _stage.whole(ENCODED) as folder:
            record = encode(RAW, folder, settings)
        cardinality = {field["name"]: field["cardinality"] for field in record["fields"]}
        tracked.metrics(0, {"fields": len(cardinality), "ids": sum(cardinality.values())})
        tracked.metrics(0, {f"cardinality/{name}": count for name, count in cardinality.items()})
        for figure in ("rows", "label_rate"):
            tracked.metrics(0, {f"{figure}/{part}": value for part, value in record[figure].items()})
        tracked.artifact(ENCODED / "schema.json")
    rows = record["rows"]
    rate = sum(rows[part] * record["label_rate"][part] for part in rows) / sum(rows.values())
    print(
        f"encode: {sum(rows.values()):,} rows ({', '.join(f'{part} {n:,}' for part, n in rows.items())}), "
        f"{len(cardinality)} fields with {sum(cardinality.values()):,} ids, "
        f"label rate {rate:.4f}, {time.time() - started:.1f} s"
    )


if __name__ == "__main__":
    _stage.main(run)
