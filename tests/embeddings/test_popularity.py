"""AutoEmb's mixture against its equations, written out per row of the batch, and its controllers."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup, spread
from pipeline.embeddings.popularity import Controllers, Slices
from pipeline.training.bilevel import frozen_statistics
from tests.contracts import assert_equal_gradients

SCHEMA = Schema((Field("user", 30), Field("age", 3), Field("tags", 10, width=2)))
DIMS, DIM, BATCH = [0, 1, 3], 4, 100


def draw_ids(seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, n, BATCH) for n in (30, 3, 10, 10)], 1).astype(np.int32)
    ids[::3, 3] = PADDING
    return torch.from_numpy(ids)


def slices() -> Slices:
    torch.manual_seed(0)
    made = Slices(SCHEMA, DIMS, DIM)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return made


def weights_of_rows() -> Tensor:
    """(V, T) weights of every value."""
    return torch.softmax(torch.randn(43, 3, generator=torch.Generator().manual_seed(1)), 1)


def written_out(made: Slices, ids: Tensor, norms: list[nn.BatchNorm1d]) -> Tensor:
    """(B, F, D), by candidate and field, with one BatchNorm for each of both."""
    embedded = torch.zeros(len(ids), 3, DIM)
    for f, (slots, first) in enumerate((([0], 0), ([1], 30), ([2, 3], 33))):
        present = ids[:, slots] != PADDING
        rows = (ids[:, slots] + first)[present].long()
        share = (present / present.sum(1, keepdim=True))[present]
        bag = torch.arange(len(ids))[:, None].expand_as(present)[present]
        for t, d in enumerate(DIMS):
            if not d:
                continue
            begin = sum(DIMS[:t])
            lifted = made.table.weight[rows, begin : begin + d] @ made.maps[str(d)][f]
            norm = norms[f * 3 + t]
            if made.training:
                mean = (share[:, None] * lifted).sum(0) / len(ids)
                variance = (share[:, None] * (lifted - mean) ** 2).sum(0) / len(ids)
            else:
                mean, variance = norm.running_mean, norm.running_var
            moved = made.gain[f] * (lifted - mean) / (variance + 1e-5).sqrt() + made.shift[f]
            part = share[:, None] * weights_of_rows()[rows, t, None] * torch.tanh(moved)
            embedded[:, f] = embedded[:, f].index_add(0, bag, part)
    return embedded


def test_the_mixture_and_its_gradients_are_those_of_the_equations_written_out() -> None:
    made, ids = slices(), draw_ids()
    occ = Lookup(SCHEMA)(ids)
    weight = torch.randn(BATCH, 3, DIM, generator=torch.Generator().manual_seed(2))
    embedded = spread(made(occ, weights_of_rows()[occ.rows]), occ)
    expected = written_out(made, ids, [nn.BatchNorm1d(DIM)] * 9)
    torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)
    parameters = list(made.parameters())
    assert_equal_gradients((embedded * weight).sum(), (expected * weight).sum(), parameters, rtol=1e-3, atol=1e-4)


def test_each_candidate_is_normalised_by_its_own_moments_as_batchnorm_does_it() -> None:
    made, lookup = slices(), Lookup(SCHEMA)
    norms = [nn.BatchNorm1d(DIM) for _ in range(9)]
    for seed in range(5):
        ids = draw_ids(seed)
        occ = lookup(ids)
        made(occ, weights_of_rows()[occ.rows])
        for f, first in enumerate((0, 30)):
            for t, d in enumerate(DIMS):
                begin = sum(DIMS[:t])
                if d:
                    values = made.table.weight[(ids[:, f] + first).long(), begin : begin + d] @ made.maps[str(d)][f]
                    norms[f * 3 + t](values)
    for f in range(2):
        for t in (1, 2):
            torch.testing.assert_close(made.mean[t, f], norms[f * 3 + t].running_mean)
            torch.testing.assert_close(made.variance[t, f], norms[f * 3 + t].running_var, rtol=1e-4, atol=1e-5)
    for t in (1, 2):  # of the bag field, where BatchNorm has no counterpart, our own moments are used
        norms[6 + t].running_mean, norms[6 + t].running_var = made.mean[t, 2], made.variance[t, 2]
    made.eval()
    ids = draw_ids(9)
    occ = lookup(ids)
    expected = written_out(made, ids, norms)
    embedded = spread(made(occ, weights_of_rows()[occ.rows]), occ)
    torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)


def test_a_step_of_the_architecture_does_not_change_the_running_moments() -> None:
    made, occ = slices(), Lookup(SCHEMA)(draw_ids())
    before = made.mean.clone()
    with frozen_statistics(made):
        made(occ, weights_of_rows()[occ.rows])
    assert torch.equal(made.mean, before)
    made(occ, weights_of_rows()[occ.rows])
    assert not torch.equal(made.mean, before)


def test_candidates_that_make_no_slices_are_refused() -> None:
    for dims in ([0], [2, 2], [-1, 3]):
        with pytest.raises(ValueError, match="dims of slices must be distinct, at least 0, and not all 0, got"):
            Slices(SCHEMA, dims, DIM)


def test_controllers_weigh_only_the_field_s_own_candidates_in_every_bucket_and_start_equal() -> None:
    valid = torch.tensor([[True, True, True], [False, True, True]])
    torch.manual_seed(0)
    made = Controllers(valid, buckets=5)
    weights = made().exp()
    torch.testing.assert_close(weights, (valid / valid.sum(1, keepdim=True))[:, None].expand(2, 5, 3))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    weights = made().exp()
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 5))
    assert not bool(weights[1, :, 0].any()) and len(weights[0].unique(dim=0)) == 5
    for f in range(2):
        for s in range(5):
            hidden = torch.tanh(made.popularity[s] @ made.first[f] + made.first_bias[f, 0])
            logits = hidden @ made.second[f] + made.second_bias[f, 0]
            torch.testing.assert_close(weights[f, s][valid[f]], torch.softmax(logits[valid[f]], 0))
