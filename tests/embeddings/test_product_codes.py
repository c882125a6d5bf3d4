"""Codebooks, and the vectors that are made from them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost, spent
from pipeline.embeddings.product_codes import PATIENCE, NearestCentroids, closest, decode, finest
from pipeline.methods import dpq
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 41), Field("age", 3), Field("item", 30), Field("tags", 12, width=2)))
DIM, GROUPS = 6, 3


def draw_ids(rows: int = 64, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, f.cardinality, rows) for f in SCHEMA.fields], 1).astype(np.int32)
    second = np.where(rng.random(rows) < 0.5, PADDING, (ids[:, 3] + 1) % 12)
    return torch.from_numpy(np.c_[ids, second].astype(np.int32))


def trained(centroids: list[int], shares: list[float] | None = None, **options: float) -> NearestCentroids:
    """With codebooks and queries far enough apart that every centroid has rows."""
    torch.manual_seed(0)
    made = NearestCentroids(SCHEMA, DIM, groups=GROUPS, centroids=centroids, shares=shares or [], **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return made


def test_the_closest_centroid_is_the_one_at_the_least_of_all_distances_written_out() -> None:
    torch.manual_seed(0)
    vectors, books = torch.randn(600, DIM), torch.randn(GROUPS, 7, DIM // GROUPS)
    codes = closest(vectors, books)
    for g in range(GROUPS):
        part = vectors[:, 2 * g : 2 * g + 2]
        assert torch.equal(codes[:, g], (part[:, None] - books[g]).square().sum(2).argmin(1))
    chosen = torch.stack([torch.cat([books[g, codes[row, g]] for g in range(GROUPS)]) for row in range(600)])
    assert torch.equal(decode(codes, books), chosen)


def test_small_fields_keep_their_vectors_and_the_others_cost_their_bits_and_the_codebooks() -> None:
    made = trained([12])  # 4 bits, enough for 16 centroids
    assert made.small == ("age", "tags")
    packed = made.packed()
    assert {name: tuple(tensor.shape) for name, tensor in packed.items()} == {
        "table": (15, DIM),
        "code": (-(-41 * GROUPS * 4 // 8) + -(-30 * GROUPS * 4 // 8),),
        "codebook": (GROUPS, 12, 2),
    }
    assert cost(packed).bytes == 4 * 15 * DIM + 62 + 45 + 4 * 12 * DIM


def test_the_pull_and_the_gradients_are_those_of_the_equations_written_out() -> None:
    made, ids = trained([5], commitment=0.3), draw_ids()
    occ = Lookup(SCHEMA)(ids)
    embedded = made(occ)
    weight = torch.randn(embedded.shape)
    loss = made.objective((embedded * weight).sum(), "train")
    loss.backward()

    queries = made.queries.weight.detach().clone().requires_grad_()  # of user, item and tags; age is plain
    book = made.book.detach().clone().requires_grad_()
    first = {"user": 0, "item": 41, "tags": 71}
    vectors, pulls, commitments = {}, [], []
    for name, start in first.items():
        column = SCHEMA.names.index(name)
        seen = set(ids[:, column].tolist()) | (set(ids[:, 4].tolist()) - {PADDING} if name == "tags" else set())
        for value in sorted(seen):
            parts = []
            for g in range(GROUPS):
                q = queries[start + value, 2 * g : 2 * g + 2]
                c = book[g, int((q - book[g]).square().sum(1).argmin())]
                parts.append(q + (c - q).detach())
                pulls.append((q.detach() - c).square().sum())
                commitments.append((q - c.detach()).square().sum())
            vectors[name, value] = torch.cat(parts)
    rows = len(vectors)
    expected = (sum(pulls) + 0.3 * sum(commitments)) / rows
    task = torch.zeros(())
    for row, values in enumerate(ids.tolist()):
        tags = [vectors["tags", value] for value in values[3:] if value != PADDING]
        plain = made.table.weight.detach()[values[1]]
        of_fields = [vectors["user", values[0]], plain, vectors["item", values[2]], sum(tags) / len(tags)]
        torch.testing.assert_close(embedded[row], torch.stack(of_fields), rtol=1e-5, atol=1e-6)
        task = task + (torch.stack(of_fields) * weight[row]).sum()
    torch.testing.assert_close(loss, task + expected, rtol=1e-5, atol=1e-4)
    (task + expected).backward()
    torch.testing.assert_close(made.queries.weight.grad.to_dense(), queries.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.book.grad, book.grad, rtol=1e-4, atol=1e-6)
    assert bool(book.grad.any())


def test_settled_codes_give_the_evaluated_vectors_and_no_longer_follow_the_queries() -> None:
    made, occ = trained([5]).eval(), Lookup(SCHEMA)(draw_ids())
    before = made(occ)
    assert made.objective(torch.tensor(1.0), "train") == 1.0  # nothing is pulled in evaluation
    made.finish()
    assert torch.equal(made(occ), before)
    with torch.no_grad():
        made.queries.weight.fill_(torch.nan)
    assert torch.equal(made(occ), before)


def test_perplexity_measures_how_evenly_centroids_are_used_before_and_after_codes_are_settled() -> None:
    made = trained([4])
    with torch.no_grad():
        made.book.copy_(torch.tensor([[-9.0, -9], [-3, -3], [3, 3], [9, 9]]).expand(GROUPS, 4, 2))
        ramp = torch.arange(83) % 4  # user, item and tags: 41 + 30 + 12 rows
        made.queries.weight[:, :2] = made.book[0, ramp]
        made.queries.weight[:, 2:4] = made.book[1, 2]
        made.queries.weight[:, 4:] = made.book[2, ramp % 2]
    counts = np.bincount(ramp)
    halves = np.array([42, 41])
    wanted = [np.exp(-(n / 83 * np.log(n / 83)).sum()) for n in (counts, np.array([83]), halves)]
    np.testing.assert_allclose(made.perplexity().numpy(), wanted, rtol=1e-5)
    made.finish()
    np.testing.assert_allclose(made.perplexity().numpy(), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="no field has more than 64 values"):
        trained([64]).perplexity()


def test_centroids_that_no_row_uses_are_drawn_again_so_collapse_does_not_last() -> None:
    made, occ = trained([5]), Lookup(SCHEMA)(draw_ids())
    with torch.no_grad():
        made.book[:, 1:] = 1e3
    assert made.perplexity().tolist() == [1.0] * GROUPS
    for _ in range(PATIENCE):
        made(occ)
    assert made.perplexity().tolist() == [1.0] * GROUPS
    made(occ)
    assert bool((made.perplexity() > 2).all())
    assert float(made.book.detach().max()) < 100


def test_rows_of_a_tier_use_only_its_centroids_and_fewer_bits() -> None:
    made = trained([8, 3], [0.25])
    made.finish()
    lengths = [-(-rows * GROUPS * width // 8) for rows, width in ((11, 3), (30, 2), (8, 3), (22, 2), (3, 3), (9, 2))]
    assert len(made.codes.data) == sum(lengths)  # user 41 = 11 + 30, item 30 = 8 + 22, tags 12 = 3 + 9
    rows = torch.arange(83)
    segments = torch.repeat_interleave(torch.arange(6), torch.tensor([11, 30, 8, 22, 3, 9]))
    codes = made.codes.read(made.codes.data, rows, segments)
    head = segments % 2 == 0
    assert int(codes[head].max()) > 2 and int(codes[~head].max()) == 2
    queries = made.queries.weight.detach()
    assert torch.equal(codes[head], closest(queries[head], made.book.detach()))
    assert torch.equal(codes[~head], closest(queries[~head], made.book.detach()[:, :3]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 4, "centroids": [4]}, "groups must divide the dimension 6"),
        ({"groups": 3, "centroids": [4, 8], "shares": [0.1]}, "centroids must fall"),
        ({"groups": 3, "centroids": [8, 4]}, "shares must be given for all tiers but the last"),
        ({"groups": 3, "centroids": [8, 4], "shares": [1.0]}, "shares of tiers must be above 0"),
    ],
)
def test_settings_that_make_no_codes_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NearestCentroids(SCHEMA, DIM, **settings)


def test_the_finest_codes_have_the_most_bits_a_row_that_fit_and_then_the_most_centroids() -> None:
    schema, own = Schema((Field("user", 5000), Field("age", 3))), {"variant": "vx", "commitment": 0.0}
    groups, numbers = (1, 2, 4, 8), (2, 4, 16, 256)

    def size(g: int, k: int) -> int:
        allocation = Allocation("dpq", {"user": 8, "age": 8}, {"groups": g, "centroids": [k], **own})
        return spent(dpq.build, schema, 8, allocation).bytes

    def chosen(limit: int) -> tuple[int, int]:
        given = evidence("dpq", schema, 8, budget=limit)
        settings = finest(given, dpq.build, groups, [[k] for k in numbers], own).settings
        return settings["groups"], settings["centroids"][0]

    assert chosen(160_000) == (8, 256)
    assert chosen(size(8, 256) - 1) == (4, 256)  # 32 bits, as many as (8, 16) has
    assert chosen(size(4, 256) - 1) == (8, 16)
    assert chosen(size(1, 2)) == (1, 2)
    with pytest.raises(ValueError, match=f"dpq: no codes .* the least is {size(1, 2):,}; raise the budget"):
        chosen(size(1, 2) - 1)
