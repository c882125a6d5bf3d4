"""CAFE: the sketch against a plain one, importance, promotion and demotion, and sizes."""

import torch

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost, spent
from pipeline.methods import cafe
from tests.contracts import evidence

SCHEMA = Schema((Field("user", 400), Field("age", 3), Field("tags", 120, width=2)))
DIM = 6


class PlainSketch:
    """One value after the other, in lists; scores decay after every batch, as with a threshold of None."""

    def __init__(self, buckets: int) -> None:
        self.slots = [[[-1, 0.0, -1] for _ in range(4)] for _ in range(buckets)]  # value, score, row
        self.number = buckets

    def every(self) -> list[list]:
        return [slot for bucket in self.slots for slot in bucket]

    def threshold(self) -> float:
        return sum(slot[1] for slot in self.every()) / (10 * self.number)

    def update(self, values: list[int], importance: list[float], bucket_of: list[int]) -> list[tuple[int, int]]:
        for value, added, b in zip(values, importance, bucket_of, strict=True):
            bucket = self.slots[b]
            own = [slot for slot in bucket if slot[0] == value]
            empty = [slot for slot in bucket if slot[0] == -1]
            chosen = (own or empty or [min(bucket, key=lambda slot: slot[1])])[0]
            if own or chosen[2] == -1:
                chosen[0] = value
                chosen[1] += added
        used = {slot[2] for slot in self.every()}
        free = [row for row in range(self.number) if row not in used]
        waiting = [s for s in self.every() if s[0] != -1 and s[2] == -1 and s[1] >= self.threshold()]
        promoted = []
        for slot, row in zip(sorted(waiting, key=lambda slot: -slot[1]), free, strict=False):
            slot[2] = row
            promoted.append((slot[0], row))
        for slot in self.every():
            slot[1] *= 0.99
        least = self.threshold()
        for slot in self.every():
            if slot[1] < least:
                slot[2] = -1
        return promoted


def test_the_sketch_is_the_plain_one() -> None:
    sketch, plain = cafe.HotSketch(13, None, 0), PlainSketch(13)
    generator = torch.Generator().manual_seed(0)
    promotions = demotions = 0
    for step in range(60):
        drawn = (torch.rand(80, generator=generator) ** 4 * 300).long()
        values = ((drawn + 40 * (step // 15)) % 300).unique()  # what is frequent drifts
        importance = torch.rand(len(values), generator=generator) * 3
        hot = {slot[0] for slot in plain.every() if slot[2] != -1}
        expected = plain.update(values.tolist(), importance.tolist(), sketch.buckets(values).tolist())
        promoted, rows = sketch.update(values, importance)
        assert list(zip(promoted.tolist(), rows.tolist(), strict=True)) == expected
        of = torch.tensor(plain.slots, dtype=torch.float64)
        assert torch.equal(sketch.values.double(), of[..., 0]) and torch.equal(sketch.rows.double(), of[..., 2])
        torch.testing.assert_close(sketch.scores.double(), of[..., 1], rtol=1e-4, atol=1e-4)
        promotions += len(expected)
        demotions += len(hot - {slot[0] for slot in plain.every() if slot[2] != -1})
        rows_in_use = sketch.rows[sketch.rows >= 0]
        assert len(rows_in_use.unique()) == len(rows_in_use)
        every = torch.arange(300)
        assert sketch.hot(every).tolist() == [
            next((slot[2] for slot in plain.every() if slot[0] == value), -1) for value in range(300)
        ]
    assert promotions > 13 and demotions > 3


def test_with_a_fixed_threshold_scores_decay_only_above_ten_thresholds_a_row() -> None:
    sketch = cafe.HotSketch(2, 3.0, 0)
    values = torch.tensor([5, 9])
    sketch.update(values, torch.tensor([2.5, 4.0]))
    assert (sketch.hot(values) >= 0).tolist() == [False, True]
    assert sorted(sketch.scores.flatten().tolist())[-2:] == [2.5, 4.0]
    sketch.update(values, torch.tensor([0.5, 60.0]))  # 67 in all, above 10 * 2 * 3
    assert (sketch.hot(values) >= 0).tolist() == [False, True]  # 3 was enough to be promoted, 2.97 is not to stay
    torch.testing.assert_close(sketch.scores.sum(), torch.tensor(0.99 * 67))


def made(hot: int = 40, threshold: float | None = None) -> cafe.AdaptiveRows:
    torch.manual_seed(0)
    settings = {"hot": hot, "hashed": 60.0, "plain": ["age"], "threshold": threshold, "seed": 0}
    return cafe.build(SCHEMA, DIM, Allocation("cafe", dict.fromkeys(SCHEMA.names, DIM), settings))


def draw(rows: int = 300, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [(torch.rand(rows, generator=generator) ** 4 * n).int() for n in (400, 3, 120, 120)]
    columns[3] = torch.where(columns[3] == columns[2], PADDING, columns[3])
    return torch.stack(columns, 1)


def test_importance_is_the_norm_of_the_gradient_relative_to_its_mean_in_the_field() -> None:
    ids, gradient = draw(20), torch.randn(20, 3, DIM)
    occ = Lookup(SCHEMA)(ids)
    expected = dict.fromkeys(occ.rows.tolist(), 0.0)
    norms = gradient.square().sum(2).sqrt()
    for row in range(20):
        for field, values in enumerate((ids[row, :1], ids[row, 1:2], ids[row, 2:])):
            present = [int(value) for value in values if value != PADDING]
            for value in present:
                relative = float(norms[row, field] / norms[:, field].mean())
                expected[(0, 400, 403)[field] + value] += relative / len(present)
    result = cafe.AdaptiveRows.importance(occ, gradient)
    torch.testing.assert_close(result, torch.tensor(list(expected.values())))


def test_a_promoted_value_starts_with_its_hashed_row_and_then_has_its_own() -> None:
    embedding, occ = made(), Lookup(SCHEMA)(draw())
    before = embedding(occ)
    assert not bool((embedding.sketch.rows >= 0).any())
    (before * torch.randn(before.shape)).sum().backward()
    hot = embedding.sketch.hot(occ.rows)
    assert 5 < int((hot >= 0).sum()) <= 40
    assert not bool((hot[embedding.is_plain[embedding.hash.fields(occ.rows)]] >= 0).any())
    torch.testing.assert_close(embedding(occ), before)
    embedding.zero_grad()
    with torch.no_grad():
        embedding.hot.weight.add_(1)
    changed = (embedding.vectors(occ) - spread_rows(embedding, occ)).abs().amax(1) > 0.5
    assert torch.equal(changed, hot >= 0)


def spread_rows(embedding: cafe.AdaptiveRows, occ) -> torch.Tensor:
    """(U, D) as if no value were hot."""
    rows, embedding.sketch.rows = embedding.sketch.rows, torch.full_like(embedding.sketch.rows, -1)
    values = embedding.vectors(occ)
    embedding.sketch.rows = rows
    return values


def test_the_sketch_learns_only_in_training_and_before_finish() -> None:
    embedding, occ = made(), Lookup(SCHEMA)(draw())
    embedding.eval()
    embedding(occ).sum().backward()
    assert not bool(embedding.sketch.scores.any())
    embedding.train()
    embedding(occ).sum().backward()
    scores = embedding.sketch.scores.clone()
    assert bool(scores.any())
    embedding.finish()
    embedding(occ).sum().backward()
    assert torch.equal(embedding.sketch.scores, scores)


def test_frequent_values_become_hot() -> None:
    embedding, lookup = made(hot=20), Lookup(SCHEMA)
    for seed in range(30):
        embedded = embedding(lookup(draw(seed=seed)))
        (embedded * torch.randn(embedded.shape)).sum().backward()
    hot = embedding.sketch.hot(torch.arange(SCHEMA.num_rows))
    users = (hot[:400] >= 0).nonzero()[:, 0]
    assert 0 in users and float(users.float().mean()) < 40


def test_the_sketch_is_counted_and_small_fields_are_plain() -> None:
    packed = made(hot=40).packed()
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in packed.items()}
    assert sizes["sketch.values"] + sizes["sketch.scores"] + sizes["sketch.rows"] == 48 * 40
    assert sizes["table.hot"] == 4 * DIM * 40 and sizes["table.plain"] == 4 * DIM * 3
    full = 4 * DIM * SCHEMA.num_rows
    allocation = cafe.derive(evidence("cafe", SCHEMA, DIM, budget=full // 20))
    assert allocation.settings["plain"] == ["age"]  # 2,000 * 0.05 = 100 values are plain, 120 are not
    found = spent(cafe.build, SCHEMA, DIM, allocation)
    assert found.bytes <= full // 20 and cost(cafe.build(SCHEMA, DIM, allocation).packed()).bytes == found.bytes
    hot = found.bytes_by_kind["sketch"] + 4 * DIM * allocation.settings["hot"]
    hashed = allocation.settings["hashed"] * 4 * DIM
    assert abs(hot - hashed) < 1  # share 0.5
