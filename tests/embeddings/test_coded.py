"""Coded tables: their predicted loss, their training after coding, and the moments that they are coded by."""

import numpy as np
import pytest
import torch

from pipeline.coding.choice import choose
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.coded import CodedTables, ExaminedTables, Moments, full_table, in_order, predictions
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.mixed import MixedTables
from pipeline.models.model import Model, first_order_of
from pipeline.workflow.plug import plug

SCHEMA = Schema((Field("user", 300), Field("age", 4)))
DIM = 4


def moments(seed: int = 0) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.cat([1 / (1 + torch.arange(number).float()) for number in (300, 4)])
    root = torch.randn(2, DIM, DIM, generator=generator).double()
    return Moments(weights, root @ root.transpose(1, 2))


def trained(limit: int) -> tuple[CodedTables, torch.Tensor, float]:
    """Coded tables, the vectors (R, D) before coding, and the predicted rise of the loss."""
    torch.manual_seed(0)
    full = ExaminedTables(SCHEMA, DIM)
    table = full_table(full)
    fields = predictions(table, SCHEMA, moments())
    plans = choose(fields, limit)
    coded = CodedTables.of(table, SCHEMA, DIM, plans, moments())
    predicted = 0.0
    for one, plan in zip(fields, plans, strict=True):
        n = np.searchsorted((0, 1, 2, 3, 4, 5, 6, 8), plan.bits)
        rows, columns = np.indices(n.shape)
        predicted += one.rows[n[0, 0]] if plan.by_rows else one.components[rows, columns, n].sum()
    return coded, table.clone(), float(predicted)


def vectors(coded: CodedTables) -> torch.Tensor:
    """(R, D) of all rows."""
    ids = torch.stack([torch.arange(300), torch.arange(300) % 4], 1).int()
    with torch.no_grad():
        embedded = coded(Lookup(SCHEMA)(ids))
    return torch.cat([embedded[:, 0], embedded[:4, 1]])


def test_the_loss_of_the_coded_vectors_is_the_predicted_one() -> None:
    for limit in (150, 300, 900):
        coded, table, predicted = trained(limit)
        off = (vectors(coded) - table).double()
        fields = zip(in_order(off, SCHEMA), in_order(moments().weights, SCHEMA), moments().metrics, strict=True)
        rise = sum(0.5 * float((weights.double() * ((d @ g) * d).sum(1)).sum()) for d, weights, g in fields)
        assert abs(rise / predicted - 1) < 0.02  # decoders and means are stored in float16


def test_after_coding_the_gradient_passes_the_rounding_and_another_finish_settles_it() -> None:
    coded, _, _ = trained(300)
    before = vectors(coded)
    occ = Lookup(SCHEMA)(torch.tensor([[1, 2], [7, 3]]).int())
    coded(occ).sum().backward()
    assert coded.table.weight.grad is not None
    rows = coded.table.weight.grad.coalesce()
    block, _ = coded._places(rows.indices()[0], torch.tensor([0, 0, 1, 1]))
    used = coded.blocks.bits[block] > 0
    decoders = torch.where(coded.blocks.centred[:, None], coded.decoder.sum(2), 1.0)[torch.tensor([0, 0, 1, 1])]
    torch.testing.assert_close(rows.values(), torch.where(used, decoders, 0.0))
    with torch.no_grad():
        coded.table.weight.add_(1e-6)
    torch.testing.assert_close(vectors(coded), before)  # too small a move to reach another level
    coded.finish()
    torch.testing.assert_close(vectors(coded), before)
    with torch.no_grad():
        coded.table.weight.add_(10.0)
    assert not torch.equal(vectors(coded), before)


def test_the_unknown_id_is_the_last_in_the_order_of_coding() -> None:
    table = torch.arange(304)
    assert [part[[0, -1]].tolist() for part in in_order(table, SCHEMA)] == [[1, 0], [301, 300]]


def with_first_order(embedding: FieldEmbedding) -> Model:
    torch.manual_seed(1)
    return Model(SCHEMA, embedding, plug("backbones", "deepfm").Backbone).train()


def test_first_order_weights_in_the_embedding_train_as_in_the_backbone() -> None:
    torch.manual_seed(0)
    inside, outside = ExaminedTables(SCHEMA, DIM), MixedTables(SCHEMA, {"user": DIM, "age": DIM}, DIM)
    outside.load_state_dict(inside.state_dict())
    models = [with_first_order(inside), with_first_order(outside)]
    table = first_order_of(models[1].backbone).table
    assert first_order_of(models[0].backbone).table is None and table is not None
    ids = torch.stack([torch.arange(40) % 300, torch.arange(40) % 4], 1).int()
    for _ in range(3):
        gradients = []
        for model, weights in zip(models, (inside.first_order, table), strict=True):
            torch.manual_seed(2)
            model.zero_grad()
            model(ids).square().sum().backward()
            gradients.append(weights.weight.grad.to_dense())
            with torch.no_grad():
                for parameter in model.parameters():
                    gradient = parameter.grad
                    parameter -= 0.01 * (gradient.to_dense() if gradient.is_sparse else gradient)
        torch.testing.assert_close(*gradients)
    torch.testing.assert_close(full_table(inside, inside.first_order), full_table(outside, table))


def test_the_first_order_weight_is_the_last_number_of_a_coded_row() -> None:
    torch.manual_seed(0)
    table = torch.randn(304, DIM + 1)
    generous = Moments(moments().weights, torch.eye(DIM + 1).double().expand(2, -1, -1))
    plans = choose(predictions(table, SCHEMA, generous), 10_000)
    coded = CodedTables.of(table, SCHEMA, DIM, plans, generous)
    model = with_first_order(coded).eval()
    other = with_first_order(ExaminedTables(SCHEMA, DIM)).eval()
    other.backbone.load_state_dict(model.backbone.state_dict())
    other.embedding.load(table)
    ids = torch.stack([torch.arange(300), torch.arange(300) % 4], 1).int()
    with torch.no_grad():
        torch.testing.assert_close(model(ids), other(ids), atol=0.1, rtol=0)
        occ = Lookup(SCHEMA)(ids)
        torch.testing.assert_close(coded.lookup(coded.packed(), occ), coded.vectors(occ))
    assert coded.vectors(occ).shape[1] == DIM + 1
    with pytest.raises(ValueError, match="4 or 5, got 6"):
        CodedTables(SCHEMA, DIM, DIM + 2, plans)


@pytest.mark.parametrize(
    ("width", "backbone", "said"), [(DIM, "deepfm", "do not hold"), (DIM + 1, "ipnn", "has no such")]
)
def test_tables_coded_for_another_kind_of_backbone_are_refused(width: int, backbone: str, said: str) -> None:
    generous = Moments(moments().weights, torch.eye(width).double().expand(2, -1, -1))
    table = torch.randn(304, width)
    coded = CodedTables.of(table, SCHEMA, DIM, choose(predictions(table, SCHEMA, generous), 5000), generous)
    with pytest.raises(ValueError, match=f"{said}.* derive again with this backbone"):
        Model(SCHEMA, coded, plug("backbones", backbone).Backbone)


OWN = np.array([100, 4])  # the users from 100 on are rare


def sharing(kind: str) -> FieldEmbedding:
    torch.manual_seed(0)
    if kind == "searched":
        return ExaminedTables(SCHEMA, DIM, OWN)
    table = full_table(ExaminedTables(SCHEMA, DIM), None)
    table = torch.nn.functional.pad(table, (0, 1))
    whole = Moments(moments().weights, torch.eye(DIM + 1).double().expand(2, -1, -1))
    return CodedTables(SCHEMA, DIM, DIM + 1, choose(predictions(table, SCHEMA, whole), 900), OWN)


@pytest.mark.parametrize("kind", ["searched", "retrained"])
def test_rare_values_share_a_vector_and_train_as_if_they_were_unknown_but_for_their_first_order(kind: str) -> None:
    """The reference looks up the unknown id for the vectors, and takes the first-order weights of the values."""
    model = with_first_order(sharing(kind))
    table = model.embedding.joint if isinstance(model.embedding, ExaminedTables) else model.embedding.table  # type: ignore[union-attr]
    assert first_order_of(model.backbone).table is None
    reference = with_first_order(MixedTables(SCHEMA, {"user": DIM, "age": DIM}, DIM))
    plain, weights = reference.embedding.tables[str(DIM)], first_order_of(reference.backbone).table  # type: ignore[union-attr, index]
    with torch.no_grad():
        plain.weight.copy_(table.weight[:, :DIM])
    ids = torch.stack([torch.arange(0, 200, 5), torch.arange(40) % 4], 1).int()
    known = torch.where(torch.tensor([[100, 4]]) > ids, ids, 0).int()
    first_order = torch.randn(len(weights.weight), 1) / 10
    with torch.no_grad():
        weights.weight.copy_(first_order)
        of_model = model.embedding.first_order.weight if kind == "searched" else table.weight[:, DIM:]  # type: ignore[union-attr]
        of_model.copy_(first_order)
    occ = Lookup(SCHEMA)(ids)
    rows = model.embedding.vectors(occ)
    wanted = plain.weight[torch.where((occ.rows >= 100) & (occ.rows < 300), 0, occ.rows)]
    torch.testing.assert_close(rows, torch.cat([wanted, first_order[occ.rows]], 1))

    rows[:, :DIM].square().sum().backward()
    gradient = table.weight.grad.to_dense()[:, :DIM]
    assert not gradient[100:300].any() and gradient[5].any()
    shared = int((known[:, 0] == 0).sum())
    torch.testing.assert_close(gradient[0], shared * 2 * plain.weight[0])


def test_rare_values_of_finished_tables_have_the_shared_vector_and_weights_of_their_own() -> None:
    coded = sharing("retrained")
    assert isinstance(coded, CodedTables) and coded.trains_as() != CodedTables(SCHEMA, DIM, 5, coded.plans).trains_as()
    with torch.no_grad():
        coded.table.weight[:, DIM] = torch.linspace(-1, 1, 304)
    ids = torch.stack([torch.arange(300), torch.arange(300) % 4], 1).int()
    coded.finish()
    with torch.no_grad():
        rows = coded.vectors(Lookup(SCHEMA)(ids))
    vectors, weights = rows[100:300, :DIM], rows[100:300, DIM]
    assert float(vectors.std(0).max()) < 0.2 * float(rows[:100, :DIM].std(0).max())
    assert float(torch.corrcoef(torch.stack([weights, torch.linspace(-1, 1, 304)[100:300]]))[0, 1]) > 0.9
