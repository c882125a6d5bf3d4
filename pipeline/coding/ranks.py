"""Rows whose blocks are told apart row by row: 2 bits a row for the block, and counts to find the row within it."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 256  # rows between two stored counts


class Ranks:
    """The block of each row of a table, and the number of the row within its block.

    Args:
        codes: (ceil(V / 4),) uint8, the blocks of four rows in a byte, the first in the lowest bits.
        counts: (ceil(V / GROUP), 4) int32, how many rows of each block precede the group.
    """

    def __init__(self, codes: Tensor, counts: Tensor) -> None:
        self.codes, self.counts = codes, counts

    @classmethod
    def of(cls, blocks: Tensor) -> Ranks:
        """The ranks of rows in blocks (V,) of 0 to 3."""
        padded = torch.nn.functional.pad(blocks.to(torch.uint8), (0, -len(blocks) % 4)).view(-1, 4)
        codes = padded[:, 0] | padded[:, 1] << 2 | padded[:, 2] << 4 | padded[:, 3] << 6
        groups = torch.nn.functional.pad(blocks.long(), (0, -len(blocks) % GROUP), value=4).view(-1, GROUP)
        of_groups = torch.stack([(groups == block).sum(1) for block in range(4)], 1)
        return cls(codes, (of_groups.cumsum(0) - of_groups).int())

    def find(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (u,) int64 -> their blocks (u,) and their numbers within these (u,), int64."""
        group = rows // GROUP
        places = group[:, None] * (GROUP // 4) + torch.arange(GROUP // 4, device=rows.device)
        bytes_ = self.codes[places.clamp(max=len(self.codes) - 1)]
        codes = torch.stack([bytes_ >> shift & 3 for shift in (0, 2, 4, 6)], 2).flatten(1)  # (u, GROUP)
        within = (rows % GROUP)[:, None]
        block = codes.gather(1, within).long()
        before = torch.arange(GROUP, device=rows.device) < within
        rank = ((codes == block) & before).sum(1)
        return block[:, 0], self.counts[group].gather(1, block)[:, 0].long() + rank
