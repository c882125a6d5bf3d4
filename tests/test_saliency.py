"""The gradients of gates that are there for a moment, against gates spelled out."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.gates import Gated
from pipeline.embeddings.table import Table

SCHEMA = Schema((Field("user", 7), Field("item", 5), Field("tags", 6, width=2)))
DIM, BATCH = 4, 30


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(0, n, (BATCH,), generator=generator) for n in (7, 5, 6, 6)], 1)
    ids[::3, 3] = PADDING
    return ids.int(), torch.randint(0, 2, (BATCH,), generator=generator).float()


def logits_of(embedded: torch.Tensor) -> torch.Tensor:
    weight = torch.randn(embedded.shape[1:], generator=torch.Generator().manual_seed(5))
    return (embedded * weight).sum((1, 2)) + embedded.sum(1).square().sum(1)


@pytest.mark.parametrize("columns", [1, DIM])
@pytest.mark.parametrize("over", ["batch", "row"])
def test_a_saliency_is_the_mean_absolute_gradient_of_a_gate(columns: int, over: str) -> None:
    embedding = Gated(SCHEMA, DIM, columns, over)
    torch.nn.init.normal_(embedding.table.weight)

    def passes() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for seed in range(3):
            ids, labels = batch(seed)
            yield logits_of(embedding(Lookup(SCHEMA)(ids))), labels

    expected = torch.zeros(3, columns)
    for seed in range(3):
        ids, labels = batch(seed)
        embedded = embedding(Lookup(SCHEMA)(ids)).detach()
        parts = [slice(0, BATCH)] if over == "batch" else [slice(i, i + 1) for i in range(BATCH)]
        for part in parts:
            gates = torch.ones(3, columns, requires_grad=True)
            loss = binary_cross_entropy_with_logits(logits_of(embedded[part] * gates), labels[part])
            expected += torch.autograd.grad(loss, gates)[0].abs() / (3 * len(parts))
    embedding.conclude(passes)
    np.testing.assert_allclose(embedding.found()["saliency"], expected.numpy(), rtol=1e-4)
    assert embedding.table.weight.grad is None


def test_training_has_no_gates() -> None:
    embedding = Gated(SCHEMA, DIM, DIM, "row")
    assert [type(module) for module in embedding.children()] == [Table]
    assert [name for name, _ in embedding.named_parameters()] == ["table.weight"]
    assert embedding.arch_parameters() == []
