"""The folded mixture against the paper's form, written out by field and candidate."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup, spread
from pipeline.embeddings.folded_mixture import FoldedMixture
from pipeline.embeddings.selection import Selection
from tests.contracts import dense

pytestmark = pytest.mark.usefixtures("double")
SCHEMA = Schema((Field("a", 7), Field("b", 5), Field("c", 3), Field("tags", 6, 3)))
CANDIDATES = [[2, 4], [1, 2, 4], [0, 3], [2, 4]]
DIM = 4
BATCH = 16


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
                if (f, n) not in norms:  # statistics start at the covariance I of the field, which is W'W here
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
def test_the_folded_form_equals_the_written_out_form_in_outputs_gradients_and_statistics(
    sharing, unification, transform, gain
) -> None:
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
    for _ in range(3):  # several steps, so that running statistics with a wrong momentum or bias fail
        ids = draw_ids(generator)
        p = selection().detach().requires_grad_()
        occ = Lookup(SCHEMA)(ids)
        folded = spread(mixture(occ, p), occ)
        parameters = [q for q in (getattr(mixture, "maps", None), mixture.gain) if q is not None]
        ours = torch.autograd.grad((folded * weight).sum(), [p, mixture.table.weight, *parameters])
        table = mixture.table.weight.detach().clone().requires_grad_()
        plain = written_out(mixture, table, ids, p, norms)
        theirs = torch.autograd.grad((plain * weight).sum(), [p, table, *parameters])
        torch.testing.assert_close(folded, plain, atol=1e-10, rtol=1e-10)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(dense(a), b, atol=1e-10, rtol=1e-10)
    mixture.eval()
    for norm in norms.values():
        norm.eval()
    ids = draw_ids(generator)
    occ = Lookup(SCHEMA)(ids)
    torch.testing.assert_close(
        spread(mixture(occ, p), occ),
        written_out(mixture, mixture.table.weight, ids, p, norms),
        atol=1e-10,
        rtol=1e-10,
    )


def test_settings_that_make_no_mixture_are_refused() -> None:
    with pytest.raises(ValueError, match="candidates must be given for 4 fields, got 1"):
        FoldedMixture(SCHEMA, [[2, 4]], DIM)
    with pytest.raises(ValueError, match=r"candidate dims must be at most dim=4, got \[2, 8\]"):
        FoldedMixture(SCHEMA, [[2, 8]] * 4, DIM)
    with pytest.raises(ValueError, match=r"sharing must be one of \['shared', 'separate'\], got 'some'"):
        FoldedMixture(SCHEMA, CANDIDATES, DIM, sharing="some")
