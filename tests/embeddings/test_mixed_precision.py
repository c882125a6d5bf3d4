"""MPE's rounding and its gradients, the groups of rows, the search, and the string that is served."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost
from pipeline.embeddings.mixed_precision import Groups, PackedPrecision, PrecisionSearch, Quantise, first_steps

SCHEMA = Schema((Field("user", 40), Field("age", 3), Field("item", 21)))
DIM, ROWS = 5, 64
COUNTS = np.concatenate([np.r_[7, 100 // np.arange(1, n)] for n in (40, 3, 21)])


def occurrences(rows: int = 60):
    return Lookup(SCHEMA)(torch.stack([torch.arange(rows) % n for n in (40, 3, 21)], 1).int())


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
def test_the_gradients_are_lsq_plus_s_written_out_number_by_number(bits: int) -> None:
    low, high, numbers = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 700
    generator = torch.Generator().manual_seed(bits)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    values = (1.2 * 2 ** (bits - 1) * draw(9, 4)).requires_grad_()
    offset = (0.3 * draw(4)).requires_grad_()
    step = torch.tensor([[0.8]], dtype=torch.float64, requires_grad=True)
    weight = draw(9, 4)
    served = Quantise.apply(values, step, offset, torch.tensor([[float(bits)]]), numbers)
    (served * weight).sum().backward()
    scale = 1 / (2 ** (bits - 1) * numbers) ** 0.5
    of_step, of_offset, kinds = 0.0, [0.0] * 4, set()
    for r in range(9):
        for c in range(4):
            u = (float(values[r, c].detach()) - float(offset[c].detach())) / 0.8
            code = min(max(round(u), low), high)
            assert float(served[r, c].detach()) == pytest.approx(code * 0.8 + float(offset[c].detach()))
            inside = low <= u <= high
            kinds.add(inside)
            of_step += float(weight[r, c]) * scale * (code - u if inside else code)
            of_offset[c] += 0.0 if inside else float(weight[r, c]) * scale
            assert float(values.grad[r, c]) == (float(weight[r, c]) if inside else 0.0)
    assert kinds == {True, False}
    assert float(step.grad) == pytest.approx(of_step)
    assert offset.grad.tolist() == pytest.approx(of_offset)


def test_one_bit_has_the_codes_minus_one_and_zero() -> None:
    values = torch.tensor([[-3.0, -0.6, -0.2, 0.3, 9.0]])
    served = Quantise.apply(values, torch.tensor([[2.0]]), torch.zeros(5), torch.tensor([[1.0]]), 5)
    assert served.tolist() == [[-2.0, 0.0, 0.0, 0.0, 0.0]]


def test_the_first_steps_are_the_paper_s_or_reach_as_far_as_is_asked() -> None:
    table, bits = torch.tensor([[0.1, -0.3], [0.2, 0.2]]), torch.tensor([1.0, 3.0, 6.0])
    torch.testing.assert_close(first_steps(table, bits, None), 0.4 / torch.tensor([1.0, 4.0, 32.0]).sqrt())
    assert (first_steps(table, bits, 0.5) * 2 ** (bits - 1)).tolist() == [0.5] * 3


def test_groups_of_a_field_have_equal_sizes_and_follow_from_the_schema() -> None:
    groups = Groups.by_field(SCHEMA, 4)
    assert groups.rows.tolist() == [10, 10, 10, 10, 1, 1, 1, 6, 5, 5, 5]
    assert groups.of.tolist() == list(range(11)) and groups.sizes.tolist() == groups.rows.tolist()


def test_groups_across_fields_have_equal_sizes_and_their_values_are_equally_frequent() -> None:
    order = np.argsort(-COUNTS, kind="stable")
    # The unknown ids are moved to the front of their fields, where a group begins.
    order = np.r_[[0, 40, 43], order[~np.isin(order, [0, 40, 43])]]
    groups = Groups.across(order, SCHEMA, 8)
    assert groups.sizes.tolist() == [8] * 8 and groups.rows.sum() == ROWS
    group = np.repeat(groups.of, groups.rows)
    known = np.setdiff1d(np.arange(ROWS), [0, 40, 43])
    least = [COUNTS[known][group[known] == g].min() for g in range(8)]
    most = [COUNTS[known][group[known] == g].max() for g in range(8)]
    assert all(least[g] >= most[g + 1] for g in range(7))


def search(price: float = 0.0) -> PrecisionSearch:
    torch.manual_seed(0)
    made = PrecisionSearch(SCHEMA, DIM, Groups.by_field(SCHEMA, 4), COUNTS, 0.1, price, 0.02)
    with torch.no_grad():
        made.logits.copy_(0.1 * torch.randn(made.logits.shape))
        made.offset.copy_(0.01 * torch.randn(DIM))
    return made


def test_the_search_mixes_the_rounded_rows_by_the_softmax_of_their_group() -> None:
    made, occ = search(), occurrences()
    embedded = made(occ).detach()
    p = torch.softmax(made.logits.detach() / 0.1, 1)
    steps, offset = made.log_steps.detach().exp(), made.offset.detach()
    for user in (0, 9, 10, 39):
        expected = torch.zeros(DIM)  # a width of 0 bits adds nothing
        for bits in range(1, 7):
            codes = ((made.table.weight[user].detach() - offset) / steps[bits - 1]).round()
            codes = codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            expected += p[user // 10, bits] * (codes * steps[bits - 1] + offset)
        torch.testing.assert_close(embedded[user, 0], expected)


def test_the_price_is_that_of_the_paper_for_groups_of_equal_size() -> None:
    schema = Schema((Field("user", 40),))
    counts = np.repeat([50, 20, 10, 2], 10)
    made = PrecisionSearch(schema, DIM, Groups.by_field(schema, 4), counts, 0.5, 0.3, None)
    with torch.no_grad():
        made.logits.normal_()
    expected = 0.0
    for g, relative in enumerate((25, 10, 5, 1)):
        p = torch.softmax(made.logits[g].detach() / 0.5, 0)
        expected += 0.3 * sum(float(p[b]) * b for b in range(7)) / relative
    assert float(made.objective(torch.tensor(1.0), "train").detach()) == pytest.approx(1 + expected, rel=1e-5)
    assert float(search().objective(torch.tensor(1.0), "train").detach()) == 1


def served(stored: bool = False) -> PackedPrecision:
    torch.manual_seed(1)
    rows, bits = np.array([10, 7, 23, 3, 4, 17]), np.array([6, 3, 1, 5, 3, 0])
    made = PackedPrecision(SCHEMA, DIM, rows, bits, np.full(6, 0.01) * np.arange(1, 7), np.zeros(DIM), stored)
    with torch.no_grad():
        made.table.weight.copy_(0.05 * torch.randn(ROWS, DIM))
        made.offset.copy_(0.01 * torch.randn(DIM))
    return made


@pytest.mark.parametrize("stored", [False, True])
def test_the_codes_take_exactly_their_bits_and_suffice(stored: bool) -> None:
    made, occ = served(stored), occurrences()
    made.finish()
    packed = made.eval().packed()
    codes = DIM * (10 * 6 + 7 * 3 + 23 * 1 + 3 * 5 + 4 * 3)
    assert len(packed["table"]) == -(-codes // 8) + 2  # a read takes two bytes at any place
    assert len(packed["plan.bits"]) == -(-6 * 3 // 8) + 2
    assert len(packed["step"]) == 4 and len(packed["offset"]) == DIM
    assert cost(packed).bytes == len(packed["table"]) + len(packed["plan.bits"]) + 4 * (4 + DIM) + 4 * 6 * stored
    expected = made.vectors(occ).detach()
    assert torch.equal(made.lookup(packed, occ), expected)
    assert not bool(expected[occ.rows >= 47].any()) and bool(expected[occ.rows < 47].any(1).all())


def test_finish_moves_rows_to_the_nearest_codes_and_a_second_time_changes_nothing() -> None:
    made = served()
    before, steps, offset = made.table.weight.detach().clone(), made.log_steps.detach().exp(), made.offset.detach()
    made.finish()
    table = made.table.weight.detach().clone()
    step = steps[0]  # of the least width that occurs, 1 bit: rows 17 to 39
    torch.testing.assert_close(table[17:40], ((before[17:40] - offset) / step).round().clamp(-1, 0) * step + offset)
    step = steps[3]  # of 6 bits: rows 0 to 9
    torch.testing.assert_close(table[:10], ((before[:10] - offset) / step).round().clamp(-32, 31) * step + offset)
    assert not bool(table[47:].any())
    made.finish()
    torch.testing.assert_close(made.table.weight.detach(), table, rtol=0, atol=1e-7)


def test_ranges_and_bits_that_do_not_fit_are_refused() -> None:
    steps, offset = np.ones(6), np.zeros(DIM)
    with pytest.raises(ValueError, match="mpe: ranges must cover 64 rows"):
        PackedPrecision(SCHEMA, DIM, np.array([60]), np.array([2]), steps, offset, False)
    for bits in (0, 7):
        with pytest.raises(ValueError, match="mpe: bits must be 0 to 6 and not all 0"):
            PackedPrecision(SCHEMA, DIM, np.array([64]), np.array([bits]), steps, offset, False)
