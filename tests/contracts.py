"""What tests of methods, embeddings and backbones share: data, the way from a finding to an embedding, and checks."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence, Problem, Trial
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.contract import FieldEmbedding, outer_products
from pipeline.embeddings.cost import full_tables, prices, spent
from pipeline.experiment.method import Method, build, offered
from pipeline.metrics.auc import auc
from pipeline.workflow.plug import names, plug

# Cardinalities differ, so that swapped axes fail, and are large enough for codebooks to be worth their bytes.
SCHEMA = Schema((Field("user", 700), Field("item", 150), Field("age", 3), Field("tags", 60, width=3)))
CANDIDATES = ((1, 2, 3, 4, 5, 6, 8), (1, 2, 4, 8), (1, 4, 8), (0, 1, 2, 4, 8))
DIM, BATCH = 8, 512
FULL = full_tables(SCHEMA, DIM).bytes
LOOKUP = Lookup(SCHEMA)
METHODS = names("methods")

SMALL = Schema((Field("user", 7), Field("item", 5), Field("age", 3), Field("tags", 6, width=3)))
SMALL_DIM, SMALL_BATCH = 4, 64
SMALL_LOOKUP = Lookup(SMALL)


@functools.cache
def draw_ids(seed: int = 0, rows: int = BATCH) -> Tensor:
    """(B, S) ids of `SCHEMA`; small ids are frequent, as the encoder makes them, and bags have one to three values."""
    rng = np.random.default_rng(seed)
    columns = [(rng.random(rows) ** 3 * field.cardinality).astype(np.int32) for field in SCHEMA.fields[:3]]
    tags = np.stack([rng.permutation(60)[:3] for _ in range(rows)])
    tags[np.arange(3) >= rng.integers(1, 4, (rows, 1))] = PADDING
    return torch.from_numpy(np.concatenate([np.stack(columns, 1), tags], 1).astype(np.int32))


@functools.cache
def small_ids(seed: int = 0) -> Tensor:
    """(B, S) ids of `SMALL` in which every value occurs; bags have one to three values."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.arange(SMALL_BATCH) % field.cardinality for field in SMALL.fields[:3]]
    columns = [column[torch.randperm(SMALL_BATCH, generator=generator)] for column in columns]
    tags = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(SMALL_BATCH)])
    tags[torch.arange(3) >= torch.randint(1, 4, (SMALL_BATCH, 1), generator=generator)] = PADDING
    return torch.cat([torch.stack(columns, 1), tags], 1).int()


def ids_of(kept: Schema, seed: int = 0) -> Tensor:
    """`draw_ids` of the kept fields of `SCHEMA`."""
    return draw_ids(seed)[:, SCHEMA.slots_of(kept.names)]


def labels_of(ids: Tensor) -> Tensor:
    """(B,) labels of 0 and 1."""
    return (ids.long().clamp(min=0).sum(1) % 2).float()


def logits_of(embedded: Tensor) -> Tensor:
    """(B, F, D) -> (B,), to which every coordinate of every field contributes."""
    weight = torch.randn(embedded.shape[1:], generator=torch.Generator().manual_seed(5))
    return (embedded * weight).sum((1, 2)) + embedded.sum(1).square().sum(1)


def loss_of(embedding: FieldEmbedding, ids: Tensor) -> Tensor:
    """The mean loss of a batch of `SCHEMA`: ()."""
    return binary_cross_entropy_with_logits(logits_of(embedding(LOOKUP(ids))), labels_of(ids))


class TwoBatches:
    """A judge of an embedding of `SCHEMA`, by two batches; see `pipeline.embeddings.contract.Judge`."""

    def __init__(self, embedding: FieldEmbedding) -> None:
        self.embedding = embedding

    def losses(self) -> Iterator[Tensor]:
        for seed in range(2):
            yield loss_of(self.embedding, draw_ids(seed))

    def rows(self) -> int:
        return 2 * BATCH

    def weights(self) -> Tensor:
        ids = torch.cat([draw_ids(seed) for seed in range(2)])
        occ = LOOKUP(ids)
        assert occ.weights is not None
        total = torch.zeros(SCHEMA.num_rows).index_add_(0, occ.rows[occ.inverse], occ.weights.float().square())
        return total / len(ids)

    def metrics(self) -> Tensor:
        return outer_products(self.gradients())

    def gradients(self) -> Iterator[Tensor]:
        for seed in range(2):
            embedded = self.embedding(LOOKUP(draw_ids(seed)))
            logits = logits_of(embedded)
            p = logits.detach().sigmoid()
            yield torch.autograd.grad(((p * (1 - p)).sqrt() * logits).sum(), embedded)[0]

    @torch.no_grad()
    def objective(self, batches: int | None = None) -> float:
        ids = torch.cat([draw_ids(seed) for seed in range(2)[:batches]])
        return auc(labels_of(ids).numpy(), logits_of(self.embedding(LOOKUP(ids))).numpy())


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """The module with parameters as after training: zeros would hide the factors that they are multiplied with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module


# --- from a method's name to an embedding


def problem(name: str, schema: Schema, dim: int, candidates: Sequence[Sequence[int]], **more: Any) -> Problem:
    """What a method is asked; its own candidates come before those that are passed."""
    return Problem(**_asked(name, schema, dim, tuple(map(tuple, candidates))), **more)


def evidence(
    name: str, schema: Schema, dim: int, candidates: Sequence[Sequence[int]] | None = None, **more: Any
) -> Evidence:
    """What a method derives from; without candidates, every field is offered D."""
    return Evidence(**_asked(name, schema, dim, tuple(map(tuple, candidates or [[dim]] * len(schema)))), **more)


@functools.cache
def _asked(name: str, schema: Schema, dim: int, candidates: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    method = Method.named(name)
    own = offered(method, schema, dim, candidates)
    return {
        "method": name,
        "schema": schema,
        "dim": dim,
        "candidates": own,
        "prices": prices(method.plain, schema, own, dim),
        "full_bytes": full_tables(schema, dim).bytes,
    }


@functools.cache
def _problem(name: str, seed: int = 3) -> Problem:
    return problem(name, SCHEMA, DIM, CANDIDATES, seed=seed, training_ids=lambda: draw_ids(seed, 2000).numpy())


def _searches(name: str) -> bool:
    return Method.named(name).finds and isinstance(Method.named(name).find(_problem(name)), FieldEmbedding)


TRAINED = [name for name in METHODS if _searches(name)]  # methods whose finding is a supernet


def supernet(name: str) -> FieldEmbedding:
    """A supernet of `SCHEMA`, in the middle of its search."""
    torch.manual_seed(0)
    made = Method.named(name).find(_problem(name))
    assert isinstance(made, FieldEmbedding)
    made.before_step(50, 100)
    return made


@functools.cache
def finding(name: str, seed: int = 3) -> dict[str, Any]:
    """What a method derives from besides the problem, after a short but real search."""
    if name in TRAINED:
        embedding = randomised(supernet(name), seed)
        for step in range(3):
            embedding.objective(loss_of(embedding, draw_ids(step)), "train").backward()
        embedding.eval()
        embedding.conclude(TwoBatches(embedding))
        findings = embedding.findings()
        scores = None if findings.scores is None else findings.scores.detach().numpy()
        return {"arrays": findings.arrays(), "scores": scores}
    method = Method.named(name)
    if not method.finds:
        return {}
    result = method.find(_problem(name, seed))
    if isinstance(result, dict):
        return {"arrays": result}
    sizes = [spent(method.build, SCHEMA, DIM, allocation).bytes for allocation in result]
    pairs = enumerate(zip(result, sizes, strict=True))
    return {"trials": tuple(Trial(allocation, 0.5 + 0.01 * i, size) for i, (allocation, size) in pairs)}


@functools.cache
def derived(name: str, seed: int = 3, **more: Any) -> Allocation:
    """A method's allocation for `SCHEMA`."""
    asked = vars(_problem(name, seed))
    return Method.named(name).derive(Evidence(**{**asked, **finding(name, seed), **more}))


def built(name: str, seed: int = 3, **more: Any) -> tuple[FieldEmbedding, Schema, Allocation]:
    """Find, derive and build, of the fields that are kept."""
    allocation = derived(name, seed, **more)
    kept = SCHEMA.subset(allocation.kept())
    torch.manual_seed(seed)
    return build(kept, DIM, allocation.of_kept()), kept, allocation


def served(name: str, **more: Any) -> tuple[FieldEmbedding, Schema]:
    """The embedding that is built, as after its training."""
    embedding, kept, _ = built(name, **more)
    randomised(embedding)
    embedding(Lookup(kept)(ids_of(kept)))  # fills running statistics
    embedding.finish()
    return embedding.eval(), kept


def make_backbone(name: str) -> nn.Module:
    """A backbone of `SMALL`, as after its training."""
    torch.manual_seed(0)
    return randomised(plug("backbones", name).Backbone(SMALL, SMALL_DIM))


def draw_embedded() -> Tensor:
    """(B, F, D) field vectors of `SMALL`."""
    return torch.randn(SMALL_BATCH, len(SMALL), SMALL_DIM, generator=torch.Generator().manual_seed(3))


# --- checks


def dense(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.to_dense() if gradient.is_sparse else gradient


def assert_every_parameter_has_a_gradient(module: nn.Module, but: Sequence[nn.Parameter] = ()) -> None:
    """Every parameter but some has a finite gradient that is not zero everywhere."""
    excepted = {id(parameter) for parameter in but}
    own = {name: p.grad for name, p in module.named_parameters() if id(p) not in excepted}
    without = [name for name, grad in own.items() if grad is None or not bool(dense(grad).any())]
    assert not without
    assert all(bool(dense(grad).isfinite().all()) for grad in own.values())


def assert_rows_are_independent(embedding: FieldEmbedding, kept: Schema) -> None:
    """Each row of a batch has the same vectors alone as together with the others."""
    lookup, ids = Lookup(kept), ids_of(kept)
    with torch.no_grad():
        together = embedding(lookup(ids))
        assert torch.equal(embedding(lookup(ids)), together)
        for row in range(5):
            torch.testing.assert_close(embedding(lookup(ids[row : row + 1]))[0], together[row], rtol=1e-5, atol=1e-6)


def assert_equal_gradients(ours: Tensor, plain: Tensor, parameters: Sequence[Tensor], **tolerance: float) -> None:
    """Two scalars have the same gradients with respect to all parameters."""
    one, other = (torch.autograd.grad(value, parameters, materialize_grads=True) for value in (ours, plain))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(dense(a), dense(b), **tolerance)


WORD = 2**64


def splitmix64(x: int) -> int:
    """As published (Steele, Lea, Flood 2014), in whole numbers without a sign."""
    x = (x + 0x9E3779B97F4A7C15) % WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)
