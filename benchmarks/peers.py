"""Plain DeepFM in other libraries: training steps with their own and with better optimisers, and their own loading.

Embedding dimension, MLP and batch are those of the benchmark. Everything else follows the library, its example or its
configuration template: torchfm's Adam with weight decay 1e-6 and dropout 0.2, DeepCTR-Torch's L2 of 1e-5 on whole
tables, FuxiCTR's clipping of gradients. All three use Adam on whole tables.

There are two better forms. ``fused`` is the same with ``torch.optim.Adam(fused=True)``. ``sparse`` has sparse gradients
for all embeddings, `torch.optim.SparseAdam` on them and a fused Adam on the rest. It omits the parts that sparse
gradients do not allow: torchfm's weight decay, DeepCTR-Torch's L2 and FuxiCTR's clipping.

The libraries are imported by the classes that use them, because they may be missing (`missing`) and take seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Step
from pipeline.data.batches import Batch
from pipeline.data.schema import Schema

Form = Literal["as it comes", "fused", "sparse"]
FORMS: tuple[Form, ...] = ("as it comes", "fused", "sparse")
HIDDEN = (128, 128)


class Peer:
    """One library's model with its optimisers, on a device.

    Attributes:
        name: of the library's distribution.
        imported: name of its module.
    """

    name: str
    imported: str

    def __init__(self, schema: Schema, dim: int, form: Form, device: str = "cpu") -> None:
        self.device = device

    def prepare(self, batch: Batch) -> Any:
        """A batch in the types that the library's model takes, on the device."""
        return batch.ids.long().to(self.device), batch.labels.to(self.device)

    def step(self, batch: Any) -> None:
        """One training step on a batch from `prepare`."""
        raise NotImplementedError(f"{type(self).__name__} must define step(batch)")

    def epoch(self, ids: np.ndarray, labels: np.ndarray, batch_size: int, folder: Path) -> None:
        """One epoch over arrays ids (n, F) int32 and labels (n,), with the library's own loading."""
        raise NotImplementedError(f"{type(self).__name__} must define epoch(...)")

    def steps(self, batches: Sequence[Batch]) -> Step:
        """A step on one batch after another."""
        prepared = [self.prepare(batch) for batch in batches]
        return lambda i: self.step(prepared[i % len(prepared)])


def _optimizers(model: nn.Module, form: Form, **options: Any) -> list[torch.optim.Optimizer]:
    if form == "as it comes":
        return [torch.optim.Adam(model.parameters(), **options)]
    if form == "fused":
        return [torch.optim.Adam(model.parameters(), fused=True, **options)]
    tables = []
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = True
            tables.append(module.weight)
    ids = {id(table) for table in tables}
    return [
        torch.optim.SparseAdam(tables),
        torch.optim.Adam([p for p in model.parameters() if id(p) not in ids], fused=True),
    ]


class _Rows(Dataset[tuple[np.ndarray, np.float32]]):
    """Rows one by one, as in torchfm's own MovieLens data sets."""

    def __init__(self, ids: np.ndarray, labels: np.ndarray) -> None:
        self.items, self.targets = ids, labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.float32]:
        return self.items[index], self.targets[index]


class TorchFM(Peer):
    name, imported = "torchfm", "torchfm"

    def __init__(self, schema: Schema, dim: int, form: Form, device: str = "cpu") -> None:
        from torchfm.model.dfm import DeepFactorizationMachineModel

        super().__init__(schema, dim, form, device)
        self.model = DeepFactorizationMachineModel(schema.cardinalities, dim, HIDDEN, dropout=0.2).to(device)
        self.optimizers = _optimizers(self.model, form, **({} if form == "sparse" else {"weight_decay": 1e-6}))
        self.criterion = nn.BCELoss()

    def step(self, batch: Any) -> None:
        fields, labels = batch
        loss = self.criterion(self.model(fields), labels)
        self.model.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def epoch(self, ids: np.ndarray, labels: np.ndarray, batch_size: int, folder: Path) -> None:
        self.model.train()
        for fields, target in DataLoader(_Rows(ids, labels), batch_size=batch_size):
            self.step((fields.long(), target.float()))


class DeepCTR(Peer):
    name, imported = "deepctr-torch", "deepctr_torch"

    def __init__(self, schema: Schema, dim: int, form: Form, device: str = "cpu") -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            from deepctr_torch.inputs import SparseFeat
            from deepctr_torch.models import DeepFM

        super().__init__(schema, dim, form, device)
        self.names = schema.names
        columns = [SparseFeat(f.name, f.cardinality, embedding_dim=dim) for f in schema.fields]
        l2 = {"l2_reg_linear": 0, "l2_reg_embedding": 0} if form == "sparse" else {}
        self.model = DeepFM(columns, columns, dnn_hidden_units=HIDDEN, device=device, **l2)
        self.optimizers = _optimizers(self.model, form)
        self.model.compile(self.optimizers[0], "binary_crossentropy")

    def prepare(self, batch: Batch) -> Any:
        return batch.ids.float().to(self.device), batch.labels.to(self.device)

    def step(self, batch: Any) -> None:
        """The body of the loop in the library's ``fit``."""
        x, y = batch
        predicted = self.model(x).squeeze(-1)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self.model.loss_func(predicted, y, reduction="sum")
        total = loss + self.model.get_regularization_loss() + self.model.aux_loss
        loss.item()
        total.item()
        total.backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def epoch(self, ids: np.ndarray, labels: np.ndarray, batch_size: int, folder: Path) -> None:
        columns = {name: ids[:, f] for f, name in enumerate(self.names)}
        with contextlib.redirect_stdout(io.StringIO()):
            self.model.fit(columns, labels, batch_size=batch_size, epochs=1, verbose=0)


class FuxiCTR(Peer):
    name, imported = "fuxictr", "fuxictr"

    def __init__(self, schema: Schema, dim: int, form: Form, device: str = "cpu") -> None:
        from fuxictr.features import FeatureMap

        super().__init__(schema, dim, form, device)
        self.form = form
        self.features = FeatureMap("bench", ".")
        self.features.default_emb_dim, self.features.labels, self.features.num_fields = dim, ["label"], len(schema)
        for field in schema.fields:
            self.features.features[field.name] = {
                "type": "categorical",
                "source": "",
                "vocab_size": field.cardinality,
            }
        self.features.set_column_index()
        self.model = _fuxictr_deepfm(self.features, dim, -1 if device == "cpu" else 0)
        if form != "as it comes":
            self.optimizers = _optimizers(self.model, form)
            self.model.optimizer = self.optimizers[0]

    def prepare(self, batch: Batch) -> Any:
        whole = torch.cat([batch.ids.long(), batch.labels.long()[:, None]], 1).to(self.device)
        return {name: whole[:, c] for name, c in self.features.column_index.items()}

    def step(self, batch: Any) -> None:
        if self.form != "sparse":
            self.model.train_step(batch).item()
            return
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self.model.compute_loss(self.model.forward(batch), self.model.get_labels(batch))
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        loss.item()

    def epoch(self, ids: np.ndarray, labels: np.ndarray, batch_size: int, folder: Path) -> None:
        from fuxictr.pytorch.dataloaders import RankDataLoader

        path = folder / f"rows-{len(ids)}.npz"
        if not path.exists():
            columns: dict[str, Any] = {name: ids[:, c] for c, name in enumerate(self.features.features)}
            np.savez(path, label=labels, **columns)
        loader, _ = RankDataLoader(
            self.features, stage="train", train_data=str(path), batch_size=batch_size, shuffle=True
        )
        self.model.train_epoch(loader)


def _fuxictr_deepfm(features: Any, dim: int, gpu: int) -> Any:
    """The DeepFM of FuxiCTR's model zoo, which is not in the package, in the state at the beginning of ``fit``."""
    from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    class DeepFM(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(features, "DeepFM", gpu=gpu, verbose=0, model_root=".", metrics=["AUC"])
            self.embedding_layer = FeatureEmbedding(features, dim)
            self.fm = FactorizationMachine(features)
            self.mlp = MLP_Block(input_dim=features.sum_emb_out_dim(), output_dim=1, hidden_units=list(HIDDEN))
            self.compile("adam", "binary_crossentropy", 1e-3)
            self.reset_parameters()
            self.model_to_device()

        def forward(self, inputs: Any) -> dict[str, Tensor]:
            fields = self.get_inputs(inputs)
            embedded = self.embedding_layer(fields)
            logits = self.fm(fields, embedded)
            logits += self.mlp(embedded.flatten(start_dim=1))
            return {"y_pred": self.output_activation(logits)}

    model = DeepFM()
    model._max_gradient_norm, model._eval_steps, model._total_steps = 10.0, 2**60, 0
    model._stop_training = False
    return model


PEERS: tuple[type[Peer], ...] = (TorchFM, DeepCTR, FuxiCTR)


def missing() -> list[str]:
    """The libraries that are not installed."""
    return [peer.name for peer in PEERS if importlib.util.find_spec(peer.imported) is None]


def installed() -> list[type[Peer]]:
    """The libraries that are installed."""
    absent = missing()
    return [peer for peer in PEERS if peer.name not in absent]
