"""Plain DeepFM in other libraries: a training step as they come, with a better optimiser, and their own loading.

Embedding dimension, MLP and batch are the benchmark's; all else is as the library, its example or its configuration
template has it: torchfm's Adam with weight decay 1e-6 and dropout 0.2, DeepCTR-Torch's L2 of 1e-5 on whole tables,
FuxiCTR's clipping of gradients. All three use Adam over whole tables.

The better forms: ``fused`` is the same with ``torch.optim.Adam(fused=True)``. ``sparse`` has sparse gradients for all
embeddings and `torch.optim.SparseAdam` on them, a fused Adam on the rest, and without what does not go with sparse
gradients: torchfm's weight decay, DeepCTR-Torch's L2 and FuxiCTR's clipping.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pipeline.data.schema import Schema

Form = Literal["as it comes", "fused", "sparse"]
HIDDEN = (128, 128)
Batch = tuple[Tensor, Tensor]


class Peer:
    """One library's model with its optimisers, on a device.

    Args:
        step: one training step on a batch made by ``prepare``.
        epoch: one epoch over arrays ids (n, F) int32 and labels (n,), with the library's own loading.
    """

    device = "cpu"

    def prepare(self, batch: Batch) -> Any:
        ids, labels = batch
        return ids.long().to(self.device), labels.to(self.device)

    def step(self, batch: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define step(batch)")

    def epoch(self, ids: np.ndarray, labels: np.ndarray, batch_size: int, folder: Path) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define epoch(...)")


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


class _Rows(Dataset):
    """Rows one by one, as torchfm's own data sets of MovieLens give them."""

    def __init__(self, ids: np.ndarray, labels: np.ndarray) -> None:
        self.items, self.targets = ids, labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.float32]:
        return self.items[index], self.targets[index]


class TorchFM(Peer):
    name = "torchfm"

    def __init__(self, schema: Schema, dim: int, form: Form, device: str = "cpu") -> None:
        from torchfm.model.dfm import DeepFactorizationMachineModel

        self.device = device
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
    name = "deepctr-torch"

    def __init__(self, schema: Schema, dim: int, form: Form, device: str = "cpu") -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            from deepctr_torch.inputs import SparseFeat
            from deepctr_torch.models import DeepFM

        self.names, self.device = schema.names, device
        columns = [SparseFeat(f.name, f.cardinality, embedding_dim=dim) for f in schema.fields]
        l2 = {"l2_reg_linear": 0, "l2_reg_embedding": 0} if form == "sparse" else {}
        self.model = DeepFM(columns, columns, dnn_hidden_units=HIDDEN, device=device, **l2)
        self.optimizers = _optimizers(self.model, form)
        self.model.compile(self.optimizers[0], "binary_crossentropy")

    def prepare(self, batch: Batch) -> Any:
        ids, labels = batch
        return ids.float().to(self.device), labels.to(self.device)

    def step(self, batch: Any) -> None:
        """The body of the loop in its ``fit``."""
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
    name = "fuxictr"

    def __init__(self, schema: Schema, dim: int, form: Form, device: str = "cpu") -> None:
        from fuxictr.features import FeatureMap
        from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
        from fuxictr.pytorch.models import BaseModel

        gpu = -1 if device == "cpu" else 0

        class DeepFM(BaseModel):
            """As in the library's model zoo, which its package leaves out."""

            def __init__(self, features: Any) -> None:
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

        features = FeatureMap("bench", ".")
        features.default_emb_dim, features.labels, features.num_fields = dim, ["label"], len(schema)
        for field in schema.fields:
            features.features[field.name] = {"type": "categorical", "source": "", "vocab_size": field.cardinality}
        features.set_column_index()
        self.features, self.form, self.device = features, form, device
        self.model = DeepFM(features)
        self.model._max_gradient_norm, self.model._eval_steps, self.model._total_steps = 10.0, 2**60, 0
        self.model._stop_training = False
        if form != "as it comes":
            self.optimizers = _optimizers(self.model, form)
            self.model.optimizer = self.optimizers[0]

    def prepare(self, batch: Batch) -> Any:
        ids, labels = batch
        whole = torch.cat([ids.long(), labels.long()[:, None]], 1).to(self.device)
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
            columns = {name: ids[:, c] for c, name in enumerate(self.features.features)}
            np.savez(path, label=labels, **columns)
        loader, _ = RankDataLoader(
            self.features, stage="train", train_data=str(path), batch_size=batch_size, shuffle=True
        )
        self.model.train_epoch(loader)


PEERS: Sequence[Callable[..., Peer]] = (TorchFM, DeepCTR, FuxiCTR)
MODULES = {"torchfm": "torchfm", "deepctr-torch": "deepctr_torch", "fuxictr": "fuxictr"}  # as they are imported


def missing() -> list[str]:
    """Libraries that are not installed."""
    return [name for name, module in MODULES.items() if importlib.util.find_spec(module) is None]
