"""The folded mixture against the paper's form, written out field by field and candidate by candidate."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.folded_mixture import FoldedMixture
from pipeline.embeddings.selection import Selection

SCHEMA = Schema((Field("a", 7), Field("b", 5), Field("c", 3), Field("tags", 6, 3)))
CANDIDATES = [[2, 4], [1, 2, 4], [0, 3], [2, 4]]
DIM = 4
BATCH = 16


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draw_ids(generator: torch.Generator) -> Tensor:
    columns = [torch.randint(f.cardinality, (BATCH, 1), generator=generator) for f in SCHEMA.fields[:3]]
    tags = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(BATCH)])
    for row, length in enumerate(torch.randint(1, 4, (BATCH,), generator=generator).tolist()):
        tags[row, length:] = -1
    return torch.cat([*columns, tags], 1).int()


def field_vectors(mixture: FoldedMixture, table: Tensor, ids: Tensor) -> list[Tensor]:
    """(B, K) of each field, by plain indexing."""
    vectors, base, slot = [], 0, 0
    for field in SCHEMA.fields:
        own = ids[:, slot : slot + field.width].long()
        there = (own >= 0)[..., None].double()
        vectors.append((table[own.clamp(min=0) + base] * there).sum(1) / there.sum(1))
        base, slot = base + field.cardinality, slot + field.width
    return vectors


def written_out(mixture: FoldedMixture, table: Tensor, ids: Tensor, p: Tensor, norms: dict) -> Tensor:
    separate = table.shape[1] > DIM
    outputs = []
    for f, vector in enumerate(field_vectors(mixture, table, ids)):
        total = torch.zeros(len(ids), DIM)
        start = 0
        for n, d in enumerate(CANDIDATES[f]):
            columns = slice(start, start + d) if separate else slice(0, d)
            start += d
            if d == 0:
                continue
            if mixture.unification == "linear":
                g = 0 if len(mixture.maps) == 1 else f
                matrix = mixture.maps[g, n, columns]
                if (f, n) not in norms:  # statistics start at the covariance I of the field, hence at W'W here
                    norms[f, n] = nn.BatchNorm1d(DIM, affine=False)
                    norms[f, n].running_var.copy_(matrix.detach().square().sum(0))
                unified = norms[f, n](vector[:, columns] @ matrix)
            else:
                normed = norms.setdefault((f, n), nn.BatchNorm1d(d, affine=False))(vector[:, columns])
                unified = nn.functional.pad(normed, (0, DIM - d))
            total = total + p[f, n] * unified
        outputs.append(total if mixture.gain is None else total * mixture.gain[f, 0, 0])
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("sharing", ["shared", "separate"])
@pytest.mark.parametrize("unification", ["linear", "padding"])
@pytest.mark.parametrize("transform", ["field", "global"])
@pytest.mark.parametrize("gain", ["field", "none"])
def test_folded_form_equals_written_out_form(sharing, unification, transform, gain) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    mixture = FoldedMixture(
        SCHEMA, CANDIDATES, DIM, sharing=sharing, unification=unification, transform=transform, gain=gain
    )
    with torch.no_grad():
        mixture.table.weight.copy_(torch.randn_like(mixture.table.weight) + 0.5)
    selection = Selection(CANDIDATES, warm_up=0)
    norms: dict = {}
    weight = torch.randn(BATCH, 4, DIM)
    for _ in range(3):  # running statistics need several steps to tell momentum and bias apart
        ids = draw_ids(generator)
        p = selection().detach().requires_grad_()
        folded = mixture(Lookup(SCHEMA)(ids), p)
        parameters = [q for q in (getattr(mixture, "maps", None), mixture.gain) if q is not None]
        ours = torch.autograd.grad((folded * weight).sum(), [p, mixture.table.weight, *parameters])
        table = mixture.table.weight.detach().clone().requires_grad_()
        plain = written_out(mixture, table, ids, p, norms)
        theirs = torch.autograd.grad((plain * weight).sum(), [p, table, *parameters])
        torch.testing.assert_close(folded, plain, atol=1e-10, rtol=1e-10)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.to_dense() if a.is_sparse else a, b, atol=1e-10, rtol=1e-10)
    mixture.eval()
    for norm in norms.values():
        norm.eval()
    ids = draw_ids(generator)
    torch.testing.assert_close(
        mixture(Lookup(SCHEMA)(ids), p),
        written_out(mixture, mixture.table.weight, ids, p, norms),
        atol=1e-10,
        rtol=1e-10,
    )


def test_temperature_follows_the_papers_schedule() -> None:
    selection = Selection([[2, 4]], start=1.0, rate=0.00005, floor=0.01)
    for step, tau in [(0, 1.0), (1000, 0.95), (19_800, 0.01), (50_000, 0.01)]:
        selection.before_step(step, 100_000)
        assert float(selection.tau) == pytest.approx(tau)


def test_temperature_per_run_counts_from_the_end_of_the_warm_up() -> None:
    selection = Selection([[2, 4]], start=1.0, rate=1.0, floor=0.1, per="run", warm_up=0.2)
    for step, tau, warming in [(0, 1.0, True), (19, 1.0, True), (20, 1.0, False), (60, 0.5, False), (99, 0.1, False)]:
        selection.before_step(step, 100)
        assert float(selection.tau) == pytest.approx(tau)
        assert bool(selection.warming) is warming


def test_weights_are_equal_in_warm_up_and_a_gumbel_softmax_after() -> None:
    selection = Selection([[2, 4], [1, 2, 4]], warm_up=0.5)
    torch.testing.assert_close(selection(), torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
    selection.before_step(50, 100)
    selection.tau.fill_(0.5)
    with torch.no_grad():
        selection.logits.copy_(torch.tensor([[0.3, -0.2, 0.0], [0.1, 0.5, -1.0]]))
    torch.manual_seed(3)
    drawn = selection()
    torch.manual_seed(3)
    noise = -torch.log(-torch.log(torch.rand(2, 3)))
    expected = torch.softmax((selection.log_alpha() + noise) / 0.5, 1)
    torch.testing.assert_close(drawn, expected)
    selection.eval()
    torch.testing.assert_close(selection(), torch.softmax(selection.log_alpha() / 0.5, 1))
