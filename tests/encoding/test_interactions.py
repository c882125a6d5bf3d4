"""Interactions become rows, users and items by the definition, and no later event reaches an earlier row."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.encoded import Encoded
from pipeline.data.split import PARTS
from pipeline.encoding.encode import encode
from pipeline.workflow.params import Encode
from tests.encoding.logs import raw_log

GIVEN = {"by": "given", "train": 0.6, "arch": 0.2, "val": 0.2, "test": 0.0}
RANDOM = {"by": "random", "train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
TIME = {**RANDOM, "by": "time"}


def settings(split, **rest):
    return Encode.model_validate({"split": split, **rest})


def edges(seed=0, users=40, items=25, rows=900):
    """Columns of random edges, of which some repeat, with a split of their own."""
    rng = np.random.default_rng(seed)
    return {
        "user": [f"u{number}" for number in rng.geometric(2 / users, rows) % users],
        "item": [f"i{number}" for number in rng.geometric(2 / items, rows) % items],
        "test": pa.array(rng.random(rows) < 0.25, pa.uint8()),
    }


def keys(folder, role):
    """The raw keys of all users or items, by number."""
    return pq.read_table(folder / f"{role}s.parquet")["key"].to_pylist()


def pairs(folder, part):
    """(query, user, item, repeat) of each row of a part, with raw keys."""
    users, items = keys(folder, "user"), keys(folder, "item")
    rows = Encoded.load(folder).split(part).slice(0, 10**9)[0]
    return [(int(query), users[user], items[item], int(repeat)) for query, user, item, repeat in rows[:, :4]]


def test_a_given_split_keeps_the_publishers_test_rows_and_shares_out_the_rows_of_each_user(tmp_path):
    columns = edges()
    record = encode(raw_log(tmp_path / "raw", columns), tmp_path / "out", settings(GIVEN))
    given = defaultdict(set)
    for user, item, test in zip(columns["user"], columns["item"], columns["test"].to_pylist(), strict=True):
        given[test].add((user, item))
    found = {part: pairs(tmp_path / "out", part) for part in PARTS}
    bare = {part: [(user, item) for _, user, item, _ in rows] for part, rows in found.items()}
    assert sorted(bare["test"]) == sorted(given[1])
    assert sorted(bare["train"] + bare["arch"] + bare["val"]) == sorted(given[0])
    assert record["interactions"]["left_out"]["duplicates"] == 900 - len(given[0]) - len(given[1]) > 50
    owned = Counter(user for user, _ in given[0])
    for part in ("train", "arch", "val"):
        counts = Counter(user for user, _ in bare[part])
        for user, total in owned.items():
            assert abs(counts[user] - GIVEN[part] * total) < 1 + (part == "train") or total == 1
    assert set(owned) == {user for user, _ in bare["train"]}
    for part, rows in found.items():
        for _, user, item, repeat in rows:
            assert repeat == (part == "test" and (user, item) in given[0])
        queries = [query for query, *_ in rows]
        assert queries == sorted(queries) and {(query, user) for query, user, *_ in rows} == set(
            enumerate(dict.fromkeys(user for _, user, *_ in rows))
        )
        assert record["interactions"]["queries"][part] == queries[-1] + 1
    assert record["interactions"]["given"] is True and record["interactions"]["history"] == 0


def test_users_and_items_are_numbered_by_training_rows_then_by_value_and_then_by_first_appearance(tmp_path):
    columns = edges(seed=1, items=60, rows=500)
    columns["item"] = [
        item if test else item.replace("i", "i1")
        for item, test in zip(columns["item"], columns["test"].to_pylist(), strict=True)
    ]
    encode(raw_log(tmp_path / "raw", columns), tmp_path / "out", settings(GIVEN))
    data = Encoded.load(tmp_path / "out")
    train = pairs(tmp_path / "out", "train")
    for role, place in (("user", 1), ("item", 2)):
        counts, appeared = Counter(row[place] for row in train), list(dict.fromkeys(columns[role]))
        known = sorted(counts, key=lambda value: (-counts[value], value))
        expected = known + [value for value in appeared if value not in counts]
        table = pq.read_table(tmp_path / "out" / f"{role}s.parquet").to_pydict()
        assert table == {
            "number": list(range(len(expected))),
            "key": expected,
            "rows": [counts[value] for value in expected],
        }
        ids = getattr(data.interactions, f"{role}s")
        assert ids[:, 0].tolist() == [*range(1, len(known) + 1), *[0] * (len(expected) - len(known))]
    assert data.interactions.counts.tolist() == table["rows"] and 0 in table["rows"]
    assert data.record["interactions"]["cold"]["items"] == table["rows"].count(0)
