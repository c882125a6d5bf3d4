"""AutoDim's supernet in the forms of other implementations: the same function at another cost."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.data.batches import Batch
from pipeline.embeddings.autodim_supernet import AutoDimSupernet
from pipeline.embeddings.batch import Occurrences, spread
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.models.layers import FirstOrder
from pipeline.models.model import Model
from pipeline.training.search import LitSearch


class Stacked(FieldEmbedding):
    """The vectors of all candidates, for all occurrences, in one tensor (B, F, N, D), normalised and mixed.

    It shares the parameters of ``supernet`` (one table, linear maps and a gain for each field). The gradient of the
    table is sparse in both.
    """

    def __init__(self, supernet: AutoDimSupernet) -> None:
        super().__init__()
        folded = supernet.mixture
        self.dim, self.selection = supernet.dim, supernet.selection
        self.table, self.maps, self.gain = folded.table, folded.maps, folded.get_parameter("gain")
        self.register_buffer("reads", folded.reads, persistent=False)
        fields, number = folded.maps.shape[:2]
        self.norm = nn.BatchNorm1d(fields * number * folded.dim, affine=False)

    reads: Tensor

    def forward(self, occ: Occurrences) -> Tensor:
        p = self.selection()  # (F, N)
        vectors = spread(self.table(occ.rows), occ)  # (B, F, K)
        candidates = torch.einsum("bfk,fnkd->bfnd", vectors, self.maps * self.reads).flatten(1)
        normed = self.norm(candidates).view(len(vectors), *p.shape, self.dim)
        mixed: Tensor = (normed * p[:, :, None]).sum(2) * self.gain[:, 0]
        return mixed

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.selection.logits]

    def before_step(self, step: int, planned: int) -> None:
        self.selection.before_step(step, planned)


def stack(searched: LitSearch) -> LitSearch:
    """The same search, with its supernet stacked."""
    searched.model.embedding = Stacked(_supernet(searched.model))
    return searched


class WrittenOut(nn.Module):
    """Loops over fields and candidates, with a module for each, as in the paper: ids (B, F) -> logits (B,).

    All gradients are dense, for `torch.optim.Adam`, as in the public implementations. The maps have no bias, because
    the normalisation would remove it.

    Args:
        model: its function and its initial weights are copied. It must have single-valued fields, candidates above 0,
            one shared table, linear maps and a gain for each field.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        supernet = _supernet(model)
        folded = supernet.mixture
        self.selection = copy.deepcopy(supernet.selection)
        self.gain = nn.Parameter(folded.get_parameter("gain").detach()[:, 0, 0].clone())
        self.backbone = copy.deepcopy(model.backbone)
        self.backbone.first_order = _FirstOrder(model)
        self.tables, self.maps, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        maps = folded.maps.detach()
        values = folded.table.weight.detach().split(model.schema.cardinalities.tolist())
        for f, own in enumerate(values):
            self.tables.append(nn.Embedding.from_pretrained(own.clone(), freeze=False))
            dims = self.selection.dims[f][self.selection.valid[f]].tolist()
            linears = nn.ModuleList(nn.Linear(d, folded.dim, bias=False) for d in dims)
            for n, (linear, d) in enumerate(zip(linears, dims, strict=True)):
                linear.get_parameter("weight").data.copy_(maps[f, n, :d].T)
            self.maps.append(linears)
            self.norms.append(nn.ModuleList(nn.BatchNorm1d(folded.dim, affine=False) for _ in dims))

    def forward(self, ids: Tensor) -> Tensor:
        p = self.selection()
        embedded = []
        for f, (table, maps, norms) in enumerate(zip(self.tables, self.maps, self.norms, strict=True)):
            vector = table(ids[:, f])
            parts = []
            for n, (linear, norm) in enumerate(zip(maps, norms, strict=True)):  # type: ignore[call-overload]
                parts.append(p[f, n] * norm(linear(vector[:, : linear.in_features])))
            embedded.append(self.gain[f] * sum(parts))
        logits: Tensor = self.backbone(ids, torch.stack(embedded, 1))
        return logits

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam on all weights, without the parameters of the architecture."""
        return torch.optim.Adam([p for p in self.parameters() if p is not self.selection.logits])

    def weight_step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(self(batch.ids), batch.labels).backward()
        optimizer.step()


class _FirstOrder(nn.Module):
    """`pipeline.models.layers.FirstOrder` on ids, with a dense gradient."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        ours: FirstOrder = model.backbone.first_order  # type: ignore[assignment]
        self.register_buffer("offsets", torch.tensor(model.schema.first_rows), persistent=False)
        self.table = nn.Embedding.from_pretrained(ours.table.weight.detach().clone(), freeze=False)
        self.bias = nn.Parameter(ours.bias.detach().clone())

    offsets: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.bias + self.table(ids + self.offsets).sum((1, 2))
        return logits


def _supernet(model: Model) -> AutoDimSupernet:
    if not isinstance(model.embedding, AutoDimSupernet):
        raise TypeError(f"only AutoDim's supernet has these forms, got {type(model.embedding).__name__}")
    return model.embedding
