"""AutoDim's supernet in the forms that others give it: the same function as `FoldedMixture`'s, at other costs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.folded_mixture import FoldedMixture
from pipeline.methods.autodim import Supernet
from pipeline.models.model import CTRModel
from pipeline.training.search import LitSearch


class Stacked(nn.Module):
    """All candidate vectors of all occurrences in one tensor (B, F, N, D), normalised and mixed; no loop.

    Its parameters are those of ``folded`` (shared table, linear maps per field, gain), and its table's gradient is
    sparse as there.
    """

    def __init__(self, folded: FoldedMixture) -> None:
        super().__init__()
        self.dim, self.unification = folded.dim, folded.unification
        self.table, self.maps, self.gain = folded.table, folded.maps, folded.gain
        self.register_buffer("reads", folded.reads, persistent=False)
        fields, number = folded.maps.shape[:2]
        self.norm = nn.BatchNorm1d(fields * number * folded.dim, affine=False)

    def forward(self, occ: Occurrences, p: Tensor) -> Tensor:
        """Occurrences, mixture weights p (F, N) -> embedded (B, F, D)."""
        vectors = spread(self.table(occ.rows), occ)  # (B, F, K)
        candidates = torch.einsum("bfk,fnkd->bfnd", vectors, self.maps * self.reads).flatten(1)
        normed = self.norm(candidates).view(len(vectors), *p.shape, self.dim)
        return (normed * p[:, :, None]).sum(2) * self.gain[:, 0]


def stack(searched: LitSearch) -> LitSearch:
    """The same search with its mixture stacked."""
    searched.model.embedding.mixture = Stacked(searched.model.embedding.mixture)
    return searched


class WrittenOut(nn.Module):
    """Loops over fields and candidates, with a module for each, as the paper has it: ids (B, F) -> logits (B,).

    Everything has dense gradients and is for `torch.optim.Adam`, as in the public implementations. Maps have no bias,
    for the normalisation takes it away.

    Args:
        model: whose function and weights it has: single-valued fields, candidates above 0, shared table, linear maps
            per field, gain per field. The backbone is a copy with first-order weights of its own.
    """

    def __init__(self, model: CTRModel) -> None:
        super().__init__()
        embedding = model.embedding
        assert isinstance(embedding, Supernet)
        folded = embedding.mixture
        self.selection = copy.deepcopy(embedding.selection)
        self.gain = nn.Parameter(folded.gain.detach()[:, 0, 0].clone())
        self.backbone = copy.deepcopy(model.backbone)
        self.backbone.first_order = _FirstOrder(model)
        first = [0, *model.schema.cardinalities.cumsum().tolist()]
        self.tables = nn.ModuleList()
        self.maps = nn.ModuleList()
        self.norms = nn.ModuleList()
        for f, cardinality in enumerate(model.schema.cardinalities.tolist()):
            own = folded.table.weight.detach()[first[f] : first[f + 1]]
            self.tables.append(nn.Embedding(cardinality, folded.dim, _weight=own.clone()))
            dims = self.selection.dims[f][self.selection.valid[f]].tolist()
            self.maps.append(nn.ModuleList(nn.Linear(d, folded.dim, bias=False) for d in dims))
            self.norms.append(nn.ModuleList(nn.BatchNorm1d(folded.dim, affine=False) for _ in dims))
            for n, d in enumerate(dims):
                self.maps[f][n].weight.data.copy_(folded.maps.detach()[f, n, :d].T)

    def forward(self, ids: Tensor) -> Tensor:
        p = self.selection()
        embedded = []
        for f, table in enumerate(self.tables):
            vector = table(ids[:, f])
            parts = []
            for n, (linear, norm) in enumerate(zip(self.maps[f], self.norms[f], strict=True)):
                parts.append(p[f, n] * norm(linear(vector[:, : linear.in_features])))
            embedded.append(self.gain[f] * sum(parts))
        return self.backbone(ids, torch.stack(embedded, 1))

    def optimizer(self) -> torch.optim.Optimizer:
        """Of all weights; the architecture is not among them."""
        return torch.optim.Adam([p for p in self.parameters() if p is not self.selection.logits])

    def weight_step(self, batch: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer) -> None:
        ids, labels = batch
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(self(ids), labels).backward()
        optimizer.step()


class _FirstOrder(nn.Module):
    """`pipeline.layers.FirstOrder` on ids, with a dense gradient."""

    def __init__(self, model: CTRModel) -> None:
        super().__init__()
        ours = model.backbone.first_order
        self.register_buffer("offsets", torch.tensor(model.schema.first_rows), persistent=False)
        self.table = nn.Embedding(model.schema.num_rows, 1, _weight=ours.table.weight.detach().clone())
        self.bias = nn.Parameter(ours.bias.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.bias + self.table(ids + self.offsets).sum((1, 2))
