"""Codes of few bits: what they lose, how they are packed, and that tables made of them are served as they were left."""

import pytest
import torch

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost
from pipeline.embeddings.mixed import MixedTables
from pipeline.embeddings.rounded import QuantisedTables, codes_within, packed_codes, quantise, unpacked_codes

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
def test_the_extremes_of_a_row_get_the_extreme_codes_and_do_not_wrap_round(bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    table = torch.tensor([[1.0, -1.0, 0.0], [3.3, 3.3, 3.3], [-3.3, -3.3, -3.3], [1e-3, -5e4, 5e4]])
    codes, _ = quantise(table, bits)
    assert codes.tolist() == [[top, -top, 0], [top] * 3, [-top] * 3, [0, -top, top]]


def test_a_row_of_zeros_has_no_scale_and_tiny_ones_are_not_lost() -> None:
    table = torch.tensor([[0.0, 0.0], [1e-6, -1e-6], [1e-9, 0.0]])
    codes, scale = quantise(table, 8)
    assert codes[0].tolist() == [0, 0] and float(scale[0]) == 0
    assert bool((scale[1:] > 0).all())
    assert bool(((table - codes * scale[:, None].float()).abs() <= scale[:, None].float() / 2).all())


def test_what_cannot_be_rounded_is_refused_with_its_row() -> None:
    table = torch.ones(3, 2)
    table[1, 1] = torch.inf
    with pytest.raises(ValueError, match="row 1 of a table goes up to inf, which int4 cannot hold; use float32"):
        quantise(table, 4)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8])
def test_packed_codes_come_back_as_they_were_in_as_few_bytes_as_hold_a_row(bits: int, dim: int) -> None:
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (50, dim), generator=torch.Generator().manual_seed(0))
    packed = packed_codes(codes.to(torch.int8), bits)
    assert packed.dtype == torch.uint8 and packed.shape == (50, -(-dim * bits // 8))
    assert torch.equal(unpacked_codes(packed, bits, dim), codes.to(torch.int8))


def test_the_first_code_stands_in_the_lowest_bits() -> None:
    assert packed_codes(torch.tensor([[-8, 7, 0]], dtype=torch.int8), 4).tolist() == [[0xF0, 0x08]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tables_are_trained_as_they_are_and_rounded_at_the_end(bits: int) -> None:
    torch.manual_seed(0)
    plain = MixedTables(SCHEMA, DIMS, 8)
    torch.manual_seed(0)
    embedding = QuantisedTables(SCHEMA, DIMS, 8, bits)
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
    assert torch.equal(embedding.lookup(packed, occ), embedding(occ))


def test_other_numbers_of_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bits must be one of \[2, 4, 8\], however: bits=3"):
        QuantisedTables(SCHEMA, DIMS, 8, 3)
