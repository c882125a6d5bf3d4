"""The gradients of temporary gates, against gates written out."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.gates import Gated
from pipeline.embeddings.table import Table
from tests.contracts import logits_of

SCHEMA = Schema((Field("user", 7), Field("item", 5), Field("tags", 6, width=2)))
DIM, BATCH = 4, 30


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, S) ids and (B,) wanted outputs."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(0, n, (BATCH,), generator=generator) for n in (7, 5, 6, 6)], 1)
    ids[::3, 3] = PADDING
    return ids.int(), torch.randn(BATCH, generator=generator)


def loss_of(embedded: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (logits_of(embedded) - wanted).square().mean()


class ThreeBatches:
    """A judge by the squared error; see `pipeline.embeddings.contract.Judge`."""

    def __init__(self, embedding: Gated) -> None:
        self.embedding = embedding

    def losses(self) -> Iterator[torch.Tensor]:
        for seed in range(3):
            ids, wanted = batch(seed)
            yield loss_of(self.embedding(Lookup(SCHEMA)(ids)), wanted)

    def objective(self, batches: int | None = None) -> float:
        raise AssertionError("gates need only gradients")


@pytest.mark.parametrize("columns", [1, DIM])
@pytest.mark.parametrize("over", ["batch", "row"])
def test_a_saliency_is_the_mean_absolute_gradient_of_a_gate_for_any_loss(columns: int, over: str) -> None:
    embedding = Gated(SCHEMA, DIM, columns, over)
    torch.nn.init.normal_(embedding.table.weight)
    expected = torch.zeros(3, columns)
    for seed in range(3):
        ids, wanted = batch(seed)
        embedded = embedding(Lookup(SCHEMA)(ids)).detach()
        parts = [slice(0, BATCH)] if over == "batch" else [slice(i, i + 1) for i in range(BATCH)]
        for part in parts:
            gates = torch.ones(3, columns, requires_grad=True)
            loss = loss_of(embedded[part] * gates, wanted[part])
            expected += torch.autograd.grad(loss, gates)[0].abs() / (3 * len(parts))
    embedding.conclude(ThreeBatches(embedding))
    saliency = embedding.findings().arrays()["saliency"]
    np.testing.assert_allclose(saliency, expected.numpy(), rtol=1e-4)
    assert embedding.table.weight.grad is None


def test_training_has_no_gates() -> None:
    embedding = Gated(SCHEMA, DIM, DIM, "row")
    assert [type(module) for module in embedding.children()] == [Table]
    assert [name for name, _ in embedding.named_parameters()] == ["table.weight"]
    assert embedding.arch_parameters() == []
