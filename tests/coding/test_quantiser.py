"""Quantisers, blocks and bit strings against plain references."""

import numpy as np
import torch

from pipeline.coding.bitstring import Layout, pack, read
from pipeline.coding.quantiser import BITS, blocks, by_rows, dequantised, fit, quantised, row_scales


def test_blocks_end_where_the_shares_of_the_lookups_do() -> None:
    assert blocks(torch.tensor([0.52, 0.3, 0.14, 0.03, 0.01])).tolist() == [0, 1, 2, 3, 5]
    assert blocks(torch.tensor([0.9, 0.1])).tolist() == [0, 1, 2]
    assert blocks(torch.zeros(4)).tolist() == [0, 2, 4]  # .5, .8 and .95 of equal shares
    assert blocks(torch.ones(1)).tolist() == [0, 1]


def test_more_bits_lose_less_and_the_error_is_that_of_the_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    values, weights = torch.randn(400, 3, generator=generator), torch.rand(400, generator=generator)
    found = fit(values, weights)
    assert bool((found.errors.diff(dim=1) < 0).all())
    for n, bits in enumerate(BITS):
        low, step = found.low[:, n].float(), found.step[:, n].float()
        levels = low + step * torch.arange(2**bits)[:, None]  # (levels, 3)
        nearest = (values[:, None] - levels).square().amin(1)  # (400, 3)
        torch.testing.assert_close(found.errors[:, n], weights.double() @ nearest.double(), rtol=1e-5, atol=1e-8)


def test_the_step_is_near_the_best_that_a_fine_search_finds() -> None:
    values = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(2000)
    found = fit(values, weights)
    for n, bits in enumerate(BITS[1:], 1):
        steps = torch.linspace(0.01, 2, 400)
        lows = values.mean() - steps * (2**bits - 1) / 2
        errors = [
            float((values - dequantised(quantised(values, low, step, bits), low, step)).square().sum())
            for low, step in zip(lows, steps, strict=True)
        ]
        assert float(found.errors[0, n]) < 1.15 * min(errors)


def test_rows_by_themselves_are_off_by_half_a_step_at_most() -> None:
    table = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 50)[:, None]
    for bits in (2, 3, 4, 8):
        low, step = by_rows(row_scales(table, bits), bits)
        codes = quantised(table, low, step, bits)
        off = (dequantised(codes, low, step) - table).abs()
        assert bool((off <= 0.501 * step).all())
        assert float(codes.max()) <= 2**bits - 1


def test_codes_come_back_from_a_string_of_exactly_their_bits() -> None:
    rng = np.random.default_rng(0)
    rows, bits = np.array([9000, 5, 1, 40]), np.array([[3, 0, 1], [8, 8, 8], [0, 0, 0], [1, 5, 6]])
    layout = Layout(rows, bits)
    codes = [torch.from_numpy(rng.integers(0, 2**b, (n, 3))) for n, b in zip(rows, bits, strict=True)]
    string = pack(layout, codes)
    assert len(string) == layout.size == -(-int((rows * bits.sum(1)).sum()) // 8) + 2
    for block, (number, expected) in enumerate(zip(rows, codes, strict=True)):
        begins = layout.begins[block] + np.arange(number)[:, None] * layout.widths[block] + layout.offsets[block]
        found = read(string, torch.from_numpy(begins), torch.from_numpy(np.tile(bits[block], (number, 1))))
        assert torch.equal(found.long(), expected)
