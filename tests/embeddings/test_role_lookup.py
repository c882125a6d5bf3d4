"""Lookups of users, items and events, which come in different numbers, against one field at a time."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup, Occurrences, RoleLookup, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.folded_mixture import FoldedMixture
from tests.contracts import METHODS, TRAINED, built, dense, ids_of, supernet
from tests.contracts import SCHEMA as WITHOUT_ROLES

SCHEMA = Schema(
    (
        Field("user", 7, role="user"),
        Field("item", 5, role="item"),
        Field("title", 6, width=3, role="item"),
        Field("type", 3, role="event"),
        Field("age", 4, role="event"),
        Field("country", 3, role="user"),  # fields of a role need not be neighbours
    )
)
BLOCKS = {
    "user": torch.tensor([[1, 0], [6, 2], [1, 2]], dtype=torch.int32),
    "item": torch.tensor(
        [[0, 1, 2, 5], [4, 3, PADDING, PADDING], [4, 2, 1, PADDING], [1, 2, 2, PADDING]], dtype=torch.int32
    ),
    "event": torch.tensor([[0, 1], [2, 3], [0, 1], [0, 0], [1, 2]], dtype=torch.int32),
}


def plain(table: Tensor, schema: Schema, blocks: dict[str, Tensor]) -> list[Tensor]:
    """The vector of each bag, role after role, by a loop over rows and fields."""
    vectors = []
    for role, ids in blocks.items():
        for row in ids.tolist():
            slot = 0
            for number, field in enumerate(schema.fields):
                if field.role == role:
                    own = [i for i in row[slot : slot + field.width] if i != PADDING]
                    vectors.append(sum(table[schema.first_rows[number] + i] for i in own) / len(own))
                    slot += field.width
    return vectors


def fields_of(schema: Schema, blocks: dict[str, Tensor]) -> list[int]:
    """The field of each bag."""
    own = {role: [n for n, field in enumerate(schema.fields) if field.role == role] for role in blocks}
    return [number for role, ids in blocks.items() for _ in range(len(ids)) for number in own[role]]


def looked_up(schema: Schema, blocks: dict[str, Tensor], table: Tensor) -> tuple[Occurrences, Tensor]:
    occ = RoleLookup(schema)(blocks)
    return occ, spread(table[occ.rows], occ)


SOME = SCHEMA.subset(["item", "title", "age", "country"])
SOME_BLOCKS = {"event": BLOCKS["event"][:, 1:], "user": BLOCKS["user"][:, 1:], "item": BLOCKS["item"]}
CASES = {"all fields": (SCHEMA, BLOCKS), "some fields, other order of roles": (SOME, SOME_BLOCKS)}


@pytest.mark.parametrize("case", CASES)
def test_vectors_and_gradients_are_those_of_one_lookup_per_field(case: str) -> None:
    schema, blocks = CASES[case]
    torch.manual_seed(0)
    table = torch.randn(schema.num_rows, 3, dtype=torch.float64, requires_grad=True)
    _, ours = looked_up(schema, blocks, table)
    naive = torch.stack(plain(table, schema, blocks))
    torch.testing.assert_close(ours, naive)
    weight = torch.randn_like(naive)
    torch.testing.assert_close(*(torch.autograd.grad((x * weight).sum(), table)[0] for x in (ours, naive)))


@pytest.mark.parametrize("case", CASES)
def test_what_occurrences_say_of_each_field_is_counted_over_its_bags(case: str) -> None:
    schema, blocks = CASES[case]
    occ = RoleLookup(schema)(blocks)
    fields = fields_of(schema, blocks)
    assert occ.fields.tolist() == fields and occ.shape == (len(fields),)
    numbers = [fields.count(number) for number in range(len(schema))]
    assert occ.bags_per_field().tolist() == numbers
    values = torch.randn(len(fields), 2)
    for number in range(len(schema)):
        own = [value for value, field in zip(values, fields, strict=True) if field == number]
        torch.testing.assert_close(occ.of_field(values, number), torch.stack(own))
        torch.testing.assert_close(occ.sums(values)[number], sum(own))
    per_field = torch.randn(len(schema), 2)
    assert torch.equal(occ.to_bags(per_field), per_field[fields])
    one_hot = torch.eye(schema.num_rows)
    share = torch.zeros(schema.num_rows)
    for vector, field in zip(plain(one_hot, schema, blocks), fields, strict=True):
        share += vector / numbers[field]
    torch.testing.assert_close(occ.shares(), share[occ.rows])
    assert share.gt(0).sum() == len(occ.rows)


def test_a_role_that_a_batch_does_not_have_leaves_its_fields_without_bags() -> None:
    blocks = {"item": BLOCKS["item"], "user": BLOCKS["user"]}
    occ = RoleLookup(SCHEMA)(blocks)
    assert occ.bags_per_field().tolist() == [3, 4, 4, 0, 0, 3]
    assert bool(occ.shares().isfinite().all())
    ends = occ.ends.tolist()
    assert ends[2] == ends[3] == ends[4] < ends[5] == len(occ.rows)


def test_the_number_of_fields_of_a_role_does_not_count_slots() -> None:
    lookup = RoleLookup(SCHEMA)
    assert [lookup.number(role) for role in ("user", "item", "event", "nobody")] == [2, 2, 2, 0]


def test_all_rows_are_looked_up_once_each() -> None:
    table = torch.randn(SCHEMA.num_rows, 2, requires_grad=True)
    occ = RoleLookup(SCHEMA).all(SCHEMA)
    ours = spread(table[occ.rows], occ)
    assert torch.equal(ours, table)
    weight = torch.randn_like(table)
    (gradient,) = torch.autograd.grad((ours * weight).sum(), table)
    assert torch.equal(gradient, weight)
    assert occ.bags_per_field().tolist() == SCHEMA.cardinalities.tolist()
    sums = [float(part.sum()) for part in occ.shares().split(SCHEMA.cardinalities.tolist())]
    assert sums == pytest.approx([1.0] * len(SCHEMA))


# --- the same rows, once as a log and once by role

ONE_ROLE = {"user": "user", "item": "item", "age": "user", "tags": "item"}


def with_roles(schema: Schema) -> Schema:
    return Schema(tuple(Field(f.name, f.cardinality, f.width, ONE_ROLE[f.name]) for f in schema.fields))


def both(schema: Schema, rows: int = 40) -> tuple[Occurrences, Occurrences, Tensor]:
    """The occurrences of rows of a log, those of the same rows by role, and where each bag of the latter is among the
    bags of the former."""
    ids, roles = ids_of(schema)[:rows], with_roles(schema)
    blocks, order = {}, []
    for role in ("item", "user"):
        own = [n for n, field in enumerate(roles.fields) if field.role == role]
        if own:
            blocks[role] = ids[:, [n for n, f in enumerate(roles.slot_fields) if f in own]]
            order.append((torch.arange(rows)[:, None] * len(roles) + torch.tensor(own)).flatten())
    return Lookup(schema)(ids), RoleLookup(roles)(blocks), torch.cat(order)


def assert_alike(embedding: FieldEmbedding, schema: Schema) -> None:
    """An embedding gives the same vectors, gradients and statistics for rows of a log and for the same rows by role."""
    log, roles, order = both(schema)
    outcomes = []
    for occ in (log, roles):
        copied = copy.deepcopy(embedding)
        torch.manual_seed(1)  # of noise
        vectors = copied(occ).reshape(-1, copied.dim)
        vectors = vectors if occ is roles else vectors[order]
        weight = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
        gradients = {}
        if vectors.requires_grad:
            (vectors * weight).sum().backward()
            gradients = {name: dense(p.grad) for name, p in copied.named_parameters() if p.grad is not None}
        outcomes.append((vectors.detach(), gradients, copied.state_dict()))
    (one, its_gradients, its_state), (other, gradients, state) = outcomes
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == its_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, its_gradients[name], rtol=1e-3, atol=1e-4, msg=name)
    for name, value in state.items():
        torch.testing.assert_close(value, its_state[name], rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_builds_treats_rows_by_role_as_rows_of_a_log(name: str, training: bool) -> None:
    embedding, kept, _ = built(name)
    embedding.take_first_order(False)
    assert_alike(embedding.train(training), kept)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_supernet_treats_rows_by_role_as_rows_of_a_log(name: str, training: bool) -> None:
    embedding = supernet(name)
    embedding.take_first_order(False)
    assert_alike(embedding.train(training), WITHOUT_ROLES)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_builds_gives_a_vector_to_every_row_of_its_table(name: str) -> None:
    embedding, kept, _ = built(name)
    embedding.take_first_order(False)
    vectors = embedding(RoleLookup(with_roles(kept)).all(kept))
    assert vectors.shape == (kept.num_rows, embedding.dim) and bool(vectors.isfinite().all())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("unification", ["linear", "padding"])
def test_a_mixture_has_the_statistics_of_the_bags_that_there_are(unification: Any) -> None:
    """Items come in other numbers than users; each field is as if it were alone in a log."""
    torch.manual_seed(0)
    mixture = FoldedMixture(SCHEMA, [[2, 4]] * len(SCHEMA), 4, unification=unification)
    p = torch.full((len(SCHEMA), 2), 0.5)
    occ = RoleLookup(SCHEMA)(BLOCKS)
    ours = spread(mixture(occ, p), occ)
    for number, field in enumerate(SCHEMA.fields):
        schema, first = Schema((field,)), SCHEMA.first_rows[number]
        alone = FoldedMixture(schema, [[2, 4]], 4, unification=unification)
        with torch.no_grad():
            alone.table.weight.copy_(mixture.table.weight[first : first + field.cardinality])
            if unification == "linear":
                alone.maps.copy_(mixture.maps[number : number + 1])
        of_role = SCHEMA.of_role(field.role)
        assert of_role is not None
        log = Lookup(schema)(BLOCKS[field.role][:, of_role.slots_of([field.name])])
        torch.testing.assert_close(occ.of_field(ours, number), spread(alone(log, p[:1]), log)[:, 0])
        torch.testing.assert_close(mixture.mean[number], alone.mean[0])
        torch.testing.assert_close(mixture.covariance[number], alone.covariance[0])


def test_the_statistics_of_a_field_without_bags_stay_as_they_are() -> None:
    mixture = FoldedMixture(SCHEMA, [[4]] * len(SCHEMA), 4)
    occ = RoleLookup(SCHEMA)({"item": BLOCKS["item"]})
    mixture(occ, torch.ones(len(SCHEMA), 1))
    changed = (mixture.covariance != torch.eye(4)).any(2).any(1)
    assert changed.tolist() == [False, True, True, False, False, False]
    assert bool(mixture.mean.isfinite().all()) and bool(mixture.covariance.isfinite().all())
