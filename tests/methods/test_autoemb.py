"""AutoEmb's weights by block, and what its hard and its soft form make of them."""

import itertools
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost, full_tables, prices, spent
from pipeline.embeddings.row_blocks import allocate, merged
from pipeline.methods import autoemb
from tests.test_plugs import assert_every_parameter_has_a_gradient

SCHEMA = Schema((Field("user", 200), Field("age", 3), Field("item", 80)))
CANDIDATES = [[1, 2, 4], [1, 4], [0, 2, 4]]
DIM = 4
PRICES = prices(autoemb.build, SCHEMA, CANDIDATES, DIM)
FULL = full_tables(SCHEMA, DIM).bytes


def draw_ids(rows: int = 200) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.stack([rng.integers(0, n, rows) for n in (200, 3, 80)], 1).astype(np.int32))


def supernet(seed: int = 0, **options) -> autoemb.Supernet:
    torch.manual_seed(seed)
    made = autoemb.search(SCHEMA, DIM, CANDIDATES, PRICES, **{"blocks": 3, "warm_up": 0.0, **options})
    with torch.no_grad():
        for parameter in made.controllers.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return made


def evidence(made: autoemb.Supernet, **given) -> Evidence:
    return Evidence(SCHEMA, DIM, tuple(map(tuple, CANDIDATES)), PRICES, FULL, found=made.found(), **given)


def test_a_row_s_weights_are_those_of_its_block() -> None:
    made = supernet()
    assert made.rows.tolist() == [[50, 150, 0], [3, 0, 0], [20, 60, 0]]
    occ = Lookup(SCHEMA)(draw_ids())
    weights = made.controllers().exp()
    block = [0 if row < 50 else 1 for row in range(200)] + [0] * 3 + [0 if row < 20 else 1 for row in range(80)]
    field = [0] * 200 + [1] * 3 + [2] * 80
    of_rows = torch.stack([weights[field[row], block[row]] for row in occ.rows.tolist()])
    made.eval()
    torch.testing.assert_close(made(occ), made.slices(occ, of_rows))


def test_all_candidates_have_equal_weights_in_the_warm_up() -> None:
    made, occ = supernet(warm_up=0.5), Lookup(SCHEMA)(draw_ids())
    made.eval()
    made.before_step(49, 100)
    assert made.warming()
    valid = made.controllers.valid
    equal = (valid / valid.sum(1, keepdim=True))[
        torch.searchsorted(torch.tensor([200, 203, 283]), occ.rows, right=True)
    ]
    torch.testing.assert_close(made(occ), made.slices(occ, equal))
    made.before_step(50, 100)
    assert not made.warming() and not torch.allclose(made(occ), made.slices(occ, equal))


def test_only_the_controllers_are_architecture() -> None:
    made = supernet()
    assert {id(p) for p in made.arch_parameters()} == {id(p) for p in made.controllers.parameters()}


def test_scores_are_the_logarithms_of_the_mean_weights_over_the_blocks_that_have_rows() -> None:
    made = supernet()
    weights = made.controllers().exp().detach()  # candidates 0, 1, 2, 4
    expected = [weights[0, :2, 1:].mean(0), weights[1, 0, [1, 3]], weights[2, :2][:, [0, 2, 3]].mean(0)]
    for row, values in zip(made.scores().detach(), expected, strict=True):
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
        chosen = autoemb.derive(evidence(made))
        for f, name in enumerate(SCHEMA.names):
            blocks = merged(made.rows[f].tolist(), dims[f])
            assert chosen.dims[name] == max(d for _, d in blocks)
            if len(blocks) > 1 and chosen.dims[name]:
                assert chosen.settings["blocks"][name] == [list(block) for block in blocks]
            else:
                assert name not in chosen.settings["blocks"]


def test_under_a_budget_the_sum_of_log_weights_is_the_largest_that_fits() -> None:
    made = supernet()
    log_weights = made.controllers().detach().double().numpy()
    every = []
    vectors = (itertools.product(field, repeat=n) for field, n in zip(CANDIDATES, (2, 1, 2), strict=True))
    for dims in itertools.product(*vectors):
        blocks = [merged(made.rows[f].tolist(), [*field, 0, 0][:3]) for f, field in enumerate(dims)]
        score = sum(
            log_weights[f, s, [0, 1, 2, 4].index(d)] for f, field in enumerate(dims) for s, d in enumerate(field)
        )
        allocation = allocate("autoemb", SCHEMA, blocks)
        every.append((score, spent(autoemb.build, SCHEMA, DIM, allocation).bytes, allocation))
    for share in (0.9, 0.6, 0.3):
        budget = int(FULL * share)
        best = max((found for found in every if found[1] <= budget), key=lambda found: found[0])
        assert autoemb.derive(evidence(made, budget=budget)) == best[2]


def test_more_choices_than_can_be_weighed_are_refused() -> None:
    schema = Schema((Field("user", 2000),))
    many = [list(range(1, 30))]
    made = autoemb.search(schema, 32, many, np.zeros((1, 29), dtype=np.int64), blocks=4)
    given = Evidence(schema, 32, (tuple(many[0]),), np.zeros((1, 29), dtype=np.int64), 1, found=made.found())
    with pytest.raises(ValueError, match=r"field 'user' has 29 candidates for each of 4 blocks.*set blocks"):
        autoemb.derive(given)


# --- the soft form


WHOLE = [[1, 2, 4], [1, 4], [2, 4]]  # no field can be dropped


def soft(budget: int | None = None) -> Allocation:
    torch.manual_seed(0)
    made = autoemb.search(SCHEMA, DIM, WHOLE, PRICES, blocks=3)
    with torch.no_grad():
        for parameter in made.controllers.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    priced = prices(autoemb.build, SCHEMA, WHOLE, DIM)
    given = Evidence(SCHEMA, DIM, tuple(map(tuple, WHOLE)), priced, FULL, found=made.found(), budget=budget)
    return autoemb.derive(given, form="soft")


def test_the_soft_form_keeps_every_candidate_with_the_weights_that_were_found() -> None:
    allocation = Allocation.from_dict(soft().to_dict())
    assert allocation.dims == {"user": 4, "age": 4, "item": 4}
    made = autoemb.build(SCHEMA, DIM, allocation)
    assert isinstance(made, autoemb.Mixture)
    torch.testing.assert_close(made.weights.sum(2), torch.ones(3, 3))
    occ = Lookup(SCHEMA)(draw_ids())
    made(occ).square().sum().backward()
    assert_every_parameter_has_a_gradient(made)
    assert made.arch_parameters() == []


def test_the_soft_form_pays_for_all_slices_and_weights_and_needs_no_more_to_serve() -> None:
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


def test_the_soft_form_is_refused_under_a_budget_it_exceeds_and_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"autoemb: the soft form .* budget") as refused:
        soft(FULL)
    found = re.search(r"the least is ([\d,]+) bytes", str(refused.value))
    assert found
    least = int(found[1].replace(",", ""))
    assert soft(least) == soft()
    with pytest.raises(ValueError, match="budget"):
        soft(least - 1)


def test_a_mixture_of_other_fields_is_refused() -> None:
    allocation = soft()
    with pytest.raises(ValueError, match="of 2 fields and 3 candidates"):
        autoemb.build(SCHEMA.subset(["user", "age"]), DIM, allocation)


def test_without_what_its_search_found_nothing_is_derived() -> None:
    with pytest.raises(ValueError, match="autoemb needs what its search found"):
        autoemb.derive(Evidence(SCHEMA, DIM, tuple(map(tuple, CANDIDATES)), PRICES, FULL))
