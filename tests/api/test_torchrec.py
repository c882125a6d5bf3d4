"""The tables of a trained model, field by field, and TorchRec's vectors from them."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.api import PADDING, FieldTable, Tables, field_tables
from pipeline.backbones import deepfm
from pipeline.data.schema import Schema
from pipeline.embeddings.mixed import MixedTables
from pipeline.experiment.method import build
from pipeline.experiment.saved import save
from pipeline.models.model import Model, assemble
from tests.contracts import DIM, SCHEMA, derived, draw_ids, randomised
from tests.experiment.small import experiment, write_rows
from tests.training.clicks import clicks

MIXED = Allocation("autodim", {"user": 3, "item": 8, "age": 2, "tags": 5})


@pytest.fixture
def torchrec() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells its developers of deprecated names
        return pytest.importorskip("torchrec", reason="TorchRec is no dependency", exc_type=ImportError)


def tables(allocation: Allocation = MIXED, dim: int = DIM, **options: bool) -> Tables:
    made: Tables = randomised(Tables(SCHEMA, dim, allocation, **options))
    return made.eval()


def pooled(torchrec: ModuleType, parts: list[FieldTable], schema: Schema, ids: Tensor) -> list[Tensor]:
    """What TorchRec's collection returns for each field, (B, d) with padding."""
    modules = torchrec.modules.embedding_configs
    configs = [modules.EmbeddingBagConfig(**part.config, pooling=modules.PoolingType.MEAN) for part in parts]
    bags = torchrec.EmbeddingBagCollection(tables=configs)
    with torch.no_grad():
        for part in parts:
            bags.embedding_bags[part.config["name"]].weight.copy_(part.weight)
    slots = [schema.slots_of([part.config["name"]]) for part in parts]
    present = [ids[:, columns] != PADDING for columns in slots]
    values = torch.cat([ids[:, columns][mask] for columns, mask in zip(slots, present, strict=True)]).long()
    lengths = torch.cat([mask.sum(1) for mask in present])
    names = [part.config["name"] for part in parts]
    found = bags(torchrec.KeyedJaggedTensor(keys=names, values=values, lengths=lengths))
    return [found[name].detach() for name in names]


def lifted(part: FieldTable, vectors: Tensor) -> Tensor:
    return vectors if part.projection is None else vectors @ part.projection


def test_padded_tables_give_the_same_vectors_and_fit_fbgemm() -> None:
    plain, padded = field_tables(tables()), field_tables(tables(), multiple=4)
    assert [part.config["name"] for part in padded] == ["user", "item", "age", "tags"]
    assert [part.config["embedding_dim"] for part in plain] == [3, 8, 2, 5]
    assert [part.config["embedding_dim"] for part in padded] == [4, 8, 4, 8]
    for one, other in zip(plain, padded, strict=True):
        rows, width = other.weight.shape
        assert other.config["num_embeddings"] == rows and other.config["embedding_dim"] == width
        torch.testing.assert_close(lifted(one, one.weight), lifted(other, other.weight))


def test_a_full_table_that_is_padded_gets_a_projection_that_takes_the_padding_away() -> None:
    made = tables(Allocation("full", dict.fromkeys(SCHEMA.names, 6)), 6)
    (first, *_), (plain, *_) = field_tables(made, multiple=4), field_tables(made)
    assert plain.projection is None and first.projection is not None
    assert torch.equal(first.weight @ first.projection, plain.weight)


def test_parts_are_copies_of_the_trained_weights_in_the_order_of_the_schema() -> None:
    made = tables(Allocation("autodim", {"user": 8, "item": 2, "age": 0, "tags": 2}), first_order=True)
    parts, embedding, through = field_tables(made), made.model.embedding, made.model.backbone
    assert [part.config["name"] for part in parts] == ["user", "item", "tags"]
    assert isinstance(embedding, MixedTables)
    assert torch.equal(parts[0].weight, embedding.tables["8"].weight) and parts[0].projection is None
    assert torch.equal(torch.cat([part.weight for part in parts[1:]]), embedding.tables["2"].weight)
    assert torch.equal(torch.stack([part.projection for part in parts[1:]]), embedding.projections["2"])
    assert torch.equal(torch.cat([part.first_order for part in parts]), through.first_order.table.weight[:, 0])
    parts[0].weight.zero_()
    assert bool(embedding.tables["8"].weight.abs().sum() > 0)


def test_torchrec_returns_the_rows_of_the_trained_tables_to_the_bit(torchrec: ModuleType) -> None:
    """Before the projection. A bag is the mean of its rows, whose last digits depend on the order of sums."""
    made, ids = tables(), draw_ids()
    plain, padded = field_tables(made), field_tables(made, multiple=4)
    found = pooled(torchrec, padded, SCHEMA, ids)
    for part, vectors, slot in zip(plain[:3], found, range(3), strict=False):
        d = part.weight.shape[1]
        assert torch.equal(vectors[:, :d], part.weight[ids[:, slot].long()]) and not vectors[:, d:].any()
    bags = ids[:, 3:].long()
    rows = plain[3].weight[bags.clamp(min=0)] * (bags != PADDING)[..., None]
    means = rows.sum(1) / (bags != PADDING).sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(found[3][:, :5], means)
    vectors = [lifted(part, one) for part, one in zip(padded, found, strict=True)]
    torch.testing.assert_close(torch.stack(vectors, 1), made(ids), rtol=1e-4, atol=1e-6)


def test_torchrec_returns_the_vectors_of_a_model_on_disk(torchrec: ModuleType, tmp_path: Path) -> None:
    here = experiment(write_rows(tmp_path / "encoded"), backbone={"name": "deepfm"})
    allocation = Allocation("autodim", {"user": 2, "item": 4, "tags": 0})
    model: Model = randomised(assemble(here.schema, 4, allocation, build, deepfm.Backbone)).eval()
    save(tmp_path / "seed-0", here, model, allocation, [])
    parts, ids = field_tables(tmp_path / "seed-0", multiple=4), torch.from_numpy(clicks(50, 0).ids[0])
    vectors = [lifted(*pair) for pair in zip(parts, pooled(torchrec, parts, here.schema, ids), strict=True)]
    occ = model.occurrences(ids)
    torch.testing.assert_close(torch.stack(vectors, 1), model.embedding(occ))
    sums = [part.first_order[ids[:, slot].long()] for slot, part in enumerate(parts) if part.first_order is not None]
    first_order = model.backbone.get_submodule("first_order")
    torch.testing.assert_close(torch.stack(sums).sum(0), first_order(occ) - first_order.bias)


def test_what_has_no_such_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="only plain mixed dimensions are TorchRec's tables, got"):
        field_tables(Tables(SCHEMA, DIM, derived("int8")))
    with pytest.raises(ValueError, match="multiple must be at least 1, got 0"):
        field_tables(Tables(SCHEMA, DIM, MIXED), multiple=0)
    with pytest.raises(ValueError, match=r"has no model\.json: it holds no model"):
        field_tables(tmp_path)
