"""The benchmark of planted ranks compares the allocations that its lines name."""

import pytest

from benchmarks import planted as benchmark
from pipeline.data.encoded import Encoded
from pipeline.experiment.experiment import Experiment
from pipeline.workflow.params import Params
from tests.project import Project


def test_variants_are_at_below_and_above_the_ranks_and_differ_in_one_rank_at_a_time() -> None:
    variants = benchmark.variants({"user": 8, "item": 8, "city": 2, "noise": 0}, 8)
    assert variants["planted"] == {"user": 8, "item": 8, "city": 2, "noise": 1}
    assert variants["rank 8 halved"] == {"user": 4, "item": 4, "city": 2, "noise": 1}
    assert variants["rank 2 halved"] == {"user": 8, "item": 8, "city": 1, "noise": 1}
    assert variants["all doubled"] == {"user": 8, "item": 8, "city": 4, "noise": 2}
    assert variants["full"] == dict.fromkeys(("user", "item", "city", "noise"), 8)
    assert len(variants) == 5


def test_a_copy_has_the_rank_of_its_original(planted: Project, table: Project) -> None:
    ranks = benchmark.ranks_of(Encoded.load(planted.folder / "artifacts/encoded"))
    assert ranks["item_copy"] == ranks["item"] == 8 and ranks["noise"] == 0 and ranks["zip"] == 1
    with pytest.raises(ValueError, match=r"holds no planted data; set dataset\.name in params\.yaml to synthetic"):
        benchmark.ranks_of(Encoded.load(table.folder / "artifacts/encoded"))


@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")
def test_every_seed_is_trained_and_bytes_are_those_of_the_allocation(planted: Project) -> None:
    data = Encoded.load(planted.folder / "artifacts/encoded")
    experiment = Experiment(Params.load(planted.folder / "params.yaml"), data)
    dims = dict.fromkeys(data.schema.names, 2)
    aucs, size = benchmark.reached(experiment, dims)
    assert len(aucs) == 2 and aucs[0] != aucs[1] and all(0 < auc < 1 for auc in aucs)
    projections = 4 * len(dims) * 2 * experiment.dim
    assert size == 4 * 2 * data.schema.num_rows + projections
