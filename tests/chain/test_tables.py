"""The item table of a behaviour model, against its rows in plain Python."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.backbones.session import Backbone
from pipeline.chain.agents import Agents
from pipeline.chain.tables import item_bytes, item_vectors
from pipeline.chain.world import State
from pipeline.coding.choice import choose
from pipeline.data.encoded import Encoded
from pipeline.embeddings.coded import CodedTables, Moments, full_table, predictions
from pipeline.embeddings.cost import cost
from pipeline.embeddings.mixed import MixedTables
from pipeline.experiment.method import build
from pipeline.models.model import Model, assemble
from pipeline.serving.served import Served
from tests.contracts import randomised
from tests.interactions import write_interactions
from tests.project import Project

DIM, ITEMS = 4, 30
DIMS = {"item": 2, "shown": 4, "page": 1, "skips": 2, "history": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Sessions in which some items are unknown to training rows."""
    options = {"transitions": 1200, "epsilon": 0.5, "options": {"items": ITEMS}}
    project = Project(
        tmp_path_factory.mktemp("sessions"), dataset={"name": "sessions", "path": "data", "options": options}
    )
    project.give(encode__min_count=25).run("ingest", "encode")
    return Encoded.load(project.folder / "artifacts/encoded")


def made(data: Encoded, method: str = "autodim", dims: Mapping[str, int] = DIMS, **more: Any) -> Model:
    torch.manual_seed(0)
    model = assemble(data.schema, DIM, Allocation(method, dict(dims), **more), build, Backbone, {"hidden": (8,)})
    randomised(model)
    model.finish()
    return model.eval()


def expected(data: Encoded, rows: Tensor) -> Tensor:
    """The vectors of the items, from those of the ids (R, D)."""
    vocabulary = pd.read_parquet(data.folder / "vocabulary.parquet")
    ids = vocabulary[vocabulary.feature == "item"].set_index("value")["id"]
    vectors = torch.stack([rows[int(ids.get(str(item), 0))] for item in range(ITEMS)])
    return vectors / (sum(float(vector.square().sum()) ** 0.5 for vector in vectors) / ITEMS)


def test_the_vectors_are_the_rows_of_the_items_lifted_and_of_mean_length_1(data: Encoded) -> None:
    model = made(data)
    assert isinstance(model.embedding, MixedTables)
    cardinality = int(data.schema.cardinalities[data.schema.names.index("item")])
    assert 3 < cardinality < ITEMS  # some items are known, and not all
    order = [name for name in data.schema.names if DIMS[name] == 2]
    assert order[0] == "item"
    rows = model.embedding.tables["2"].weight[:cardinality] @ model.embedding.projections["2"][0]
    vectors = item_vectors(model, data)
    assert vectors.dtype == torch.float32 and vectors.shape == (ITEMS, DIM) and not vectors.requires_grad
    torch.testing.assert_close(vectors, expected(data, rows.detach()))
    assert float(vectors.norm(dim=1).mean()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(item_vectors(Served.of(model), data), vectors)
    assert (item_vectors(Served.of(model, int8=True), data) - vectors).abs().max() < 0.05
    assert not model.backbone._forward_pre_hooks and not model.training


def test_agents_take_them(data: Encoded) -> None:
    agents = Agents(item_vectors(made(data), data))
    nothing = torch.full((3,), -1)
    state = State(torch.tensor([[-1, 2], [4, 5], [-1, -1]]), torch.zeros(3).long(), nothing, torch.zeros(3).long())
    assert agents(state).shape == (3,)


def test_the_bytes_of_the_items_are_a_part_of_all(data: Encoded) -> None:
    cardinality = int(data.schema.cardinalities[data.schema.names.index("item")])
    assert item_bytes(made(data)) == 4 * (2 * cardinality + 2 * DIM)
    four = dict.fromkeys(data.schema.names, DIM)
    int4 = made(data, "int4", four)
    assert item_bytes(int4) == cardinality * (DIM // 2 + 2)
    assert item_bytes(int4) * int(data.schema.num_rows) == cardinality * cost(int4.embedding.packed()).bytes
    assert item_bytes(made(data, "uniform", dict.fromkeys(data.schema.names, 2))) == 4 * 2 * cardinality


def test_coded_tables_give_their_decoded_vectors_and_the_bytes_of_their_codes(data: Encoded) -> None:
    full = made(data, "full", dict.fromkeys(data.schema.names, DIM))
    assert isinstance(full.embedding, MixedTables)
    table, moments = full_table(full.embedding), Moments.neutral(data.schema, DIM)
    plans = choose(predictions(table, data.schema, moments), cost(full.embedding.packed()).bytes // 3)
    coded = full.rebuilt(CodedTables.of(table, data.schema, DIM, plans, moments))
    vectors = item_vectors(coded, data)
    torch.testing.assert_close(item_vectors(Served.of(coded), data), vectors)
    apart = (vectors - item_vectors(full, data)).square().mean().sqrt()
    assert 1e-4 < apart < 0.25
    alone, own = item_bytes(coded), item_bytes(full)
    assert alone is not None and own is not None and 0 < alone < min(own, cost(coded.embedding.packed()).bytes)


def test_fields_that_share_what_is_stored_have_no_bytes_of_their_own(data: Encoded) -> None:
    dims = dict.fromkeys(data.schema.names, DIM)
    assert item_bytes(made(data, "robe", dims, settings={"size": 40, "block": 4, "seed": 0, "sign": True})) is None


def test_a_model_without_items_is_refused(data: Encoded, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model drops the field 'item'"):
        item_vectors(made(data, dims=DIMS | {"item": 0}), data)
    zero = made(data)
    with torch.no_grad():
        zero.embedding.tables["2"].weight.zero_()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="all vectors of items are zero"):
        item_vectors(zero, data)
    other = Encoded.load(write_interactions(tmp_path / "other"))
    with pytest.raises(ValueError, match="is not of the data set sessions"):
        item_vectors(made(data), other)
