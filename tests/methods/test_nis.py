"""NIS: the controller's gradient against the exact expectation, its choices, its masks and its budget."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import full_tables, spent
from pipeline.methods import nis
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 200), Field("age", 3), Field("tags", 80, width=2)))
CANDIDATES = [[1, 2, 4], [1, 4], [0, 2, 4]]
DIM = 4
PROBLEM = problem("nis", SCHEMA, DIM, CANDIDATES)


def draw_ids(rows: int = 300) -> Tensor:
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, n, (rows, 1)) for n in (200, 3, 80, 80)]
    ids = np.concatenate(columns, 1).astype(np.int32)
    ids[::3, 3] = PADDING
    return torch.from_numpy(ids)


def supernet(**options) -> nis.MaskedBlocks:
    torch.manual_seed(0)
    made = nis.find(PROBLEM, **{"blocks": 3, "warm_up": 0.0, **options})
    with torch.no_grad():
        made.logits.copy_(0.7 * torch.randn(made.logits.shape))
    return made


def offered(made: nis.MaskedBlocks, field: int) -> list[list[int]]:
    return [dims for dims in made.choices[field].tolist() if dims[0] >= 0]


def test_in_the_multi_size_form_a_later_block_never_has_more_columns() -> None:
    made = supernet()
    assert made.rows.tolist() == [[50, 150, 0], [3, 0, 0], [20, 60, 0]]
    dims = [[0, 1, 2, 4], [0, 1, 4], [0, 2, 4]]
    expected = [[*pair, 0] for pair in itertools.product(dims[0], repeat=2) if pair[0] >= pair[1] and pair[0]]
    assert sorted(offered(made, 0)) == sorted(expected)
    assert sorted(offered(made, 1)) == [[1, 0, 0], [4, 0, 0]]
    pairs = [[*pair, 0] for pair in itertools.product(dims[2], repeat=2) if pair[0] >= pair[1]]
    assert sorted(offered(made, 2)) == sorted(pairs)  # also no block at all, because 0 is a candidate


def test_in_the_single_size_form_the_first_blocks_have_one_dimension_and_the_others_share_a_row() -> None:
    made = supernet(form="single")
    expected = [[d if b < s else 0 for b in range(3)] for s in (1, 2) for d in (1, 2, 4)]
    assert sorted(offered(made, 0)) == sorted(expected)
    assert [0, 0, 0] in offered(made, 2) and [0, 0, 0] not in offered(made, 0)
    assert len(offered(made, 2)) == 2 * 2 + 1


def test_a_choice_s_logit_is_the_sum_of_the_logits_of_each_column_block_s_number_of_row_blocks() -> None:
    made = supernet()
    for f, candidates in enumerate(CANDIDATES):
        widths = [d for d in candidates if d]
        logits = []
        for dims in offered(made, f):
            counts = [sum(d >= width for d in dims) for width in widths]
            logits.append(sum(float(made.logits.detach()[f, t * 4 + s]) for t, s in enumerate(counts)))
        expected = torch.log_softmax(torch.tensor(logits), 0)
        torch.testing.assert_close(made.log_probability()[f, : len(logits)].detach(), expected)
        assert bool((made.log_probability()[f, len(logits) :] == -torch.inf).all())


@pytest.mark.parametrize("form", ["single", "multi"])
def test_the_expected_reinforce_gradient_is_that_of_the_expected_reward_and_the_entropy(form: str) -> None:
    made = supernet(form=form, target=600, penalty=0.3, entropy=0.05)
    numbers = [len(offered(made, f)) for f in range(3)]
    every = list(itertools.product(*map(range, numbers)))
    losses = torch.rand(len(every), generator=torch.Generator().manual_seed(1))
    baseline = -0.4  # any number that does not depend on the draw

    expected = torch.zeros_like(made.logits)
    for chosen, loss in zip(every, losses, strict=True):
        made.drawn, made.baseline = torch.tensor(chosen), torch.tensor(baseline)
        (gradient,) = torch.autograd.grad(made.objective(loss, "arch"), [made.logits])
        log_probability = made.log_probability().detach()
        expected += gradient * sum(log_probability[f, n] for f, n in enumerate(chosen)).exp()

    log_probability = made.log_probability()
    total = torch.zeros(())
    for chosen, loss in zip(every, losses, strict=True):
        probability = sum(log_probability[f, n] for f, n in enumerate(chosen)).exp()
        size = sum(int(made.price[f, n]) for f, n in enumerate(chosen))
        total = total + probability * (-loss - 0.3 * max(0.0, size / 600 - 1))
    entropy = sum(-(row[:n].exp() * row[:n]).sum() for row, n in zip(log_probability, numbers, strict=True))
    (exact,) = torch.autograd.grad(-total - 0.05 * entropy, [made.logits])
    torch.testing.assert_close(expected, exact, rtol=1e-3, atol=1e-5)
    assert exact.abs().max() > 0.01


def test_choices_are_drawn_with_their_probabilities() -> None:
    made = supernet()
    draws = torch.stack([made.draw() for _ in range(1500)])
    probability = made.log_probability().exp().detach()
    for f, row in enumerate(probability):
        share = torch.bincount(draws[:, f], minlength=len(row)) / len(draws)
        assert bool(((share - row).abs() <= 4.5 * (row * (1 - row) / len(draws)).sqrt()).all())


def test_the_baseline_is_the_moving_average_of_earlier_rewards() -> None:
    made = supernet(decay=0.8, penalty=0.0, entropy=0.0)
    made.drawn = made.draw()
    (first,) = torch.autograd.grad(made.objective(torch.tensor(0.5), "arch"), [made.logits])
    assert float(made.baseline) == -0.5 and not bool(first.any())
    (second,) = torch.autograd.grad(made.objective(torch.tensor(0.3), "arch"), [made.logits])
    log_probability = made.log_probability().gather(1, made.drawn[:, None]).sum()
    torch.testing.assert_close(second, torch.autograd.grad(-0.2 * log_probability, [made.logits])[0])
    assert float(made.baseline) == pytest.approx(-0.46)
    watched = made.findings().watched
    assert watched["baseline"] == pytest.approx(-0.46) and watched["reward"] == pytest.approx(-0.3)


def test_the_mask_leaves_exactly_the_drawn_columns_and_blocks_without_any_share_a_row() -> None:
    made, ids = supernet(), draw_ids()
    embedded = made(Lookup(SCHEMA)(ids))
    dims = [made.choices[f][n] for f, n in enumerate(made.drawn.tolist())]
    table, first = made.table.weight.detach(), SCHEMA.first_rows
    blocks = np.cumsum(made.rows, axis=1)

    def vector(field: int, value: int) -> Tensor:
        d = int(dims[field][np.searchsorted(blocks[field], value, side="right")])
        row = table[first[field] + value].clone()
        row[d:] = 0
        return made.shared[field].detach() if d == 0 else row

    for row, values in zip(embedded, ids.tolist(), strict=True):
        tags = torch.stack([vector(2, tag) for tag in values[2:] if tag != PADDING]).mean(0)
        torch.testing.assert_close(row, torch.stack([vector(0, values[0]), vector(1, values[1]), tags]))


def test_every_lookup_in_training_draws_anew_and_evaluation_takes_the_most_probable_choice() -> None:
    made, occ = supernet(), Lookup(SCHEMA)(draw_ids())
    drawn = []
    for _ in range(10):
        made(occ)
        drawn.append(tuple(made.drawn.tolist()))
    assert len(set(drawn)) > 3
    made.eval()
    most_probable = made.log_probability().argmax(1)
    assert torch.equal(made(occ), made(occ))
    torch.testing.assert_close(made.vectors(occ), made.masked(made.table(occ.rows), occ, most_probable))


def test_in_the_warm_up_all_blocks_are_trained_and_the_controller_is_not() -> None:
    made = supernet(warm_up=0.5)
    made.before_step(49, 100)
    assert made.warming()
    embedded = made(Lookup(SCHEMA)(draw_ids()))
    assert made.drawn is None
    torch.testing.assert_close(embedded[0, 0], made.table.weight[int(draw_ids()[0, 0])])
    made.before_step(50, 100)
    assert not made.warming()


@pytest.mark.parametrize("form", ["single", "multi"])
def test_the_controller_learns_the_better_choice_within_the_target_and_its_entropy_falls(form: str) -> None:
    """With a known reward: only the column blocks of each field's first block are worth anything."""
    full = full_tables(SCHEMA, DIM).bytes
    made = nis.find(PROBLEM, blocks=3, form=form, target=0.5, penalty=1.0, warm_up=0.0)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam([made.logits], lr=0.05)
    before = made.findings().watched["entropy"]
    for _ in range(400):
        made.drawn = made.draw()
        first = sum(int(made.choices[f][n][0]) for f, n in enumerate(made.drawn.tolist()))
        optimizer.zero_grad()
        made.objective(torch.tensor(0.7 - 0.02 * first), "arch").backward()
        optimizer.step()
    findings = made.findings()
    assert findings.watched["entropy"] < 0.7 * before

    def derived(budget: int | None):
        return nis.derive(evidence("nis", SCHEMA, DIM, CANDIDATES, arrays=findings.arrays(), budget=budget))

    chosen = derived(None)
    assert chosen.dims["user"] == 4 and chosen.dims["tags"] == 4
    assert spent(nis.build, SCHEMA, DIM, chosen).bytes <= full // 2
    for share in (0.5, 0.3, 0.2):
        assert spent(nis.build, SCHEMA, DIM, derived(int(full * share))).bytes <= int(full * share)


def test_without_the_choices_of_a_search_nothing_is_derived() -> None:
    with pytest.raises(ValueError, match="nis needs the choices that its search finds, got none"):
        nis.derive(evidence("nis", SCHEMA, DIM, CANDIDATES))
