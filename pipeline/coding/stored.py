"""One table as a module that holds nothing but its coded form."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.coding import arrays
from pipeline.coding.bitstring import pack
from pipeline.coding.choice import Plan
from pipeline.coding.ranks import Ranks
from pipeline.coding.store import Blocks, Levels, encode


class StoredTable(nn.Module):
    """Row numbers (n,) -> vectors (n, D), decoded one by one.

    Args:
        rows: V.
        dim: D.
        state: the buffers, as `of` makes them or ``state_dict()`` returns them.

    Raises:
        ValueError: if a buffer is missing or does not fit the plan.
    """

    NAMES = ("cuts", "bits", "data", "scale", "quantiser", "decoder", "mean", "block_codes", "block_counts")

    def __init__(self, rows: int, dim: int, state: dict[str, Tensor]) -> None:
        super().__init__()
        missing = sorted(set(self.NAMES) - set(state))
        if missing:
            raise ValueError(f"a coded table needs {list(self.NAMES)}, but there is no {missing}")
        for name in self.NAMES:
            self.register_buffer(name, state[name])
        self.rows, self.dim = rows, dim
        number, cuts = state["cuts"][:1].cpu().numpy(), state["cuts"][1:].cpu().numpy()
        (self.plan,) = arrays.read_plans(number, cuts, state["bits"].cpu(), [rows], dim)
        self.blocks = Blocks([self.plan], dim)
        self.blocks.check({**state, "codes": state["data"]})

    cuts: Tensor
    bits: Tensor
    data: Tensor
    scale: Tensor
    quantiser: Tensor
    decoder: Tensor
    mean: Tensor
    block_codes: Tensor
    block_counts: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, table: Tensor, weights: Tensor, metric: Tensor, plan: Plan, order: Tensor) -> StoredTable:
        """A table (V, D), coded by a plan.

        Args:
            table, weights, metric: see `pipeline.coding.transform.transform`.
            plan: of its rows in the order of coding.
            order: (V,) the rows in the order of coding.
        """
        rows, dim = table.shape
        blocks = Blocks([plan], dim)
        code = encode(table[order], weights[order], metric, plan)
        missing = dim - code.coefficients.shape[1]
        low, step, coefficients = (
            nn.functional.pad(of, (0, missing)) for of in (code.low, code.step, code.coefficients)
        )
        decoder = nn.functional.pad(code.decoder, (0, 0, 0, dim - len(code.decoder)))
        levels = Levels(blocks, low, step, code.scale)
        codes = [levels.codes(coefficients[a:b], j) for j, (a, b) in enumerate(plan.ranges)]
        described = arrays.of_plans([plan])
        number = 0 if plan.by_rows else len(plan.rows)
        of_rows = torch.zeros(rows, dtype=torch.uint8)
        for j, (a, b) in enumerate(plan.ranges):
            of_rows[order[a:b]] = j
        ranks = Ranks.of(of_rows) if len(plan.rows) > 1 else None
        return cls(
            rows,
            dim,
            {
                "cuts": torch.from_numpy(np.concatenate([[number], described["cuts"]])).int(),
                "bits": arrays.pack_bits(described["bits"]),
                "data": pack(blocks.layout, codes),
                "scale": code.scale,
                "quantiser": torch.stack([low[blocks.quantised], step[blocks.quantised]], 1),
                "decoder": decoder[blocks.decoded[0]].half(),
                "mean": code.mean[None][blocks.centred].half(),
                "block_codes": ranks.codes if ranks else torch.zeros(0, dtype=torch.uint8),
                "block_counts": ranks.counts if ranks else torch.zeros(0, 4, dtype=torch.int32),
            },
        )

    @property
    def bytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    @torch.no_grad()
    def forward(self, rows: Tensor) -> Tensor:
        blocks = self.blocks
        decoder, mean = torch.eye(self.dim), torch.zeros(self.dim)
        if not self.plan.by_rows:
            decoder = torch.zeros(self.dim, self.dim)
            decoder[blocks.decoded[0]], mean = self.decoder.float().cpu(), self.mean[0].float().cpu()
        found = rows.cpu()
        if len(self.block_counts):
            block, within = Ranks(self.block_codes.cpu(), self.block_counts.cpu()).find(found)
        else:
            block, within = torch.zeros_like(found), found
        values = Levels.stored(blocks, self.quantiser.cpu(), self.scale.cpu()).read(self.data.cpu(), block, within)
        return (values @ decoder + mean).to(rows.device)
