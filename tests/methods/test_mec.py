"""MEC: codes of the searched vectors, which stay, and codewords, which are trained."""

import numpy as np
import pytest
import torch

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.methods import mec
from tests.contracts import evidence, problem

SCHEMA = Schema((Field("user", 300), Field("age", 3), Field("item", 200)))
DIM = 8
IDS = np.stack([np.arange(4000) ** 2 % n for n in (300, 3, 200)], 1).astype(np.int32)


def searched() -> tuple[mec.Source, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    source = mec.find(problem("mec", SCHEMA, DIM, [[DIM]] * 3, training_ids=lambda: IDS))
    return source, source.findings().arrays()


def occurrences():
    return Lookup(SCHEMA)(torch.stack([torch.arange(300) % n for n in (300, 3, 200)], 1).int())


@pytest.mark.parametrize("books", ["shared", "field"])
@pytest.mark.parametrize("weights", ["none", "log2", "share"])
def test_a_coded_value_starts_with_the_nearest_codewords_of_its_searched_vector(weights: str, books: str) -> None:
    source, arrays = searched()
    allocation = mec.derive(
        evidence("mec", SCHEMA, DIM, arrays=arrays, budget=6000), groups=4, centroids=32, weights=weights, books=books
    )
    embedding, occ = mec.build(SCHEMA, DIM, allocation), occurrences()
    trained, served = source(occ).detach(), embedding(occ).detach()
    every = torch.tensor(allocation.arrays["book"])
    assert torch.equal(embedding.lookup(embedding.packed(), occ), embedding.vectors(occ).detach())
    for field in (0, 2):
        own = every if books == "shared" else every[field // 2]
        for group in range(4):
            part = trained[:, field, 2 * group : 2 * group + 2]
            nearest = own[group, torch.cdist(part, own[group]).argmin(1)]
            torch.testing.assert_close(served[:, field, 2 * group : 2 * group + 2], nearest)
    assert float((served - trained)[:, [0, 2]].square().mean()) < 0.2 * float(trained[:, [0, 2]].square().mean())


def test_weights_change_the_codewords() -> None:
    _, arrays = searched()
    books = [
        mec.derive(evidence("mec", SCHEMA, DIM, arrays=arrays, budget=3000), weights=weights).arrays["book"]
        for weights in ("none", "log2")
    ]
    assert not np.array_equal(*books)


def test_training_moves_codewords_and_leaves_codes() -> None:
    _, arrays = searched()
    allocation = mec.derive(evidence("mec", SCHEMA, DIM, arrays=arrays, budget=3000))
    embedding, occ = mec.build(SCHEMA, DIM, allocation), occurrences()
    assert not any("queries" in name for name, _ in embedding.named_parameters())
    before, codes = embedding.book.detach().clone(), embedding.codes.data.clone()
    embedding(occ).square().sum().backward()
    with torch.no_grad():
        embedding.book -= 0.1 * embedding.book.grad
    embedding.finish()
    assert torch.equal(embedding.codes.data, codes) and not torch.equal(embedding.book, before)
    assert sum(t.numel() * t.element_size() for t in embedding.packed().values()) <= 3000


def test_without_a_large_field_nothing_is_coded() -> None:
    schema = Schema((Field("age", 3), Field("sex", 2)))
    arrays = {"vectors": np.zeros((5, DIM), np.float32), "counts": np.ones(5, np.int64)}
    allocation = mec.derive(evidence("mec", schema, DIM, arrays=arrays, budget=5 * 4 * DIM), centroids=4)
    embedding = mec.build(schema, DIM, allocation)
    assert set(embedding.packed()) == {"table"} and allocation.arrays == {}
