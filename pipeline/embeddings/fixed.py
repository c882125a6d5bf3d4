"""Occurrences whose shapes depend on the number of rows alone, so that a GPU can replay a step without asking.

A CUDA graph repeats the same kernels on the same memory. So nothing in a step may have a shape that depends on the ids,
and nothing may read a tensor's content. Here every field has as many rows as it has slots in the batch: its distinct
rows, and then the last of them again and again, with no occurrences, and so with a gradient of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.schema import PADDING, Schema
from pipeline.embeddings.batch import Lookup, Occurrences
from pipeline.embeddings.table import Segments


@dataclass(frozen=True)
class Places:
    """What does not change between batches of B rows, for S slots of F fields; n = B * S occurrences.

    Args:
        segments: the number of each field's occurrences.
        in_field: (S, F) 1 where a slot is of a field, else 0.
        every: (n,) 0 to n - 1.
        first, last: (n,) the first and the last of the occurrences, sorted by row, of the field of each of them.
        ends: (F,) int32, where those of each field end.
        bags: (n,) the bag of each occurrence, in the order of the batch.
        bag_starts: (B * F,) where each bag begins.
    """

    segments: Segments
    in_field: Tensor
    every: Tensor
    first: Tensor
    last: Tensor
    ends: Tensor
    bags: Tensor
    bag_starts: Tensor

    @classmethod
    def of(cls, batch: int, slot_fields: np.ndarray, fields: int, device: torch.device) -> Places:
        """For fields whose slots stand together, in the order of the fields."""
        slots = np.bincount(slot_fields, minlength=fields)
        ends = batch * slots.cumsum()
        first, last = np.repeat(ends - batch * slots, batch * slots), np.repeat(ends - 1, batch * slots)
        bags = (np.arange(batch)[:, None] * fields + slot_fields).ravel()
        widths = np.tile(slots, batch)
        starts = widths.cumsum() - widths
        in_field = torch.nn.functional.one_hot(torch.from_numpy(slot_fields), fields).float()
        arrays = (np.arange(ends[-1]), first, last, ends.astype(np.int32), bags, starts)
        tensors = [torch.from_numpy(array).to(device) for array in arrays]
        segments = Segments(tuple((batch * slots).tolist()))
        return cls(segments, in_field.to(device), *tensors)


class FixedLookup(Lookup):
    """`Lookup` with `Occurrences.segments`, in training; in evaluation it is `Lookup`.

    NOTE[DIFF]: if no row of a batch has a value in a bag, the last row of that field counts as looked up, with a
    gradient of zeros, so that `RowAdam` moves it by its momentum and its weight decay.

    Args:
        schema: F fields in S slots; the table holds their rows in the schema's order.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self._places: dict[int, Places] = {}  # by B

    def forward(self, ids: Tensor) -> Occurrences:
        if not self.training:
            return super().forward(ids)
        batch = len(ids)
        at = self._places.get(batch)
        if at is None or at.every.device != ids.device:
            at = self._places[batch] = Places.of(batch, self.slot_fields.cpu().numpy(), self.num_fields, ids.device)
        rows, weights = ids + self.offsets, None
        if self.has_bags:
            present = ids != PADDING
            sizes = (present.float() @ at.in_field).to(torch.get_default_dtype())  # (B, F)
            weights = (present / sizes.clamp(min=1)[:, self.slot_fields]).flatten()
            rows = torch.where(
                present, 2 * rows.long(), 2 * self.bounds[self.slot_fields].long() - 1
            )  # the absent come last
        ordered, order = torch.sort(rows.flatten(), stable=True)
        fresh = nn.functional.pad(ordered[1:] != ordered[:-1], (1, 0), value=True)
        if self.has_bags:
            fresh, ordered = fresh & (ordered % 2 == 0), ordered // 2
        count = fresh.long().cumsum(0)
        within = (count - (count - fresh.long())[at.first] - 1).clamp(min=0)  # the distinct row, counted in its field
        place = at.first + within
        starts = torch.searchsorted(place, at.every)
        return Occurrences(
            rows=ordered[starts[torch.minimum(at.every, place[at.last])]].long(),
            ends=at.ends,
            inverse=torch.empty_like(order).scatter_(0, order, place),
            order=order,
            starts=starts,
            bags=at.bags if self.has_bags else None,
            bag_starts=at.bag_starts if self.has_bags else None,
            weights=weights,
            shape=(batch, self.num_fields),
            segments=at.segments,
        )
