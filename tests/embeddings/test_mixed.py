"""Mixed tables against plain indexing, row by row."""

import pytest
import torch
from torch import Tensor

from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.mixed import MixedTables
from tests.contracts import assert_equal_gradients

pytestmark = pytest.mark.usefixtures("double")
SCHEMA = Schema((Field("user", 7), Field("tags", 6, width=3), Field("item", 5), Field("age", 3)))
IDS = torch.tensor(
    [[1, 2, 5, PADDING, 3, 2], [6, 0, PADDING, PADDING, 4, 0], [0, 1, 2, 3, 0, 1], [1, 5, 2, PADDING, 3, 2]],
    dtype=torch.int32,
)


def by_hand(tables: dict[str, Tensor], ids: Tensor) -> Tensor:
    """(B, F, D) from one (cardinality, D) table per field: look up, leave out padding, average."""
    rows = []
    for row in ids.tolist():
        vectors, slot = [], 0
        for field in SCHEMA.fields:
            values = [i for i in row[slot : slot + field.width] if i != PADDING]
            vectors.append(torch.stack([tables[field.name][i] for i in values]).mean(0))
            slot += field.width
        rows.append(torch.stack(vectors))
    return torch.stack(rows)


def tables_of(embedding: MixedTables, dims: dict[str, int]) -> dict[str, Tensor]:
    """Each field's own (cardinality, D) table, lifted, cut out of the shared tables in the schema's order."""
    tables = {}
    start, position = dict.fromkeys(embedding.distinct, 0), dict.fromkeys(embedding.distinct, 0)
    for field in SCHEMA.fields:
        d = dims[field.name]
        table = embedding.tables[str(d)].weight[start[d] : start[d] + field.cardinality]
        tables[field.name] = table if d == embedding.dim else table @ embedding.projections[str(d)][position[d]]
        start[d] += field.cardinality
        position[d] += 1
    return tables


@pytest.mark.parametrize(
    "dims",
    [
        {"user": 4, "tags": 2, "item": 1, "age": 2},
        {"user": 1, "tags": 4, "item": 1, "age": 4},
        {"user": 3, "tags": 3, "item": 3, "age": 3},
        {"user": 4, "tags": 4, "item": 4, "age": 4},
    ],
    ids=str,
)
def test_mixed_tables_are_plain_lookups_lifted_to_one_width(dims: dict[str, int]) -> None:
    torch.manual_seed(0)
    embedding = MixedTables(SCHEMA, dims, 4)
    weight = torch.randn(len(IDS), 4, 4)
    expected = by_hand(tables_of(embedding, dims), IDS)
    ours = embedding(Lookup(SCHEMA)(IDS))
    torch.testing.assert_close(ours, expected)
    assert_equal_gradients((ours * weight).sum(), (expected * weight).sum(), list(embedding.parameters()))


def test_single_precision_gives_the_same_vectors() -> None:
    torch.manual_seed(0)
    dims = {"user": 3, "tags": 2, "item": 1, "age": 2}
    exact = MixedTables(SCHEMA, dims, 4)
    single = MixedTables(SCHEMA, dims, 4).float()
    single.load_state_dict({name: value.float() for name, value in exact.state_dict().items()})
    torch.testing.assert_close(single(Lookup(SCHEMA)(IDS)), exact(Lookup(SCHEMA)(IDS)).float(), rtol=1e-5, atol=1e-6)


def test_a_table_s_gradient_has_each_row_that_a_batch_looked_up_once_and_in_order() -> None:
    embedding = MixedTables(SCHEMA, dict.fromkeys(SCHEMA.names, 4), 4)
    embedding(Lookup(SCHEMA)(IDS)).square().sum().backward()
    gradient = embedding.tables["4"].weight.grad
    rows = gradient._indices()[0].tolist()
    assert rows == sorted({0, 1, 6} | {7 + i for i in (0, 1, 2, 3, 5)} | {13, 16, 17} | {18, 19, 20})


def test_embedded_coordinates_start_with_the_same_standard_deviation_for_every_dimension() -> None:
    torch.manual_seed(0)
    schema = Schema((Field("narrow", 4000), Field("wide", 4000)))
    occ = Lookup(schema)(torch.arange(4000)[:, None].expand(-1, 2))
    embedded = MixedTables(schema, {"narrow": 2, "wide": 64}, 64)(occ)
    narrow, wide = embedded.std((0, 2)).tolist()
    assert wide == pytest.approx(0.01, rel=0.05) and narrow == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize(
    ("dims", "named"),
    [
        ({"user": 5, "tags": 2, "item": 1, "age": 2}, r"between 1 and dim=4, got \{'user': 5\}"),
        ({"user": 0, "tags": 2, "item": 1, "age": 2}, r"\{'user': 0\}"),
        ({"user": 4, "tags": 2, "item": 1}, r"every field must have a dimension, but there is none for \['age'\]"),
        ({"user": 4, "tags": 2, "item": 1, "age": 1, "zip": 1}, r"no field \['zip'\]"),
    ],
)
def test_dims_that_do_not_fit_are_refused_by_field(dims: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MixedTables(SCHEMA, dims, 4)


def test_tables_shared_by_dimension_give_bit_for_bit_the_vectors_of_separate_fields() -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    dims = {"user": 4, "item": 16, "age": 4, "city": 2, "hour": 2, "day": 16}
    schema = Schema(tuple(Field(name, size) for name, size in zip(dims, (70, 50, 8, 30, 24, 7), strict=True)))
    packed = MixedTables(schema, dims, 16)
    with torch.no_grad():
        for parameter in packed.parameters():
            parameter.normal_()
    ids = torch.stack([torch.randint(field.cardinality, (200,)) for field in schema.fields], 1).int()
    together = packed(Lookup(schema)(ids))
    taken = dict.fromkeys(packed.tables, 0)  # rows and projections of each dimension, in the order of the fields
    fields = dict.fromkeys(packed.tables, 0)
    for f, field in enumerate(schema.fields):
        d = str(dims[field.name])
        own_schema = Schema((field,))
        own = MixedTables(own_schema, {field.name: dims[field.name]}, 16)
        with torch.no_grad():
            own.tables[d].weight.copy_(packed.tables[d].weight[taken[d] : taken[d] + field.cardinality])
            if d in own.projections:
                own.projections[d].copy_(packed.projections[d][fields[d] : fields[d] + 1])
        taken[d], fields[d] = taken[d] + field.cardinality, fields[d] + 1
        alone = own(Lookup(own_schema)(ids[:, f : f + 1]))
        assert torch.equal(together[:, f], alone[:, 0])
