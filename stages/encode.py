"""Stage 2: encode the raw table as feature ids in four parts, with their vocabulary and their schema.

Reads ``encode`` of params.yaml and ``artifacts/raw``; writes the folder ``artifacts/encoded``.
"""

from __future__ import annotations

import time

from pipeline.encoding.encode import encode
from pipeline.encoding.fields import FIELDS_FILE, lines
from pipeline.encoding.interactions import figures, sentences
from pipeline.encoding.raw_table import raw_record
from pipeline.encoding.vocabulary import cut_sentences
from pipeline.tracking.stage import stage_tracker
from pipeline.workflow import process
from pipeline.workflow.code import content_key
from pipeline.workflow.outputs import whole
from pipeline.workflow.params import Params
from pipeline.workflow.places import ENCODED, RAW


def run() -> None:
    started = time.time()
    params = Params.of_stage("encode")
    raw_sha256 = raw_record(RAW)["sha256"]
    key = content_key(["stages/encode.py"], params.to_dict(), inputs=[RAW / "raw.json"])
    with stage_tracker("encode", key, raw_sha256) as tracker:
        tracked = tracker.run(params=params.to_dict(), started=started)
        with whole(ENCODED) as folder:
            record = encode(RAW, folder, params.encode)
        interactions = record.get("interactions")
        cardinality = {field["name"]: field["cardinality"] for field in record["fields"]}
        tracked.metrics(0, {"fields": len(cardinality), "ids": sum(cardinality.values())})
        tracked.metrics(0, {f"cardinality/{name}": count for name, count in cardinality.items()})
        for part, labels in record["labels"].items():
            tracked.metrics(0, {f"rows/{part}": labels["rows"]})
            if interactions is None:
                tracked.metrics(0, {f"label_mean/{part}": labels["mean"]})
        if interactions is not None:
            tracked.metrics(0, figures(interactions))
        for name, summary in record["summaries"].items():
            tracked.metrics(0, {f"unknown/{name}/{part}": share for part, share in summary["unknown"].items()})
            tracked.metrics(0, {f"values/{name}": summary["values"], f"most_frequent/{name}": summary["most_frequent"]})
            if summary["auc_alone"] is not None:
                tracked.metrics(0, {f"auc_alone/{name}": summary["auc_alone"]})
        tracked.artifact(ENCODED / "schema.json")
        tracked.artifact(ENCODED / FIELDS_FILE)
    rows = record["rows"]
    print(
        f"encode: {sum(rows.values()):,} rows ({', '.join(f'{part} {n:,}' for part, n in rows.items())}), "
        f"{len(cardinality)} fields with {sum(cardinality.values()):,} ids, {time.time() - started:.1f} s"
    )
    if interactions is not None:
        print("\n".join(f"encode: {sentence}" for sentence in sentences(interactions, rows)))
    print("\n".join(lines(record["summaries"], ENCODED / FIELDS_FILE)))
    for warning in record["warnings"]:
        print(f"encode: warning: {warning}")
    whose = {field["name"]: f"{field['role']}s" for field in record["fields"] if "role" in field}
    for sentence in cut_sentences(record["cut"], whose):
        print(f"encode: {sentence}; raise encode.max_bag in params.yaml, now {record['max_bag']}")


if __name__ == "__main__":
    process.main(run)
