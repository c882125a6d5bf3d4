"""The calibration against plain references: counted lookups, and a Gauss-Newton matrix of one row at a time."""

import numpy as np
import torch

from pipeline.data.batches import Batches
from pipeline.data.split import Split
from pipeline.embeddings.coded import Moments
from pipeline.embeddings.mixed import MixedTables
from pipeline.models.model import Model
from pipeline.training.calibration import Calibrated
from pipeline.training.task import Task
from pipeline.workflow.plug import plug
from tests.contracts import DIM, SCHEMA, draw_ids, labels_of, randomised


def calibrated(rows: int = 64) -> Calibrated:
    torch.manual_seed(0)
    embedding = MixedTables(SCHEMA, dict.fromkeys(SCHEMA.names, DIM), DIM)
    model = randomised(Model(SCHEMA, embedding, plug("backbones", "deepfm").Backbone))
    ids = draw_ids(0, rows)
    split = Split((ids.numpy(),), (labels_of(ids).numpy(),))
    return Calibrated(Task.of("ctr", plug("tasks", "ctr"), {}), model.train(), split)


def test_weights_are_the_mean_squared_shares_of_the_lookups() -> None:
    calibration = calibrated()
    expected = np.zeros(SCHEMA.num_rows)
    ids = draw_ids(0, 64).numpy()
    for row in ids:
        for field in range(3):
            expected[SCHEMA.first_rows[field] + row[field]] += 1
        tags = [tag for tag in row[3:] if tag >= 0]
        for tag in tags:
            expected[SCHEMA.first_rows[3] + tag] += 1 / len(tags) ** 2
    np.testing.assert_allclose(calibration.weights().numpy(), expected / 64, rtol=1e-6)


def test_the_outer_products_of_the_gradients_average_to_the_gauss_newton_matrix() -> None:
    calibration = calibrated()
    model = calibration.model
    metrics = Moments.of(calibration).metrics
    assert model.training
    model.eval()
    expected = torch.zeros_like(metrics)
    for batch in Batches(calibration.split, 1):
        occ = model.occurrences(batch.ids)
        embedded = model.embedding(occ).detach().requires_grad_()
        logit = model.backbone(occ, embedded)
        (jacobian,) = torch.autograd.grad(logit.sum(), embedded)
        p = torch.sigmoid(logit.detach().double())
        outer = torch.einsum("fi,fj->fij", jacobian[0].double(), jacobian[0].double())
        expected += p * (1 - p) * outer / len(calibration.split)
    torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-8)
