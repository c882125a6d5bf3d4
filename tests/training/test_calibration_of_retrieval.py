"""The calibration of a retriever against one row at a time."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.encoded import Encoded
from pipeline.data.interactions import ITEM_COLUMN
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.table import Table
from pipeline.tasks import retrieval
from pipeline.training.calibration import CalibratedRetriever, calibrated, passes
from pipeline.training.task import Task
from tests.interactions import retriever, write_interactions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Few users and items, so that many rows of a batch share them."""
    return Encoded.load(write_interactions(tmp_path_factory.mktemp("data"), users=6, items=8, history=2))


def every_item(**options: Any) -> Task:
    """The softmax over all items: nothing depends on what is drawn."""
    return Task.of("retrieval", retrieval, {"negatives": 10**6, "in_batch": False, "temperature": 0.5, **options})


def gauss_newton(model: Any, split: Any) -> torch.Tensor:
    """(V, D, D): for each row of the table of all fields, the block of the mean of J^T H J of the rows of the split, H
    being that of the softmax over the items with training rows that the user does not know, and the row's own."""
    table = torch.cat([table.weight for table in _tables(model.embedding)])
    ids = np.concatenate(split.ids)
    known = {int(user): set(ids[ids[:, 1] == user, ITEM_COLUMN].tolist()) for user in np.unique(ids[:, 1])}
    blocks = torch.zeros(len(table), table.shape[1], table.shape[1], dtype=torch.float64)
    for row in ids:
        queries, items = model(torch.from_numpy(row[None].copy()))
        query, items = torch.nn.functional.normalize(queries[0], dim=0), torch.nn.functional.normalize(items, dim=1)
        own = int(row[ITEM_COLUMN])
        others = sorted(set(np.unique(ids[:, ITEM_COLUMN]).tolist()) - known[int(row[1])] - {own})
        z = items[[own, *others]] @ query / 0.5
        weights = [table.weight for table in _tables(model.embedding)]
        jacobian = torch.stack(
            [torch.cat([_dense(g) for g in torch.autograd.grad(x, weights, retain_graph=True)]) for x in z]
        )
        p = z.detach().softmax(0)
        second = torch.diag(p) - p[:, None] * p
        blocks += torch.einsum("avi,ab,bvj->vij", jacobian, second, jacobian)
    return blocks / len(ids)


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _tables(embedding: FieldEmbedding) -> list[Any]:
    return [module for module in embedding.modules() if isinstance(module, Table)]


@pytest.mark.parametrize("name", ["lightgcn", "gtn", "mf"])
def test_metrics_and_weights_are_those_of_the_gauss_newton_matrix_of_the_table(
    data: Encoded, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random signs and draws are averaged over many calibrations."""
    model, split = retriever(data, name), data.split("train")
    blocks = gauss_newton(model, split)
    generators = iter(range(10**9))
    original = torch.Generator.manual_seed

    class Fresh(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return original(self, next(generators))

    monkeypatch.setattr(torch, "Generator", Fresh)
    fields = torch.from_numpy(np.repeat(np.arange(2), model.kept.cardinalities))
    metrics, energy, number = 0, 0, 200
    for _ in range(number):
        calibration = calibrated(every_item(), model, split)
        assert isinstance(calibration, CalibratedRetriever) and calibration.rows() == len(split)
        metrics = metrics + calibration.metrics() / number
        totals = calibration.metrics().diagonal(dim1=1, dim2=2).sum(1)
        energy = energy + calibration.weights() * totals[fields] / number
    expected = torch.stack([blocks[fields == f].sum(0) for f in range(2)])
    assert float((metrics - expected).norm() / expected.norm()) < 0.15
    traces = blocks.diagonal(dim1=1, dim2=2).sum(1)
    np.testing.assert_allclose(energy, traces, atol=0.25 * float(traces.max()))
    assert np.corrcoef(energy, traces)[0, 1] > 0.97


def test_weights_of_a_field_add_up_to_one_and_rows_that_nothing_depends_on_have_none(data: Encoded) -> None:
    model, split = retriever(data, "two_tower"), data.split("train")
    calibration = calibrated(every_item(), model.train(), split)
    weights, metrics = calibration.weights(), calibration.metrics()
    assert model.training
    assert weights.shape == (model.kept.num_rows,) and metrics.shape == (len(model.kept), 4, 4)
    title = model.kept.names.index("title")
    single = [n for n in range(len(model.kept)) if n != title]
    parts = weights.split(model.kept.cardinalities.tolist())
    assert [float(parts[n].sum()) for n in single] == pytest.approx([1.0] * len(single), abs=1e-5)
    assert 0 < float(parts[title].sum()) <= 1  # the squared shares of the words of a title are below its share
    assert bool(torch.equal(metrics, metrics.transpose(1, 2))) and bool((torch.linalg.eigvalsh(metrics) > -1e-9).all())
    again = calibrated(every_item(), model, split)
    assert torch.equal(again.weights(), weights) and torch.equal(again.metrics(), metrics)


def test_the_shares_of_a_bag_are_squared(data: Encoded) -> None:
    """The weights of the words of titles, from the gradients of the vectors of all bags of the same passes."""
    model, split = retriever(data, "two_tower", pooling="mean"), data.split("train")
    title, schema = model.kept.names.index("title"), model.kept
    first = int(schema.first_rows[title])
    energy, total = np.zeros(int(schema.cardinalities[title])), 0.0
    for occ, gradient, _ in passes(every_item(), model, split):
        squared = gradient.square().sum(1).numpy()
        for place, bag in enumerate(occ.bags.tolist()):
            if int(occ.fields[bag]) == title:
                size = occ.bags.tolist().count(bag)
                energy[int(occ.rows[occ.inverse[place]]) - first] += squared[bag] / size**2
        total += squared[occ.fields.numpy() == title].sum()
    found = calibrated(every_item(), model, split).weights()[first : first + len(energy)]
    np.testing.assert_allclose(found.numpy(), energy / total, rtol=1e-5)
