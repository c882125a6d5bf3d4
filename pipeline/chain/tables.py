"""The item table of a behaviour model that the pipeline trained, as vectors for agents."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.encoded import VOCABULARY_FILE, Encoded
from pipeline.data.schema import UNKNOWN
from pipeline.embeddings.coded import CodedTables
from pipeline.embeddings.cost import Plain, bytes_per_field, measured
from pipeline.embeddings.mixed import MixedTables, is_plain
from pipeline.embeddings.rounded import RoundedTables
from pipeline.encoding.vocabulary import read_vocabulary
from pipeline.models.factored import Vectors
from pipeline.models.model import PREDICTED_TOGETHER, Model
from pipeline.serving.served import Served

ITEM = "item"  # the field


def item_vectors(model: Model | Served, data: Encoded) -> Tensor:
    """The vectors of items 0 to I - 1 as the backbone gets them, times one number for all.

    The number makes their mean length 1, as that of the vectors of every world. So agents start alike for every table,
    and neither their learning rates nor the noise of their exploration favours one; what is nearest stays nearest.
    Items that training rows do not have get the vector of the unknown id.

    Args:
        model: trained and finished, on a CPU; or served.
        data: by which its ids were made, of the data set ``sessions``.

    Returns:
        (I, D) float32; D is the width of the vectors that the backbone takes.

    Raises:
        ValueError: if the data are not of sessions, the model drops the field, or all vectors are zero.
    """
    ids = _item_ids(data)
    kept = model.kept if isinstance(model, Model) else model.tables.schema
    if ITEM not in kept.names:
        raise ValueError(
            f"the model drops the field {ITEM!r}, so it has no vectors of items; keep at least 1 dimension"
        )
    rows = torch.zeros(len(ids), data.schema.num_slots, dtype=torch.int32)
    rows[:, data.schema.slots_of([ITEM])] = torch.from_numpy(ids)[:, None]
    vectors = torch.cat([_embedded(model, some)[:, kept.names.index(ITEM)] for some in rows.split(PREDICTED_TOGETHER)])
    length = vectors.norm(dim=1).mean()
    if not length > 0:
        raise ValueError("all vectors of items are zero, so no item differs from another; keep more numbers of them")
    return vectors / length


def item_bytes(model: Model) -> int | None:
    """The bytes that the table of the items takes alone when it is served; None if fields share what is stored.

    Args:
        model: which keeps the field of the items.
    """
    embedding, kept = model.embedding, model.kept
    if isinstance(embedding, CodedTables):
        alone, plan = kept.subset([ITEM]), embedding.plans[kept.names.index(ITEM)]
        return measured(lambda: CodedTables(alone, embedding.dim, embedding.width, [plan])).bytes
    plain: Plain = MixedTables
    if type(embedding) is RoundedTables:
        plain = partial(RoundedTables, bits=embedding.bits)
    elif not is_plain(embedding):
        return None
    return bytes_per_field(plain, kept, embedding.dims, embedding.dim)[ITEM]


def _item_ids(data: Encoded) -> np.ndarray:
    """(I,) int32 the id of each item, by its number."""
    if "items" not in data.facts or ITEM not in data.schema.names:
        raise ValueError(f"{data.folder}: is not of the data set sessions, whose items have numbers; encode that one")
    ids = np.full(data.facts["items"], UNKNOWN, dtype=np.int32)
    known = read_vocabulary(data.folder / VOCABULARY_FILE).get(ITEM, [])
    ids[[int(value.as_py()) for value in known]] = np.arange(1, len(known) + 1)
    return ids


@torch.no_grad()
def _embedded(model: Model | Served, ids: Tensor) -> Tensor:
    """(B, F, D) what the backbone is given for ids (B, S)."""
    given: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, Tensor | Vectors]) -> None:
        given.append(inputs[1].dense() if isinstance(inputs[1], Vectors) else inputs[1])

    training = model.training
    hook = model.backbone.register_forward_pre_hook(keep)
    try:
        model.eval()(ids)
    finally:
        hook.remove()
        model.train(training)
    return given[0].float()
