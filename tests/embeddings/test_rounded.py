"""Codes of a few bits: the rounding error, the packing, and tables that are served exactly as they were finished."""

import re

import pytest
import torch

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.rounded import RoundedTables, codes_within, packed_codes, quantise, unpacked_codes

SCHEMA = Schema((Field("user", 70), Field("item", 50), Field("age", 3)))
DIMS = {"user": 5, "item": 8, "age": 2}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_number_is_off_by_more_than_half_a_scale(bits: int) -> None:
    table = draw(200, 7) * 10 ** draw(200, 1, seed=1)
    codes, scale = quantise(table, bits)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float16
    off = (table.double() - codes.double() * scale.double()[:, None]).abs()
    assert bool((off <= scale.double()[:, None] / 2).all())
    assert float(off.max()) > 0


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_extremes_of_a_row_get_the_extreme_codes_and_do_not_wrap_around(bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    table = torch.tensor([[1.0, -1.0, 0.0], [3.3, 3.3, 3.3], [-3.3, -3.3, -3.3], [1e-3, -5e4, 5e4]])
    codes, _ = quantise(table, bits)
    assert codes.tolist() == [[top, -top, 0], [top] * 3, [-top] * 3, [0, -top, top]]


def test_a_row_of_zeros_has_scale_0_and_tiny_numbers_are_not_lost() -> None:
    table = torch.tensor([[0.0, 0.0], [1e-6, -1e-6], [1e-9, 0.0]])
    codes, scale = quantise(table, 8)
    assert codes[0].tolist() == [0, 0] and float(scale[0]) == 0
    assert bool((scale[1:] > 0).all())
    assert bool(((table - codes * scale[:, None].float()).abs() <= scale[:, None].float() / 2).all())


def test_int8_rows_are_within_half_of_their_scale_at_the_extremes_too() -> None:
    table = draw(2000, 7) * 10.0 ** torch.arange(2000).remainder(15).sub(9)[:, None]
    table[0] = 0
    table[1] = torch.tensor([1, -1, 0.5, -0.5, 0, 1e-3, -1e-3])
    table[2, 3] = -8.3e6
    values, scale = quantise(table)
    restored = values.double() * scale.double()[:, None]
    assert bool(((table.double() - restored).abs() <= scale.double()[:, None] / 2).all())
    assert int(values.min()) >= -127 and int(values.max()) <= 127  # symmetric: -128 is never taken
    assert bool((values[0] == 0).all()) and float(scale[0]) == 0
    assert values[1, :2].tolist() == [127, -127]


@pytest.mark.parametrize(("bits", "wrong"), [(4, float("inf")), (8, float("nan")), (8, float("inf")), (8, 1e7)])
def test_a_number_that_cannot_be_rounded_is_refused_with_its_row(bits: int, wrong: float) -> None:
    table = torch.ones(5, 2)
    table[3, 1] = wrong
    message = rf"row 3 of a table goes up to {re.escape(f'{wrong:g}')}, too large for int{bits}; use float32"
    with pytest.raises(ValueError, match=message):
        quantise(table, bits)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_codes_are_unpacked_unchanged_and_a_row_takes_as_few_bytes_as_possible(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for dim in (1, 2, 3, 4, 5, 8):
        codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (50, dim), generator=generator).to(torch.int8)
        packed = packed_codes(codes, bits)
        assert packed.dtype == torch.uint8 and packed.shape == (50, -(-dim * bits // 8)), dim
        assert torch.equal(unpacked_codes(packed, bits, dim), codes), dim


def test_the_first_code_is_in_the_lowest_bits() -> None:
    assert packed_codes(torch.tensor([[-8, 7, 0]], dtype=torch.int8), 4).tolist() == [[0xF0, 0x08]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tables_are_trained_in_full_precision_and_rounded_at_the_end(bits: int) -> None:
    torch.manual_seed(0)
    plain = MixedTables(SCHEMA, DIMS, 8)
    torch.manual_seed(0)
    embedding = RoundedTables(SCHEMA, DIMS, 8, bits)
    occ = Lookup(SCHEMA)(torch.stack([torch.arange(60) % n for n in (70, 50, 3)], 1).int())
    assert torch.equal(embedding(occ), plain(occ))
    before = {d: table.weight.detach().clone() for d, table in embedding.tables.items()}
    embedding.finish()
    for d, table in embedding.tables.items():
        codes, scale = quantise(before[d], bits)
        assert torch.equal(table.weight, codes * scale.float()[:, None])
        assert torch.equal(codes_within(table.weight, scale, -128, 127), codes)  # no code moves
        assert len(table.weight[0].unique()) <= 2**bits - 1
    packed = embedding.packed()
    expected = sum(n * (-(-d * bits // 8) + 2) + (4 * d * 8 if d < 8 else 0) for n, d in ((70, 5), (50, 8), (3, 2)))
    assert cost(packed).bytes == expected
    assert torch.equal(embedding.lookup(packed, occ), embedding.vectors(occ))


def test_other_numbers_of_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bits must be one of \[2, 4, 8\], got 3"):
        RoundedTables(SCHEMA, DIMS, 8, 3)
