"""A sweep over models of interactions."""

from pathlib import Path

from pipeline.embeddings.cost import full_tables
from pipeline.sweeps.sweep import Sweep
from pipeline.workflow.params import declared
from tests.interactions import changed, write_interactions


def test_a_sweep_counts_the_fields_that_the_backbone_uses(tmp_path: Path) -> None:
    space = {"search": {"weight_decay": [0.0, 0.00001]}}
    here = changed(write_interactions(tmp_path, history=0), "lightgcn", sweep={"space": space})
    sweep = Sweep(here.params, declared("sweep"), here.data)
    assert set(here.schema.names) == {"user", "item"} < set(here.data.schema.names)
    assert sweep.full_bytes == full_tables(here.schema, here.dim).bytes
