"""The embedding of an allocation, as one module that takes ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.api.calibration import OwnCalibration
from pipeline.compress.effect import Losses
from pipeline.data.schema import PADDING, Schema
from pipeline.embeddings.batch import Direct, Occurrences
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import Cost, cost
from pipeline.embeddings.table import Table
from pipeline.experiment.method import build
from pipeline.models.layers import FirstOrder
from pipeline.models.model import assemble
from pipeline.serving.served import Served


class Tables(nn.Module):
    """ids (B, S) -> vectors (B, F, D), from the tables of an allocation of any method.

    >>> import torch
    >>> from pipeline.api import Allocation, Field, Schema, Tables
    >>> schema = Schema((Field("user", 1000), Field("item", 500), Field("tags", 20, width=2)))
    >>> tables = Tables(schema, 8, Allocation("autodim", {"user": 4, "item": 8, "tags": 2}))
    >>> model = torch.nn.Sequential(tables, torch.nn.Flatten(), torch.nn.Linear(3 * 8, 1))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> ids = torch.tensor([[7, 3, 5, -1], [0, 499, 2, 9]])  # two rows; -1 fills the bag of the first
    >>> loss = tables.objective(model(ids).square().mean())
    >>> loss.backward(); optimizer.step()
    >>> tables(ids).shape, tables.cost().bytes
    (torch.Size([2, 3, 8]), 32352)

    After training, call `finish`. Some methods code, round or prune their tables there.

    Args:
        schema: the fields, in the order of their slots in a row of ids.
        dim: D, the full dimension of the allocation.
        allocation: of the schema's fields. Fields of dimension 0 are dropped: F counts only the kept fields.
        first_order: whether ``forward`` also returns a first-order term (B,): a bias and the sum of one weight for each
            value, as in FM. An allocation of ``coded`` must be given the answer that its search had: True for
            backbones with first-order weights.
        sparse: whether the gradients of tables are sparse tensors, which cover only the rows of a batch. They are for
            `pipeline.api.RowAdam`, `torch.optim.SparseAdam` or `torch.optim.SGD`; other optimizers need dense ones.

    Attributes:
        schema: the fields.
        fields: names of the F kept fields, in the order of the vectors.
        dim: width of the vectors. It is D, except for methods whose tables all have one smaller width.

    Raises:
        ValueError: if the allocation does not fit the schema, ``dim`` or ``first_order``.
    """

    def __init__(
        self, schema: Schema, dim: int, allocation: Allocation, *, first_order: bool = False, sparse: bool = False
    ) -> None:
        super().__init__()
        if type(dim) is not int or dim < 1:
            raise ValueError(f"dim must be a whole number of at least 1, got {dim!r}")
        self.model = assemble(schema, dim, allocation, build, _Through, {"first_order": first_order})
        if not sparse:
            _make_dense(self.model)
        self.schema, self.allocation, self.first_order = schema, allocation, first_order
        self.fields = self.model.kept.names
        least = [0 if field.width == 1 else PADDING for field in schema.fields]
        slots = torch.from_numpy(schema.slot_fields)
        self.register_buffer("least", torch.tensor(least)[slots], persistent=False)
        self.register_buffer("most", torch.from_numpy(schema.cardinalities - 1)[slots], persistent=False)
        self.register_buffer("finished", torch.zeros((), dtype=torch.bool))

    least: Tensor
    most: Tensor
    finished: Tensor

    @property
    def dim(self) -> int:
        return self.model.embedding.dim

    def forward(self, ids: Tensor) -> Any:
        """ids (B, S), int32 or int64 -> vectors (B, F, D); with ``first_order``, also the first-order term (B,).

        The vectors of a bag are averaged; -1 fills its unused slots.

        Raises:
            ValueError: for another shape or type, and for an id that its field does not have.
        """
        self._check(ids)
        return self.model(ids)

    def objective(self, loss: Tensor) -> Tensor:
        """The loss to minimise in training: some methods add a term of their own, e.g. ``dpq``. Others return ``loss``.

        Args:
            loss: scalar, of the batch of the last ``forward``.
        """
        return self.model.embedding.objective(loss, "train")

    def finish(self, model: nn.Module | None = None, batches: Iterable[Any] = (), losses: Losses | None = None) -> None:
        """Bring the trained tables into the form that is served, e.g. code, round or prune them.

        Training can go on after that. Call this again at its end, without arguments.

        Args:
            model: trained, with these tables in it. Methods that code by the loss, such as ``coded``, need all three
                arguments at the first call. Other methods ignore them.
            batches: of training data, some 100,000 rows; read twice.
            losses: ``losses(model, batch)`` returns the loss of each row, (B,). The model is in evaluation mode.

        Raises:
            ValueError: if the method needs the arguments and they are not given, if the batches are empty or can be
                read only once, or if the losses have another shape or do not depend on the tables.
        """
        embedding = self.model.embedding
        if type(embedding).calibrate is not FieldEmbedding.calibrate and not bool(self.finished):
            if model is None or losses is None:
                raise ValueError(
                    f"{self.allocation.method} codes the tables by the loss of the trained model: call "
                    "finish(model, batches, losses)"
                )
            embedding.calibrate(OwnCalibration(self.model, model, batches, losses))
        self.model.finish()
        self.finished.fill_(True)

    def cost(self) -> Cost:
        """The bytes of all that serves the vectors, and the first-order weights if there are any."""
        first_order = self._through.first_order
        table = None if first_order is None else first_order.table
        own = {} if table is None else {"first_order": table.weight.detach()}
        return cost(self.model.embedding.packed() | own)

    def served(self, int8: bool = False) -> Served:
        """A copy for predictions on a CPU, without gradients: ids (B, S) -> what ``forward`` returns.

        Tables of plain mixed dimensions are packed, in float32 or int8. Coded tables stay a string of bits in memory.

        Args:
            int8: whether plain tables are rounded to int8.

        Raises:
            TypeError: if the method's tables have no such form.
            ValueError: if `finish` was not called.
        """
        if not bool(self.finished):
            raise ValueError("tables are served after their training: call finish first")
        return Served.of(self.model, int8)

    @property
    def _through(self) -> _Through:
        through = self.model.backbone
        assert isinstance(through, _Through)
        return through

    def _check(self, ids: Tensor) -> None:
        slots = self.schema.num_slots
        if ids.dim() != 2 or ids.shape[1] != slots or ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"ids must be int32 or int64 of the shape (B, {slots}), got {ids.dtype} of {tuple(ids.shape)}"
            )
        if not len(ids):
            return
        low, high = ids.aminmax(dim=0)
        wrong = (low < self.least) | (high > self.most)
        if bool(wrong.any()):
            slot = int(wrong.nonzero()[0])
            field = self.schema.fields[self.schema.slot_fields[slot]]
            bad = int(low[slot] if low[slot] < self.least[slot] else high[slot])
            padding = "" if field.width == 1 else f", or {PADDING} in unused slots"
            raise ValueError(f"ids of field {field.name!r} must be 0 to {field.cardinality - 1}{padding}, got {bad}")


class _Through(nn.Module):
    """A backbone that returns the vectors, and the first-order term if it is wanted."""

    def __init__(self, schema: Schema, dim: int, first_order: bool) -> None:
        super().__init__()
        self.first_order = FirstOrder(schema) if first_order else None

    def forward(self, occ: Occurrences | Direct, embedded: Tensor) -> Any:
        return embedded if self.first_order is None else (embedded, self.first_order(occ))


class _DenseTable(Table):
    """A table with dense gradients, which any optimizer takes."""

    def forward(self, rows: Tensor) -> Tensor:
        return self.weight.index_select(0, rows)


def _make_dense(module: nn.Module) -> None:
    """Replace every `Table` in a module by one with dense gradients that holds the same weight."""
    for name, child in module.named_children():
        if type(child) is Table:
            dense = _DenseTable(0, child.weight.shape[1], sd=0)
            dense.weight = child.weight
            setattr(module, name, dense)
        else:
            _make_dense(child)
