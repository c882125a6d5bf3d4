"""Retrieval: rank all items for a query, judged by Recall and NDCG at k.

The score of an item is the inner product of its vector and the query's, or the cosine. Candidates of the softmax are
the items of the batch, items that are drawn, or both; see `loss`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize, softplus

from pipeline.data.batches import Batch, Batches
from pipeline.data.drawn import DrawnBatches
from pipeline.data.encoded import Encoded
from pipeline.data.interactions import ITEM_COLUMN, USER_COLUMN, Pairs
from pipeline.data.split import PARTS, Split
from pipeline.metrics.ranking import Queries, by_group, coverage, influence_by_group, ndcg, recall, reciprocal_rank
from pipeline.metrics.ranking import influence as influence_of
from pipeline.models.nearest import TOGETHER, Search, nearest
from pipeline.models.retriever import Retriever

ANSWER = "items"
UNIT = "users"
RANKED = 100  # items that a prediction ranks
CUTS = (1, 5, 10, 20, 50, 100)
OBJECTIVE = 20
METRICS = {
    "recall_20": "Recall@20",
    "ndcg_20": "NDCG@20",
    "mrr": "MRR",
    "coverage_20": "coverage@20",
    **{f"recall_{k}": f"Recall@{k}" for k in CUTS if k != OBJECTIVE},
}
ROWS = 8192  # queries whose vectors are computed together
NEVER = -1e9  # the score of what is no candidate; infinity would have no gradient if nothing else is one
Score = Literal["cosine", "dot"]
Loss = Literal["softmax", "bpr"]
Temperature = Annotated[float, Field(gt=0)]
Number = Annotated[int, Field(ge=0)]
Power = Annotated[float, Field(ge=0, le=1)]


def check(data: Encoded) -> None:
    """Check that the data are interactions.

    Raises:
        ValueError: with a remedy, if they are not.
    """
    if data.interactions is None:
        raise ValueError(
            f"{data.folder}: has labels, and task retrieval needs interactions of users and items; name the columns of "
            "both in dataset.options, choose a data set of interactions, or set task.name to ctr in params.yaml"
        )


def batches(
    split: Split,
    batch_size: int,
    seed: int | None = None,
    *,
    loss: Loss = "softmax",
    in_batch: bool = True,
    negatives: Number = 2048,
    mask_known: bool = True,
) -> Batches:
    """Batches with drawn items.

    Args:
        split: rows of interactions.
        batch_size: most rows of a batch.
        seed: see `pipeline.data.batches.Batches`.
        loss, in_batch: see `loss`.
        mask_known: whether items with which a user has interacted are no negatives of the user.
        negatives: items that are drawn: for each batch with softmax, for each row with bpr.

    Raises:
        ValueError: if a row would have no negatives.
    """
    if not negatives and (loss == "bpr" or not in_batch):
        raise ValueError(
            "params.yaml: task.options: negatives must be at least 1, got 0; only the softmax with in_batch needs none"
        )
    if loss == "bpr":
        return DrawnBatches(split, batch_size, seed, own=negatives, known=False)
    return DrawnBatches(split, batch_size, seed, shared=negatives, with_batch=in_batch, known=mask_known)


def loss(
    model: Retriever,
    batch: Batch,
    *,
    loss: Loss = "softmax",
    temperature: Temperature = 0.1,
    score: Score = "cosine",
    in_batch: bool = True,
    logq: bool = True,
    query_power: Power = 1.0,
) -> Tensor:
    """The mean loss of a batch, in nats.

    Args:
        model, batch: rows and drawn items.
        loss: "softmax": cross-entropy of the row's item against the other candidates of the batch; "bpr": softplus of
            the score of an item that is drawn minus that of the row's item (Rendle et al. 2009).
        temperature: scores are divided by it.
        score: "cosine" or "dot".
        in_batch: whether the items of the batch are candidates, besides those that are drawn. Each item is a candidate
            once, so no row has its own item among its negatives.
        logq: whether the logarithm of the probability to be a candidate is subtracted from the scores of the others.
            Without it, popular items are negatives too often, and their scores fall (Yi et al. 2019).
        query_power: p; a query of n rows has the weight n**p. 1: all rows are alike; 0: all queries are alike.

    NOTE[DIFF]: Yi et al. subtract log(B q), for items that may be candidates several times. Here each is one once, with
    the probability p, so log p is subtracted; the sum over candidates is then unbiased for the sum over all items.
    """
    assert batch.drawn is not None
    if loss == "bpr":
        losses = softplus(-_margins(model, batch, temperature, score)).mean(1)
    else:
        own, others = _scores(model, batch, temperature, score, in_batch, logq)
        losses = torch.logaddexp(own, others.logsumexp(1)[batch.drawn.query]) - own
    return (_weights(batch.drawn.query, query_power) * losses).mean()


def probe(
    model: Retriever,
    batch: Batch,
    *,
    loss: Loss = "softmax",
    temperature: Temperature = 0.1,
    score: Score = "cosine",
    in_batch: bool = True,
    logq: bool = True,
    query_power: Power = 1.0,
) -> Tensor:
    """See `pipeline.training.task.Task.probe`; each row has a random sign, see `CalibratedRetriever`.

    For the softmax with probabilities p, z_j - sum(p z) with j drawn from p has the second derivative, diag(p) - p p^T,
    as the mean of its outer products.
    """
    assert batch.drawn is not None
    seed = int(batch.ids[:, [USER_COLUMN, ITEM_COLUMN]].long().sum())
    generator = torch.Generator().manual_seed(seed)
    signs = (torch.randint(2, (len(batch.ids),), generator=generator) * 2 - 1).to(batch.ids.device)
    scales = signs * _weights(batch.drawn.query, query_power).sqrt()
    if loss == "bpr":
        margins = _margins(model, batch, temperature, score)
        p = margins.detach().sigmoid()
        draws = torch.randint(2, margins.shape, generator=generator).to(p.device) * 2 - 1
        return ((p * (1 - p) / margins.shape[1]).sqrt() * draws * margins * scales[:, None]).sum()
    own, others = _scores(model, batch, temperature, score, in_batch, logq)
    query = batch.drawn.query
    p_own = torch.sigmoid(own - others.logsumexp(1)[query]).detach()
    p = others.detach().softmax(1)  # among the others
    finite = torch.where(p > 0, others, 0)
    mean = p_own * own + (1 - p_own) * (p * finite).sum(1)[query]
    other = torch.multinomial(p.cpu()[query.cpu()], 1, generator=generator).to(p.device)
    is_own = torch.rand(len(own), generator=generator).to(p.device) < p_own
    drawn = torch.where(is_own, own, finite[query, other[:, 0]])
    return ((drawn - mean) * scales).sum()


def _weights(query: Tensor, power: float) -> Tensor:
    """(B,) the weights of the rows of a batch, 1 in the mean, by their queries (B,); see ``query_power``."""
    weights = torch.bincount(query).to(torch.get_default_dtype()).pow(power - 1)[query]
    return weights / weights.mean()


def _margins(model: Retriever, batch: Batch, temperature: float, score: Score) -> Tensor:
    """(B, k): the score of each row's own item minus those of its drawn items."""
    assert batch.drawn is not None
    own, numbers = batch.ids[:, ITEM_COLUMN].long(), batch.drawn.numbers
    distinct, place = torch.cat([own, numbers.flatten()]).unique(return_inverse=True)
    queries, items = _scaled(model(batch.ids[batch.drawn.first], distinct), score)
    queries, vectors = queries[batch.drawn.query], items[place]
    of_own = (queries * vectors[: len(own)]).sum(1, keepdim=True)
    drawn = vectors[len(own) :].view(*numbers.shape, -1)
    of_drawn = (queries[:, None] * drawn).sum(2)  # einsum takes a third longer with one item for each row
    return (of_own - of_drawn) / temperature


def _scores(
    model: Retriever, batch: Batch, temperature: float, score: Score, in_batch: bool, logq: bool
) -> tuple[Tensor, Tensor]:
    """The score of each row's own item (B,), and those of the candidates of each query (G, n): `NEVER` for the query's
    own items and for all that are no candidates."""
    assert batch.drawn is not None
    first, query, numbers, chances, known = batch.drawn
    own = batch.ids[:, ITEM_COLUMN].long()
    distinct, place = torch.cat([own, numbers]).unique(return_inverse=True)
    queries, items = _scaled(model(batch.ids[first], distinct), score)
    scores = queries @ items.T / temperature
    of_own = scores[query, place[: len(own)]]
    if logq:
        scores = scores - chances[distinct]
    excluded = torch.zeros(scores.shape, dtype=torch.bool, device=own.device)
    if not in_batch:
        excluded[:, ~torch.isin(distinct, numbers)] = True
    column = torch.full((len(chances),), -1, device=own.device)
    column[distinct] = torch.arange(len(distinct), device=own.device)
    at = column[known[1]]
    excluded[known[0][at >= 0], at[at >= 0]] = True
    excluded[query, place[: len(own)]] = True
    return of_own, scores.masked_fill(excluded, NEVER)


def _scaled(vectors: tuple[Tensor, Tensor], score: Score) -> tuple[Tensor, Tensor]:
    queries, items = vectors
    return (normalize(queries, dim=1), normalize(items, dim=1)) if score == "cosine" else (queries, items)


@torch.no_grad()
def predict(model: Retriever, split: Split, *, score: Score = "cosine", mask_seen: bool = True) -> np.ndarray:
    """(Q, 100) int32 numbers of the best items for each query, the best first; -1 where there are fewer.

    Args:
        model: trained.
        split: rows of interactions.
        score: see `loss`.
        mask_seen: whether items are left out with which the user interacted in an earlier part, as benchmarks do where
            nothing is bought twice.
    """
    assert split.interactions is not None
    training = model.training
    model.eval()
    rows = np.concatenate(split.ids)
    rows = rows[Queries.of(rows).first]
    known = seen(split, mask_seen=mask_seen)
    found = [numbers for numbers, _ in best(model, rows, known, RANKED, score=score, mask_seen=mask_seen)]
    model.train(training)
    ranked = np.concatenate(found)
    return np.pad(ranked, ((0, 0), (0, RANKED - ranked.shape[1])), constant_values=-1)


def seen(split: Split, *, mask_seen: bool = True) -> Pairs | None:
    """The pairs of the parts before a split, which `predict` leaves out; None if it leaves out none."""
    assert split.interactions is not None
    earlier = PARTS[: min(PARTS.index(part) for part in split.parts)] if split.parts else ()
    return split.interactions.pairs(*earlier) if mask_seen and earlier else None


@torch.no_grad()
def best(
    model: Retriever,
    rows: np.ndarray,
    known: Pairs | None,
    k: int,
    search: Search = nearest,
    *,
    score: Score = "cosine",
    mask_seen: bool = True,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The k best items of each query, or all items if they are fewer; scores of all items stand only for some queries.

    Args:
        model: in evaluation mode.
        rows: (Q, C) one of each query.
        known: pairs of a user and an item that is left out of the user's ranking; None for no pairs.
        k: most items of a query.
        search: gets vectors of queries and items whose inner products are the scores; they have unit length with the
            cosine.
        score: see `loss`.
        mask_seen: whether ``known`` counts.

    Yields:
        For the next n queries: (n, k) int32 numbers of items, the best first, -1 where fewer are left; and their scores
        (n, k) float32.
    """
    device = next(model.parameters()).device
    together = len(rows) if model.is_graph else ROWS  # a graph gives the vectors of all nodes at once
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for start in range(0, len(rows), max(1, together)):
        some = rows[start : start + together]
        queries, items = _scaled(model(torch.from_numpy(some).to(device)), score)
        for first in range(0, len(some), TOGETHER):
            users = some[first : first + TOGETHER, USER_COLUMN].astype(np.int64)
            left_out = nothing if known is None or not mask_seen else known.of_users(users)
            yield search(queries[first : first + TOGETHER], items, left_out, k)


def measure(predictions: np.ndarray, split: Split) -> dict[str, float]:
    """The metrics of ranked items (Q, 100), as means over the queries."""
    assert split.interactions is not None
    queries = Queries.of(np.concatenate(split.ids))
    hits = queries.hits(predictions)
    values = {f"recall_{k}": float(recall(hits, queries.sizes, k).mean()) for k in CUTS}
    values["ndcg_20"] = float(ndcg(hits, queries.sizes, OBJECTIVE).mean())
    values["mrr"] = float(reciprocal_rank(hits).mean())
    values["coverage_20"] = coverage(predictions, len(split.interactions.items), OBJECTIVE)
    return {name: values[name] for name in METRICS}


def influence(predictions: np.ndarray, split: Split) -> np.ndarray:
    """The influence of each user on Recall@20."""
    queries = Queries.of(np.concatenate(split.ids))
    values = recall(queries.hits(predictions), queries.sizes, OBJECTIVE)
    return influence_of(values, queries.users)


def groups(predictions: np.ndarray, split: Split) -> dict[str, dict[str, float]]:
    """Recall@20 and NDCG@20 of groups of targets; see `pipeline.metrics.ranking.by_group`. The popularity of an item is
    the number of users who have it in ``train`` and ``arch``. Without histories, their lengths are the numbers of the
    user's items there."""
    return {name: dict(values) for name, values in by_group(predictions, *_grouped(split)).items()}


def group_influence(predictions: np.ndarray, split: Split) -> dict[str, np.ndarray]:
    """The influence of each user on the Recall@20 of each of the `groups`."""
    return influence_by_group(predictions, *_grouped(split))


def _grouped(split: Split) -> tuple[Queries, np.ndarray, np.ndarray]:
    """The queries, the popularity of the items and the lengths of the histories; see `groups`."""
    shared = split.interactions
    assert shared is not None
    rows = np.concatenate(split.ids)
    queries = Queries.of(rows)
    trained = shared.pairs("train", "arch")
    counts = np.bincount(trained.items, minlength=len(shared.items))
    if shared.columns.history:
        lengths = (shared.columns.of_history(rows[queries.first]) >= 0).sum(1)
    else:
        lengths = np.diff(trained.starts)[queries.users]
    return queries, counts, lengths
