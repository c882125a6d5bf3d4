"""DPQ's softmax variant against its equations; its nearest-centroid variant is tested in test_product_codes."""

import pytest
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.methods import dpq

SCHEMA = Schema((Field("user", 40), Field("item", 30)))
DIM, GROUPS, K = 6, 2, 4
DIMS = {"user": DIM, "item": DIM}


def made(temperature: float = 0.7) -> dpq.SoftmaxCentroids:
    torch.manual_seed(0)
    settings = {"variant": "sx", "groups": GROUPS, "centroids": [K], "temperature": temperature}
    embedding = dpq.build(SCHEMA, DIM, Allocation("dpq", DIMS, settings))
    with torch.no_grad():
        for parameter in embedding.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return embedding


def ids(rows: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(n, (rows,), generator=generator) for n in (40, 30)], 1).int()


def test_softmax_centroids_have_the_outputs_and_gradients_of_the_equations_written_out() -> None:
    embedding, drawn = made(), ids()
    embedded = embedding(Lookup(SCHEMA)(drawn))
    weight = torch.randn(embedded.shape)
    (embedded * weight).sum().backward()

    rows = sorted(set(drawn[:, 0].tolist())) + [40 + value for value in sorted(set(drawn[:, 1].tolist()))]
    table, keys, values = (
        p.detach().clone().requires_grad_() for p in (embedding.queries.weight, embedding.keys, embedding.values)
    )
    parts = []
    for g in range(GROUPS):
        r = table[rows, 3 * g : 3 * g + 3] @ keys[g].T
        r = (r - r.mean(0)) / r.var(0, correction=0).sqrt()  # BatchNorm without affine
        p = torch.softmax(r / 0.7, 1)
        onehot = torch.nn.functional.one_hot(p.argmax(1), K).float()
        parts.append((p - (p - onehot).detach()) @ values[g])
    vectors = dict(zip(rows, torch.cat(parts, 1), strict=True))
    expected = torch.stack([torch.stack([vectors[user], vectors[40 + item]]) for user, item in drawn.tolist()])
    torch.testing.assert_close(embedded, expected, rtol=1e-5, atol=1e-5)
    (expected * weight).sum().backward()
    for ours, plain in ((embedding.queries.weight.grad.to_dense(), table), (embedding.keys.grad, keys)):
        torch.testing.assert_close(ours, plain.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(embedding.values.grad, values.grad, rtol=1e-4, atol=1e-5)
    assert float(table.grad.abs().max()) > 0.1


def test_after_training_the_running_normalisation_decides_the_codes() -> None:
    embedding, occ = made(), Lookup(SCHEMA)(ids())
    for _ in range(60):
        embedding(occ)
    assert not torch.equal(embedding.mean, torch.zeros_like(embedding.mean))
    embedding.eval()
    live = embedding(occ)
    embedding.train().finish()
    assert embedding.training and torch.equal(embedding.eval()(occ), live)
    table, position = embedding.queries.weight.detach(), int(ids()[0, 0])
    for g in range(GROUPS):
        r = table[position, 3 * g : 3 * g + 3] @ embedding.keys[g].T.detach()
        best = int(((r - embedding.mean[g, 0]) * torch.rsqrt(embedding.variance[g, 0])).argmax())
        assert torch.equal(live[0, 0, 3 * g : 3 * g + 3], embedding.values.detach()[g, best])


def test_groups_of_one_coordinate_and_dimensions_other_than_d_are_refused() -> None:
    settings = {"variant": "sx", "groups": DIM, "centroids": [K], "temperature": 1.0}
    with pytest.raises(ValueError, match="groups of at least two coordinates, got groups=6 for dim=6"):
        dpq.build(SCHEMA, DIM, Allocation("dpq", DIMS, settings))
    with pytest.raises(ValueError, match=r"dpq: every kept field must have the dimension 6, got {'item': 3}"):
        dpq.build(SCHEMA, DIM, Allocation("dpq", DIMS | {"item": 3}, settings | {"groups": 2}))


def test_training_uses_most_of_the_centroids() -> None:
    """The check against collapse, with labels that depend on the values of both fields."""
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(40, 3, generator=generator), torch.randn(30, 3, generator=generator)
    for variant, own in (("vx", {"commitment": 0.0}), ("sx", {"temperature": 1.0})):
        torch.manual_seed(0)
        settings = {"variant": variant, "groups": GROUPS, "centroids": [8], **own}
        embedding = dpq.build(SCHEMA, DIM, Allocation("dpq", DIMS, settings))
        optimizer = torch.optim.Adam(embedding.parameters(), lr=0.01)
        losses = []
        for _ in range(150):
            drawn = torch.stack([torch.randint(n, (256,), generator=generator) for n in (40, 30)], 1).int()
            labels = ((left[drawn[:, 0].long()] * right[drawn[:, 1].long()]).sum(1) > 0).float()
            embedded = embedding(Lookup(SCHEMA)(drawn))
            logits = 5 * embedded.prod(1).sum(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
            optimizer.zero_grad()
            embedding.objective(loss, "train").backward()
            for parameter in embedding.parameters():
                parameter.grad = parameter.grad.to_dense()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.9 * losses[0], variant
        assert bool((embedding.perplexity() > 4).all()), variant
