"""The transform gives the table back, and in its coordinates the quadratic loss is a sum over single numbers."""

import torch
from torch import Tensor

from pipeline.coding.transform import SD, transform


def drawn(rows: int = 60, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A table (V, D), weights (V,) and a metric (D, D) with a wide spectrum."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, dim, generator=generator) @ torch.diag(torch.logspace(0, -1, dim)) + 0.5
    weights = torch.rand(rows, generator=generator) ** 4
    root = torch.randn(dim, dim, generator=generator).double()
    return table, weights, root @ root.T / dim


def test_the_coefficients_and_the_decoder_give_the_table_back() -> None:
    for rows in (60, 3):  # fewer rows than dimensions have fewer components
        table, weights, metric = drawn(rows)
        found = transform(table, weights, metric)
        assert found.coefficients.shape == (rows, min(rows, 6))
        torch.testing.assert_close(found.mean + found.coefficients @ found.decoder, table, rtol=0, atol=2e-4)


def test_the_mean_and_the_variances_are_weighted() -> None:
    table, weights, metric = drawn()
    found = transform(table, weights, metric)
    shares = weights / weights.sum()
    torch.testing.assert_close(found.mean, shares @ table)
    torch.testing.assert_close((shares @ found.coefficients.square()).sqrt(), torch.full((6,), SD), rtol=1e-4, atol=0)
    assert bool((found.power.diff() <= 0).all())


def test_the_rise_of_the_loss_is_a_sum_over_single_coefficients() -> None:
    table, weights, metric = drawn()
    found = transform(table, weights, metric)
    errors = 0.003 * torch.randn(found.coefficients.shape, generator=torch.Generator().manual_seed(1))
    moved = (errors @ found.decoder).double()
    exact = 0.5 * float((weights.double() * ((moved @ metric) * moved).sum(1)).sum())
    by_number = 0.5 * float((weights.double() @ errors.double().square()) @ found.power)
    assert abs(by_number / exact - 1) < 1e-3


def test_rows_without_weights_count_alike_and_constant_tables_have_no_coefficients() -> None:
    table, _, metric = drawn()
    found = transform(table, torch.zeros(60), metric)
    torch.testing.assert_close(found.mean, table.mean(0))
    flat = transform(torch.full((5, 6), 0.25), torch.ones(5), metric)
    assert not bool(flat.coefficients.any()) and not bool(flat.power.any())
    torch.testing.assert_close(flat.mean, torch.full((6,), 0.25))
