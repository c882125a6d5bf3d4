"""One table, and products of its rows with a matrix for each group."""

import numpy as np
import pytest
import torch

from pipeline.embeddings.table import Table, grouped_matmul, grouped_outer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_grouped_products_are_products_group_by_group_even_for_an_empty_group(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values, matrices = torch.randn(9, 3, dtype=dtype), torch.randn(4, 3, 5, dtype=dtype)
    others, ends = torch.randn(9, 5, dtype=dtype), torch.tensor([4, 4, 7, 9], dtype=torch.int32)
    groups = [slice(0, 4), slice(4, 4), slice(4, 7), slice(7, 9)]
    product = torch.cat([values[g] @ m for g, m in zip(groups, matrices, strict=True)])
    outer = torch.stack([values[g].T @ others[g] for g in groups])
    torch.testing.assert_close(grouped_matmul(values, matrices, ends), product, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grouped_outer(values, others, ends), outer, rtol=1e-5, atol=1e-6)


def test_a_table_looks_up_rows_and_may_start_at_zero() -> None:
    table = Table(5, 2, sd=0.0)
    assert not bool(table.weight.any())
    with torch.no_grad():
        table.weight.copy_(torch.arange(10.0).view(5, 2))
    np.testing.assert_array_equal(table(torch.tensor([1, 4])).detach(), [[2, 3], [8, 9]])
