"""`compress` on models that know nothing of the project."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.allocation.budget import TooFewBytes
from pipeline.compress import CodedEmbedding, compress, restore

ROWS, DIM = (500, 3, 40), 8
FIRSTS = [0, 500, 503]


class OneTable(nn.Module):
    """All fields in one table, told apart by offsets."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(ROWS), DIM, **options)
        self.head = nn.Linear(3 * DIM, 1)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = self.table(ids + torch.tensor(FIRSTS))
        return self.head(vectors.flatten(1))[:, 0] + vectors.prod(1).sum(1)


class Bags(nn.Module):
    """A table for single values, and one for bags."""

    def __init__(self, mode: str = "mean") -> None:
        super().__init__()
        self.user = nn.Embedding(ROWS[0], DIM, padding_idx=0)
        self.tags = nn.EmbeddingBag(ROWS[2], DIM, mode=mode)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.user(ids[:, 0]) * self.tags(ids[:, 1:] % ROWS[2])).sum(1)


def drawn(seed: int = 0, rows: int = 2000) -> Tensor:
    """(B, 3) ids; small ones are frequent."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([(torch.rand(rows, generator=generator) ** 3 * n).long() for n in ROWS], 1)


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(model(ids), (ids.sum(1) % 2).float(), reduction="none")


def batches() -> Iterator[Tensor]:
    for seed in range(3):
        yield drawn(seed)


def trained(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    if isinstance(model, Bags):
        with torch.no_grad():
            model.user.weight[0] = 0
    return model


@pytest.mark.parametrize("model", [OneTable(), OneTable(sparse=True), Bags(), Bags("sum")])
def test_more_bytes_lose_less_and_no_more_is_stored_than_allowed(model: nn.Module) -> None:
    trained(model)
    expected, before = model(drawn()).detach(), {k: v.clone() for k, v in model.state_dict().items()}
    errors = []
    for share in (0.08, 0.15, 0.3):
        small, report = compress(model, batches(), losses, budget=share)
        tables = [module for module in small.modules() if isinstance(module, CodedEmbedding)]
        assert report.bytes == sum(table.bytes for table in tables) <= share * report.bytes_before
        assert sum(t.rows * t.dim * 4 for t in report.tables) == report.bytes_before
        errors.append(float((small(drawn()).detach() - expected).square().mean()))
        assert not any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in small.modules())
    assert errors[0] > errors[1] > errors[2] > 0 and errors[2] < 0.05 * float(expected.var())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # it is not changed


def clicks(model: nn.Module, seeds: range) -> list[tuple[Tensor, Tensor]]:
    """Batches of ids, and labels that follow the predictions of a model."""
    drawn_labels = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return [(ids, torch.bernoulli(model(ids).sigmoid(), generator=drawn_labels)) for ids in map(drawn, seeds)]


def click_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return binary_cross_entropy_with_logits(model(batch[0]), batch[1], reduction="none")


@torch.no_grad()
def mean_loss(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> float:
    return float(torch.cat([click_losses(model, batch) for batch in data]).mean())


def test_the_predicted_loss_is_near_the_measured_one() -> None:
    model = trained(OneTable())
    data = clicks(model, range(20))
    for share in (0.04, 0.07):
        small, report = compress(model, data, click_losses, budget=share, fields={"table": FIRSTS})
        predicted = sum(table.predicted_loss for table in report.tables)
        assert 0.6 < (mean_loss(small, data) - mean_loss(model, data)) / predicted < 1.5


def test_fields_of_one_table_are_coded_apart() -> None:
    model = trained(OneTable())
    whole, _ = compress(model, batches(), losses, budget=0.12)
    apart, _ = compress(model, batches(), losses, budget=0.12, fields={"table": FIRSTS})
    expected = model(drawn()).detach()
    off = [float((coded(drawn()).detach() - expected).square().mean()) for coded in (apart, whole)]
    assert off[0] < off[1]
    assert len(apart.get_submodule("table").tables) == 3


def test_padding_stays_zero_and_bags_leave_it_out() -> None:
    small, _ = compress(trained(Bags()), batches(), losses, budget=0.3)
    assert not bool(small.user(torch.zeros(2, dtype=torch.long)).any())
    flat, offsets = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 1, 4])
    bags = small.tags(flat, offsets)
    torch.testing.assert_close(bags[1], torch.stack([small.tags(flat[i : i + 1, None])[0] for i in (1, 2, 3)]).mean(0))
    assert not bool(bags[2].any())


def test_a_tolerance_finds_the_smallest_size_that_keeps_it() -> None:
    model = trained(OneTable())
    data, held_out = clicks(model, range(5)), clicks(model, range(5, 10))
    sizes = []
    for tolerance in (0.02, 0.002):
        small, report = compress(model, data, click_losses, tolerance=tolerance, held_out=held_out)
        assert mean_loss(small, held_out) <= mean_loss(model, held_out) + tolerance
        sizes.append(report.bytes)
    assert sizes[0] < sizes[1]
    with pytest.raises(ValueError, match="no size keeps the mean loss within -1; raise the tolerance"):
        compress(model, data, click_losses, tolerance=-1.0, held_out=held_out)


def test_a_state_is_restored_without_the_tables() -> None:
    small, _ = compress(trained(Bags()), batches(), losses, budget=0.2)
    with torch.device("meta"):
        fresh = Bags()
    state = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) < 0.2 * 4 * DIM * (
        ROWS[0] + ROWS[2]
    )
    assert torch.equal(restore(fresh, state)(drawn()), small(drawn()))


def test_half_precision_is_kept() -> None:
    model = trained(OneTable()).bfloat16()
    small, _ = compress(model, batches(), lambda m, ids: losses(m, ids).float(), budget=0.5)
    assert small(drawn()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "more", "why"),
    [
        (nn.Linear(3, 1), {}, "the model has the embedding tables .., got none"),
        (OneTable(), {"tables": ["tabel"]}, r"the model has the embedding tables \['table'\], got \['tabel'\]"),
        (OneTable(max_norm=1.0), {}, "table has max_norm=1.0, which changes rows at a lookup; remove it"),
        (Bags("max"), {}, "tags is an EmbeddingBag of mode 'max'; only 'sum' and 'mean' can be coded"),
        (OneTable(), {"fields": {"table": [0, 900]}}, "must ascend from 0 to below 543, got .0, 900."),
        (OneTable(), {"fields": {"other": [0]}}, r"fields are given for \['other'\]"),
        (OneTable(), {"tolerance": 0.1}, "give either a budget, or a tolerance with held_out batches"),
    ],
)
def test_what_cannot_be_coded_is_told_in_one_line(model: nn.Module, more: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compress(model, batches(), losses, **{"budget": 0.2, **more})


def test_a_shared_table_a_wrong_loss_no_batches_and_too_few_bytes_are_refused() -> None:
    model = trained(Bags())
    model.other = nn.Embedding(ROWS[0], DIM)
    model.other.weight = model.user.weight
    with pytest.raises(ValueError, match=r"user.weight is also other.weight; a table that is shared cannot be coded"):
        compress(model, batches(), losses, budget=0.2)
    model = trained(OneTable())
    with pytest.raises(ValueError, match=r"losses must return the loss of each row, \(B,\), got the shape \(\)"):
        compress(model, batches(), lambda m, ids: losses(m, ids).mean(), budget=0.2)
    with pytest.raises(ValueError, match="there are no batches"):
        compress(model, [], losses, budget=0.2)
    with pytest.raises(TooFewBytes, match=r"30 bytes are too few, the least is \d+; raise the budget"):
        compress(model, batches(), losses, budget=30)
