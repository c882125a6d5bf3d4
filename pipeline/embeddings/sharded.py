"""Mixed dimensions whose tables are divided among the processes of a training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.schema import Schema
from pipeline.data.share import Share
from pipeline.embeddings.batch import Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.mixed import MixedTables, Packing, fresh_projections
from pipeline.embeddings.shards import UNIT, Shards
from pipeline.embeddings.table import INIT_SD

BLOCK = 65_536  # rows that are drawn together


class ShardedTables(FieldEmbedding):
    """The tables of `MixedTables`, of which each process holds only some pieces; see `Shards`. It is for training only.

    The table of a field of dimension d has d columns for its vectors, one for its first-order weights if there are any,
    and columns of zeros up to a multiple of 4, which no gradient reaches. The projections are whole in every process.

    The first weights have the distribution of `MixedTables`, and do not depend on the number of processes.

    Args:
        schema: F fields.
        dims: dimension of each field, 1 to ``dim``.
        dim: D, the width of the vectors.
        share: of this process.
    """

    def __init__(self, schema: Schema, dims: Sequence[int], dim: int, share: Share) -> None:
        super().__init__()
        self.dim, self.dims, self.share = dim, list(dims), share
        self.cardinalities: list[int] = schema.cardinalities.tolist()
        packing = Packing(schema, dict(zip(schema.names, dims, strict=True)))
        self.packing = packing
        self.projections = fresh_projections(packing.distinct.tolist(), np.diff(packing.groups).tolist(), dim)
        self.seed = int(torch.randint(2**31, ()))  # the same in all processes
        self.register_buffer("places", torch.tensor(np.argsort(packing.order)), persistent=False)
        self.register_buffer("first_rows", torch.tensor(schema.first_rows), persistent=False)

    places: Tensor
    first_rows: Tensor

    def take_first_order(self, wanted: bool) -> bool:
        """The tables are made here, because only now their columns are known."""
        self.first_order = wanted
        widths = [d + wanted + -(d + wanted) % UNIT for d in self.dims]
        self.shards = Shards(self.cardinalities, widths, self.share)  # no module: Lightning must not save its tables
        self._draw()
        return wanted

    @torch.no_grad()
    def _draw(self) -> None:
        own = [piece for piece in self.shards.pieces if piece.rank == self.share.rank]
        for piece, weight in zip(own, self.shards.weights, strict=True):
            weight.zero_()
            d, generator = self.dims[piece.table], torch.Generator().manual_seed(self.seed + piece.table)
            for part in weight.split(BLOCK):
                values = INIT_SD * torch.randn(len(part), d, generator=generator)
                values = values[:, piece.start : piece.stop]
                part[:, : values.shape[1]] = values

    def forward(self, occ: Occurrences) -> Tensor:
        means = self._means(occ.own or occ)
        parts = []
        bounds = itertools.pairwise(self.packing.groups)
        for d, (start, stop) in zip(self.packing.distinct.tolist(), bounds, strict=True):
            narrow = torch.stack([means[field][:, :d] for field in self.packing.order[start:stop]], 1)
            parts.append(torch.einsum("bfd,fde->bfe", narrow, self.projections[str(d)]) if d < self.dim else narrow)
        vectors = torch.cat(parts, 1)[:, self.places]
        if not self.first_order:
            return vectors
        weights = torch.stack([mean[:, d] for mean, d in zip(means, self.dims, strict=True)], 1)
        return torch.cat([vectors, weights[..., None]], 2)

    def _means(self, occ: Occurrences) -> list[Tensor]:
        """Of each field, the mean rows of its bags, (b, columns of its table)."""
        bags, fields = occ.shape
        total, device = bags * fields, occ.rows.device
        bag_of = torch.arange(total, device=device) if occ.bags is None else occ.bags
        field = bag_of % fields
        order = torch.argsort(field, stable=True)
        ids = occ.rows[occ.inverse] - self.first_rows[field]
        sizes = torch.bincount(bag_of, minlength=total).view(bags, fields)
        return self.shards.means(ids[order], sizes.T)

    @torch.no_grad()
    def collect(self, weights: Sequence[Tensor], whole: MixedTables | None, first_order: nn.Parameter | None) -> None:
        """Bring all pieces to the first process; all processes must call this.

        Args:
            weights: of the own pieces, as `Shards.weights` has them.
            whole: the tables to fill in the first process; None in the others.
            first_order: likewise the first-order weights of all rows, (rows, 1), if there are any.
        """
        tables = None if whole is None else [weight for weight, _ in whole.of_fields()]
        sums = None if first_order is None else first_order.split(self.cardinalities)
        for piece, values in self.shards.collected(weights):
            assert tables is not None
            d = self.dims[piece.table]
            mine = values[:, : max(0, d - piece.start)]
            tables[piece.table][:, piece.start : piece.start + mine.shape[1]] = mine
            if sums is not None and piece.start <= d < piece.stop:
                sums[piece.table][:, 0] = values[:, d - piece.start]
