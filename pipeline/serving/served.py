"""A trained model as it is served: one file that is memory-mapped, with the packed or coded tables and the backbone."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.data.schema import PADDING, UNKNOWN, Schema
from pipeline.embeddings.batch import Direct
from pipeline.embeddings.coded import CodedTables
from pipeline.embeddings.mixed import is_plain
from pipeline.models.dense import Dense
from pipeline.models.factored import Vectors
from pipeline.models.model import Model, first_order_of
from pipeline.serving.coded import BitTables
from pipeline.serving.packed import PackedTables
from pipeline.serving.tables import ServedTables
from pipeline.workflow.outputs import whole
from pipeline.workflow.params import LARGEST_DIM
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options

KINDS: dict[str, type[ServedTables]] = {"packed": PackedTables, "coded": BitTables}  # of tables, as a file names them
BY_ROW = ("table", "scale", "table.weight")  # suffixes of the names of tensors that are read row by row


class Served(nn.Module):
    """ids (B, S) -> logits (B,) of a trained `Model`, on a CPU.

    Args:
        schema: of the ids, all fields.
        tables: of the kept fields.
        backbone: trained, on the kept fields.
        made: name and options of the backbone; `load` rebuilds it from them.
    """

    def __init__(
        self, schema: Schema, tables: ServedTables, backbone: nn.Module, made: tuple[str, Mapping[str, Any]]
    ) -> None:
        super().__init__()
        kept = tables.schema
        self.schema, self.tables, self.backbone, self.made = schema, tables, backbone, made
        self.num_fields, self.has_bags = len(kept), kept.num_slots > len(kept)
        self.factored = getattr(backbone, "factored", False)
        self.chosen = None if len(kept) == len(schema) else torch.from_numpy(schema.slots_of(kept.names))
        self.offsets = torch.from_numpy(kept.first_rows[kept.slot_fields]).int()  # of each slot, in a joint table
        self.slot_fields = torch.from_numpy(kept.slot_fields)
        self.slot_starts = torch.from_numpy(np.cumsum(kept.widths) - kept.widths)
        self.least = np.where(kept.widths == 1, UNKNOWN, PADDING)[kept.slot_fields]  # id of each slot
        self.most = kept.cardinalities[kept.slot_fields] - 1
        for module in self.backbone.modules():
            if isinstance(module, Dense):
                module.bits = 0  # its weights are settled, so rounding them again would only take time
        self.requires_grad_(False).eval()

    @classmethod
    def of(cls, model: Model, int8: bool = False) -> Served:
        """The served form of a trained model; the model itself is not changed.

        Args:
            model: trained.
            int8: whether plain tables are rounded to int8 instead of float32.

        Raises:
            TypeError: if its embedding is neither `MixedTables` nor `CodedTables`, if it is a subclass that packs other
                tensors, or if coded tables are to be rounded to int8.
        """
        embedding = model.embedding
        tables: ServedTables
        if is_plain(embedding):
            tables = PackedTables.of(embedding, model.kept, int8)
        elif type(embedding) is CodedTables and not int8:
            tables = BitTables.of(embedding)
        else:
            allowed = "MixedTables" if int8 else "MixedTables or CodedTables"
            form = "in int8" if int8 else "as it is"
            raise TypeError(f"only an embedding of {allowed} can be served {form}, got {type(embedding).__name__}")
        made = type(model.backbone).__module__.rpartition(".")[2], model.options
        return cls(model.schema, tables, copy.deepcopy(model.backbone), made)

    @torch.inference_mode()
    def forward(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or ids.shape[1] != self.schema.num_slots:
            shape = (len(ids), self.schema.num_slots)
            raise ValueError(f"ids must have the shape {shape}, got {tuple(ids.shape)}; encode the rows")
        if self.chosen is not None:
            ids = ids.index_select(1, self.chosen)
        self._check(ids.numpy())
        weights = starts = None
        if self.has_bags:
            present = ids != PADDING
            sizes = torch.zeros(len(ids), self.num_fields).index_add_(1, self.slot_fields, present.float())
            weights = (present / sizes.clamp_(min=1).index_select(1, self.slot_fields)).flatten()
            starts = (torch.arange(len(ids))[:, None] * ids.shape[1] + self.slot_starts).flatten()
            ids = ids.clamp(min=0)
        occ = Direct((ids + self.offsets).flatten(), starts, weights, (len(ids), self.num_fields))
        occ, embedded = self.tables.look_up(ids, occ)
        if isinstance(embedded, Vectors) and not self.factored:
            embedded = embedded.dense()
        outputs: Tensor = self.backbone(occ, embedded)
        for output in outputs if isinstance(outputs, tuple) else (outputs,):  # the library serves vectors
            if output is not None and not bool(output.isfinite().all()):
                raise ValueError(
                    "an output is not finite, so a table or a weight of the model is damaged; save it again"
                )
        return outputs

    def _check(self, ids: np.ndarray) -> None:
        """Raise a ValueError for ids of kept fields that do not exist: they would read the rows of other fields."""
        if (ids < self.least).any() or (ids > self.most).any():
            row, slot = np.argwhere((ids < self.least) | (ids > self.most))[0]
            kept = self.tables.schema
            raise ValueError(
                f"row {row}, field {kept.names[kept.slot_fields[slot]]!r}: an id must be from {self.least[slot]} to "
                f"{self.most[slot]}, got {ids[row, slot]}; encode the rows with the vocabulary of the model"
            )

    def packed(self) -> dict[str, Tensor]:
        """The tensors of the tables, for `pipeline.embeddings.cost.cost`."""
        return self.tables.packed()

    def save(self, path: str | Path) -> None:
        """Write the model to one safetensors file, whole or not at all."""
        tensors = {name: tensor.contiguous() for name, tensor in self.packed().items()}
        tensors |= {f"backbone.{name}": value.contiguous() for name, value in self.backbone.state_dict().items()}
        tables, (name, options) = self.tables, self.made
        kind = next(kind for kind, made in KINDS.items() if type(tables) is made)
        about = {
            "schema": self.schema.to_dict(),
            "kept": tables.schema.names,
            "dim": tables.dim,
            "tables": {"kind": kind, "settings": tables.settings()},
            "backbone": {"name": name, "options": dict(options)},
        }
        with whole(path) as draft:
            save_file(tensors, draft, {"served": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> Served:
        """The model in a file that `save` wrote.

        Tables are memory-mapped, so rows that no batch looks up are never read. All other tensors are copied to aligned
        memory, because products of unaligned numbers may differ in the last bit.

        Raises:
            ValueError: naming the file, if it does not hold a complete model.
            FileNotFoundError: if the file does not exist.
        """
        path = Path(path)
        path.stat()  # the error of safetensors does not name a missing file
        if not path.is_file():
            raise ValueError(f"{path}: must be a file of a served model; name the file")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["served"])
                mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tensors = {name: value if name.endswith(BY_ROW) else value.clone() for name, value in mapped.items()}
            schema, dim, made = Schema.from_dict(about["schema"]), about["dim"], about["backbone"]
            if type(dim) is not int or not 1 <= dim <= LARGEST_DIM:
                raise ValueError(f"dim must be a whole number from 1 to {LARGEST_DIM:,}, got {dim!r}")
            for name, value in tensors.items():
                if not name.endswith(BY_ROW) and not bool(torch.isfinite(value).all()):
                    raise ValueError(f"{name} holds numbers that are not finite")
            kept = schema.subset(about["kept"])
            packed = {name: tensor for name, tensor in tensors.items() if not name.startswith("backbone.")}
            tables = KINDS[about["tables"]["kind"]].restored(kept, dim, packed, about["tables"]["settings"])
            make = plug("backbones", made["name"]).Backbone
            options = checked_options([make], made["options"], "backbone")
            longest = max((len(value) for value in options.values() if isinstance(value, list | tuple)), default=0)
            if longest > len(tensors):
                raise ValueError(f"its backbone has {longest:,} layers, but there are {len(tensors):,} tensors")
            with torch.device("meta"):
                backbone = make(kept, dim, **options)
            if tables.first_order and (first_order := first_order_of(backbone)):
                first_order.table = None
            state = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
            backbone.load_state_dict(state, assign=True)
            return cls(schema, tables, backbone, (made["name"], options))
        except (
            SafetensorError,
            MemoryError,
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ValueError(
                f"{path}: is not a complete file of a served model ({why}); save the model again"
            ) from error
