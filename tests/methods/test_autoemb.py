"""AutoEmb's weights of blocks, and the allocations of its hard and its soft form."""

import itertools
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup, spread
from pipeline.embeddings.cost import cost, full_tables, spent
from pipeline.embeddings.row_blocks import allocate, merged
from pipeline.methods import autoemb
from tests.contracts import assert_every_parameter_has_a_gradient, evidence, problem

SCHEMA = Schema((Field("user", 200), Field("age", 3), Field("item", 80)))
CANDIDATES = [[1, 2, 4], [1, 4], [0, 2, 4]]
DIM = 4
FULL = full_tables(SCHEMA, DIM).bytes


def draw_ids(rows: int = 200) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.stack([rng.integers(0, n, rows) for n in (200, 3, 80)], 1).astype(np.int32))


def supernet(seed: int = 0, candidates=CANDIDATES, **options) -> autoemb.ControlledMixture:
    torch.manual_seed(seed)
    asked = problem("autoemb", SCHEMA, DIM, candidates)
    made = autoemb.find(asked, **{"blocks": 3, "warm_up": 0.0, **options})
    with torch.no_grad():
        for parameter in made.controllers.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return made


def given(made: autoemb.ControlledMixture, candidates=CANDIDATES, **more) -> Evidence:
    return evidence("autoemb", SCHEMA, DIM, candidates, arrays=made.findings().arrays(), **more)


def test_a_row_s_weights_are_those_of_its_block() -> None:
    made = supernet()
    assert made.rows.tolist() == [[50, 150, 0], [3, 0, 0], [20, 60, 0]]
    occ = Lookup(SCHEMA)(draw_ids())
    weights = made.controllers().exp()
    block = [0 if row < 50 else 1 for row in range(200)] + [0] * 3 + [0 if row < 20 else 1 for row in range(80)]
    field = [0] * 200 + [1] * 3 + [2] * 80
    of_rows = torch.stack([weights[field[row], block[row]] for row in occ.rows.tolist()])
    made.eval()
    torch.testing.assert_close(made(occ), spread(made.slices(occ, of_rows), occ))


def test_all_candidates_have_equal_weights_in_the_warm_up() -> None:
    made, occ = supernet(warm_up=0.5), Lookup(SCHEMA)(draw_ids())
    made.eval()
    made.before_step(49, 100)
    assert made.warming()
    valid = made.controllers.valid
    equal = (valid / valid.sum(1, keepdim=True))[
        torch.searchsorted(torch.tensor([200, 203, 283]), occ.rows, right=True)
    ]
    torch.testing.assert_close(made.vectors(occ), made.slices(occ, equal))
    made.before_step(50, 100)
    assert not made.warming() and not torch.allclose(made.vectors(occ), made.slices(occ, equal))


def test_only_the_controllers_are_architecture() -> None:
    made = supernet()
    assert {id(p) for p in made.arch_parameters()} == {id(p) for p in made.controllers.parameters()}


def test_scores_are_the_logarithms_of_mean_weights_over_the_blocks_that_have_rows() -> None:
    made = supernet()
    weights = made.controllers().exp().detach()  # candidates 0, 1, 2, 4
    expected = [weights[0, :2, 1:].mean(0), weights[1, 0, [1, 3]], weights[2, :2][:, [0, 2, 3]].mean(0)]
    for row, values in zip(made.findings().scores.detach(), expected, strict=True):
        torch.testing.assert_close(row[: len(values)].exp(), values)
        assert bool((row[len(values) :] == -torch.inf).all())


def test_without_a_budget_every_block_has_the_dimension_of_its_largest_weight() -> None:
    for seed in range(5):
        made = supernet(seed)
        log_weights = made.controllers().detach().numpy()
        dims = [
            [field[int(np.argmax(log_weights[f, s][np.searchsorted([0, 1, 2, 4], field)]))] for s in range(3)]
            for f, field in enumerate(CANDIDATES)
        ]
        chosen = autoemb.derive(given(made))
        for f, name in enumerate(SCHEMA.names):
            blocks = merged(made.rows[f].tolist(), dims[f])
            assert chosen.dims[name] == max(d for _, d in blocks)
            if len(blocks) > 1 and chosen.dims[name]:
                assert chosen.settings["blocks"][name] == [list(block) for block in blocks]
            else:
                assert name not in chosen.settings["blocks"]


def test_under_a_budget_the_largest_sum_of_log_weights_that_fits_is_taken() -> None:
    made = supernet()
    log_weights = made.controllers().detach().double().numpy()
    every = []
    vectors = (itertools.product(field, repeat=n) for field, n in zip(CANDIDATES, (2, 1, 2), strict=True))
    for dims in itertools.product(*vectors):
        blocks = [merged(made.rows[f].tolist(), [*field, 0, 0][:3]) for f, field in enumerate(dims)]
        score = sum(
            log_weights[f, s, [0, 1, 2, 4].index(d)] for f, field in enumerate(dims) for s, d in enumerate(field)
        )
        allocation = allocate(given(made), blocks)
        every.append((score, spent(autoemb.build, SCHEMA, DIM, allocation).bytes, allocation))
    for share in (0.9, 0.6, 0.3):
        budget = int(FULL * share)
        best = max((choice for choice in every if choice[1] <= budget), key=lambda choice: choice[0])
        assert autoemb.derive(given(made, budget=budget)) == best[2]


def test_more_choices_than_can_be_compared_are_refused() -> None:
    schema, many = Schema((Field("user", 2000),)), [range(1, 30)]
    made = autoemb.find(problem("autoemb", schema, 32, many), blocks=4)
    crowded = evidence("autoemb", schema, 32, many, arrays=made.findings().arrays())
    with pytest.raises(
        ValueError, match=r"'user' must have at most 32768 choices, got 29 candidates for each of 4 blocks"
    ):
        autoemb.derive(crowded)


# --- the soft form


WHOLE = [[1, 2, 4], [1, 4], [2, 4]]  # no field can be dropped


def soft(budget: int | None = None) -> Allocation:
    return autoemb.derive(given(supernet(candidates=WHOLE), WHOLE, budget=budget), form="soft")


def test_the_soft_form_keeps_every_candidate_with_its_weights() -> None:
    allocation = Allocation.from_dict(soft().to_dict())
    assert allocation.dims == {"user": 4, "age": 4, "item": 4}
    made = autoemb.build(SCHEMA, DIM, allocation)
    assert isinstance(made, autoemb.BlockMixture)
    torch.testing.assert_close(made.weights.sum(2), torch.ones(3, 3))
    occ = Lookup(SCHEMA)(draw_ids())
    made(occ).square().sum().backward()
    assert_every_parameter_has_a_gradient(made)
    assert made.arch_parameters() == []


def test_the_soft_form_pays_for_all_slices_and_weights_and_needs_nothing_else_to_serve() -> None:
    allocation = soft()
    made = autoemb.build(SCHEMA, DIM, allocation)
    occ = Lookup(SCHEMA)(draw_ids())
    made(occ)
    made.finish()
    made.eval()
    size = cost(made.packed())
    assert size == spent(autoemb.build, SCHEMA, DIM, allocation)
    assert size.params_by_kind["table"] == 283 * (1 + 2 + 4) and size.bytes > FULL
    assert size.params_by_kind["controller"] == 3 * 3 * 3
    with torch.no_grad():
        expected = made(occ)
        other = autoemb.build(SCHEMA, DIM, allocation).eval()
        other.load_state_dict(made.state_dict())
        assert torch.equal(other(occ), expected)
        kept = {tensor.untyped_storage().data_ptr() for tensor in made.packed().values()}
        for tensor in [*made.parameters(), *made.buffers()]:
            if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in kept:
                tensor.fill_(torch.nan)
        assert torch.equal(made(occ), expected)


def test_the_soft_form_is_refused_under_a_smaller_budget_and_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"autoemb: the soft form .* budget") as refused:
        soft(FULL)
    stated = re.search(r"the least is ([\d,]+) bytes", str(refused.value))
    assert stated
    least = int(stated[1].replace(",", ""))
    assert soft(least) == soft()
    with pytest.raises(ValueError, match="budget"):
        soft(least - 1)


def test_a_mixture_of_other_fields_is_refused() -> None:
    allocation = soft()
    with pytest.raises(ValueError, match="must be of 2 fields and 3 candidates, got"):
        autoemb.build(SCHEMA.subset(["user", "age"]), DIM, allocation)


def test_without_the_weights_of_a_search_nothing_is_derived() -> None:
    with pytest.raises(ValueError, match="autoemb needs the weights that its search finds, got none"):
        autoemb.derive(evidence("autoemb", SCHEMA, DIM, CANDIDATES))
