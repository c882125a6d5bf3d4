"""Interactions become rows, users and items by the definition, and no later event reaches an earlier row."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.encoded import Encoded
from pipeline.data.schema import PADDING
from pipeline.data.split import PARTS
from pipeline.encoding import interactions
from pipeline.encoding.encode import as_stream, encode
from pipeline.encoding.encoding import Encoding
from pipeline.sources.source import BadData
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
        forced = len(owned) + len(
            {item for _, item in given[0]}
        )  # at most so many rows are in train for their user or item
        assert abs(len(bare[part]) - GIVEN[part] * len(given[0])) < forced + 3 * np.sqrt(len(owned))
        assert part == "train" or all(counts[user] < GIVEN[part] * total + 1 for user, total in owned.items())
    assert set(owned) == {user for user, _ in bare["train"]}
    assert {item for _, item in given[0]} == {item for _, item in bare["train"]}
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


def shop(seed=0, rows=700, **others):
    """Columns of a shop's log that is not in the order of time, where many events have the same time."""
    rng = np.random.default_rng(seed)
    users = rng.geometric(0.15, rows) % 20
    times = rng.integers(0, 250, rows)
    return {
        "user": [f"u{number}" for number in users],
        "item": [f"i{number}" for number in rng.geometric(0.05, rows) % 50 + times // 60],  # new ones come
        "event": rng.choice(["buy", "view", "return"], rows, p=[0.6, 0.3, 0.1]).tolist(),
        "time": pa.array(times),
        **others,
    }


def baskets(columns):
    """Baskets of up to about five times; two users may have baskets of the same name."""
    return [f"b{time // 5}" for time in columns["time"].to_pylist()]


def definition(columns, split, history):
    """For each part, {query: Counter of (user, item, repeat, ((item, event, log age), ...))}, by loops over the events.

    A query is (user, basket), or without baskets (user, time). It is asked at the time of its first event of any type.
    Also the number of events that are left out.
    """
    given = {
        name: list(values.to_pylist() if isinstance(values, pa.Array) else values) for name, values in columns.items()
    }
    events = [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]
    events.sort(key=lambda event: event["time"])  # stable
    buys = [event for event in events if event["event"] == "buy"]
    asked, left_out, seen = {}, set(), set()
    for event in events:
        asked.setdefault((event["user"], event.get("basket", event["time"])), event["time"])
    for event in buys:
        query = event["user"], event.get("basket", event["time"])
        if (query, event["item"]) in seen:
            left_out.add(id(event))
        seen.add((query, event["item"]))
    rows = [(event, (event["user"], event.get("basket", event["time"]))) for event in buys if id(event) not in left_out]
    times, shares = sorted(asked[query] for _, query in rows), np.cumsum([split[part] for part in PARTS[:3]])
    last = [times[int(np.ceil(share * len(rows) - 1e-6)) - 1] for share in shares]
    shown, oldest = [], 0
    for event, query in rows:
        now, user = asked[query], event["user"]
        past = [e for e in events if e["user"] == user and e["time"] < now and id(e) not in left_out][::-1][:history]
        repeat = any(e["user"] == user and e["item"] == event["item"] and e["time"] < now for e in buys)
        part = PARTS[sum(now > bound for bound in last)]
        shown.append((part, query, user, event["item"], repeat, past))
        if part == "train":
            oldest = max([oldest, *(now - e["time"] for e in past)])
    found = {part: defaultdict(Counter) for part in PARTS}
    for part, query, user, item, repeat, past in shown:
        ages = [int(np.log2(1 + min(oldest, asked[query] - e["time"]))) for e in past]
        known = tuple((e["item"], e["event"], age) for e, age in zip(past, ages, strict=True))
        found[part][query][user, item, repeat, known] += 1
    return found, len(left_out)


def encoded_rows(folder, part):
    """{query: Counter} of a part as `definition` says it, but with numbers of queries."""
    data = Encoded.load(folder)
    users, items, columns = keys(folder, "user"), keys(folder, "item"), data.interactions.columns
    known = {name: {0: None} for name in ("event", "event_age")}
    for row in pq.read_table(folder / "vocabulary.parquet").to_pylist():
        known.setdefault(row["feature"], {})[row["id"]] = row["value"]
    rows, found = data.split(part).slice(0, 10**9)[0], defaultdict(Counter)
    for row, history, events in zip(rows, columns.of_history(rows), columns.of_events(rows), strict=True):
        shown = []
        for item, ids in zip(history, events, strict=True):
            assert (ids == PADDING).all() == (item == PADDING)
            if item != PADDING:
                age = known["event_age"][ids[1]]
                shown.append((items[item], known["event"][ids[0]], None if age is None else int(age)))
        found[row[0]][users[row[1]], items[row[2]], bool(row[3]), tuple(shown)] += 1
    assert list(found) == list(range(len(found))), (
        "rows of a query follow each other, and queries are numbered in order"
    )
    return found


@pytest.mark.parametrize("with_baskets", [False, True], ids=["times", "baskets"])
@pytest.mark.parametrize("history", [1, 5])
def test_rows_of_a_log_are_those_of_the_definition_so_that_no_later_event_reaches_an_earlier_row(
    tmp_path, with_baskets, history
):
    columns = shop(seed=history)
    if with_baskets:
        columns["basket"] = baskets(columns)
    raw = raw_log(tmp_path / "raw", columns, targets=["buy"])
    record = encode(raw, tmp_path / "out", settings(TIME, history=history))["interactions"]
    expected, duplicates = definition(columns, TIME, history)
    assert record["left_out"] == {
        "duplicates": duplicates,
        "in_histories_only": columns["event"].count("view") + columns["event"].count("return"),
    }
    assert record["events"] == ["buy", "return", "view"] and (duplicates or not with_baskets)
    for part in PARTS:
        rows = encoded_rows(tmp_path / "out", part)
        assert sorted(map(sorted_items, rows.values())) == sorted(map(sorted_items, expected[part].values()))
        assert record["queries"][part] == len(rows)
        assert record["repeats"][part] == sum(row[2] * n for query in rows.values() for row, n in query.items())
        assert record["empty_histories"][part] == sum(not next(iter(query))[3] for query in rows.values())
    assert record["empty_histories"]["train"] > 0 < record["repeats"]["test"]


def sorted_items(counter):
    return sorted(map(repr, counter.items()))


def test_nothing_is_learned_from_events_after_the_training_rows(tmp_path):
    columns = shop()
    times, later = columns["time"].to_pylist(), []
    codes = [sum(map(ord, item)) for item in columns["item"]]
    given = settings(TIME, history=3, numeric="quantiles", buckets=5)
    records = []
    for place in ("before", "after"):
        users, items, events = (
            [f"{value} {row}" if row in later else value for row, value in enumerate(columns[name])]
            for name in ("user", "item", "event")
        )
        changed = {
            "user": users,
            "item": items,
            "event": [old if old == "buy" else new for old, new in zip(columns["event"], events, strict=True)],
            "title": [[item, f"w{code % 7}"] for item, code in zip(items, codes, strict=True)],
            "price": [1e6 if row in later else float(code) for row, code in enumerate(codes)],
            "time": pa.array([time + 1000 * (row in later) for row, time in enumerate(times)]),
        }
        kinds = {"title": "bag", "price": "numeric"}
        raw = raw_log(tmp_path / place / "raw", changed, items=kinds, targets=["buy"])
        records.append(encode(raw, tmp_path / place / "out", given))
        later = [row for row, time in enumerate(times) if time > records[0]["split"]["last_times"][0]]
    first, second = records
    assert first["split"]["last_times"][0] == second["split"]["last_times"][0] and len(later) > 150
    assert first["edges"] == second["edges"] and set(first["edges"]) == {"price"}
    for name in ("vocabulary.parquet", "train/ids.npy"):
        one, other = ((tmp_path / place / "out" / name).read_bytes() for place in ("before", "after"))
        assert one == other
    assert (tmp_path / "before/out/test/ids.npy").read_bytes() != (tmp_path / "after/out/test/ids.npy").read_bytes()
    for role in ("user", "item"):
        tables = [pq.read_table(tmp_path / place / f"out/{role}s.parquet").to_pylist() for place in ("before", "after")]
        known = [[row for row in table if row["rows"]] for table in tables]
        ids = [np.load(tmp_path / place / f"out/{role}s.npy")[: len(known[0])] for place in ("before", "after")]
        assert known[0] == known[1] and np.array_equal(*ids) and len(tables[1]) > len(tables[0])


def small(tmp_path, rows, kinds, encode_settings=None, **rest):
    """Encode events (time, user, item, values of further fields of the item); seven training rows of ten.

    Returns:
        The folder, and the record.
    """
    names = ["time", "user", "item", *kinds]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    for name, kind in kinds.items():
        columns[name] = pa.array(columns[name], pa.list_(pa.string()) if kind == "bag" else None)
    columns["time"] = pa.array(columns["time"], pa.int64())
    raw = raw_log(tmp_path / "raw", columns, items=kinds, **rest)
    return tmp_path / "out", encode(raw, tmp_path / "out", encode_settings or settings(TIME))


def content(folder, field):
    """The known values of a field of each item, by its key."""
    data = Encoded.load(folder)
    known = pq.read_table(folder / "vocabulary.parquet").to_pylist()
    values = {row["id"]: row["value"] for row in known if row["feature"] == field}
    slots = data.interactions.slots("item", data.schema.subset([field]))
    rows = data.interactions.items[:, slots]
    return {key: [values.get(i) for i in row if i >= 0] for key, row in zip(keys(folder, "item"), rows, strict=True)}


def test_an_item_is_what_its_first_event_says_and_a_cold_one_is_known_by_its_content(tmp_path):
    rows = [
        (9, "u", "cold", ["red", "new"], None),  # the file is not in the order of time
        (2, "u", "changes", ["blue", "cup"], "x"),
        (1, "v", "changes", ["red", "mug"], "y"),
        *((3 + row, "w", f"once {row}", ["mug"], "x") for row in range(4)),
        (7, "u", "empty", [], None),
        (8, "u", "changes", ["mug"], "x"),
        (10, "u", "bare", None, "x"),
    ]
    folder, record = small(tmp_path, rows, {"title": "bag", "group": "categorical"})
    titles, groups = content(folder, "title"), content(folder, "group")
    assert titles["changes"] == ["red", "mug"] and groups["changes"] == ["y"]
    assert titles["cold"] == ["red"] and titles["empty"] == titles["bare"] == [None]
    assert groups["cold"] == [None] and groups["bare"] == ["x"]
    assert content(folder, "item")["cold"] == [None]
    known = pq.read_table(folder / "vocabulary.parquet").to_pylist()
    counts = {row["value"]: row["count"] for row in known if row["feature"] == "title"}
    assert counts == {"mug": 6, "red": 2}  # an item counts once for each training row
    assert record["interactions"]["cold"] == {"items": 2, "rows": {"train": 0, "arch": 0, "val": 1, "test": 1}}
    assert record["summaries"]["title"]["unknown"] == {"val": 0.0, "test": 1.0}


def test_numbers_of_items_become_categories(tmp_path):
    prices = [1.0, 9.0, 9.0, 9.0, 1.0, 1.0, 9.0, 1.0, 9.0, None]
    folder, _ = small(
        tmp_path, [(time, "u", f"i{time}", price) for time, price in enumerate(prices)], {"price": "numeric"}
    )
    one, nine = ["1"], ["4"]  # ln(9)^2 = 4.8
    assert [content(folder, "price")[f"i{time}"] for time in range(10)] == [
        *[one, nine, nine, nine, one, one, nine],
        *[one, nine, [None]],
    ]


def test_users_without_a_history_and_sessions_of_one_event_have_rows(tmp_path):
    rows = [(time, f"u{time}", f"i{time % 3}") for time in range(10)]
    folder, record = small(tmp_path, rows, {}, settings(TIME, history=3))
    about = record["interactions"]
    assert (
        about["empty_histories"] == about["queries"] == record["rows"] == {"train": 7, "arch": 1, "val": 1, "test": 1}
    )
    data = Encoded.load(folder)
    rows = data.split(*PARTS).slice(0, 10)[0]
    assert data.interactions.columns.number == rows.shape[1] == 4 + 3 + 3  # no types of events: their ages alone
    assert (rows[:, 4:] == PADDING).all() and not rows[:, 3].any()


def test_ages_beyond_those_of_training_rows_count_as_the_largest_of_these(tmp_path):
    times = [0, 1, 2, 5, 6, 7, 8, 50, 51, 1000]
    folder, record = small(tmp_path, [(time, "u", f"i{time}") for time in times], {}, settings(TIME, history=1))
    ids = Encoded.load(folder).split("train", "test").slice(0, 10)[0]
    assert ids[:, 5].tolist() == [PADDING, 1, 1, 2, 1, 1, 1, 2]  # after 1, 1, 3, 1, 1, 1 and 949 units
    assert record["summaries"]["event_age"]["unknown"] == {"val": 0.0, "test": 0.0}


def test_a_random_split_takes_each_pair_once_and_has_no_history(tmp_path):
    columns = edges(rows=3000, users=300, items=200)
    del columns["test"]
    raw = raw_log(tmp_path / "raw", columns | {"time": pa.array(range(3000))}, defaults={"history": 20, "min_count": 1})
    record = encode(raw, tmp_path / "out", settings(RANDOM))
    distinct = set(zip(columns["user"], columns["item"], strict=True))
    found = [row[1:3] for part in PARTS for row in pairs(tmp_path / "out", part)]
    assert len(found) == len(distinct) and set(found) == distinct
    assert record["interactions"]["left_out"]["duplicates"] == 3000 - len(distinct) > 0
    assert record["interactions"]["history"] == 0 and set(record["interactions"]["repeats"].values()) == {0}
    for part, share in zip(PARTS, (0.7, 0.1, 0.1, 0.1), strict=True):
        assert abs(record["rows"][part] / len(found) - share) < 4 * np.sqrt(share * (1 - share) / len(found))
    again = encode(raw, tmp_path / "again", settings(RANDOM))
    other = encode(raw, tmp_path / "other", settings(RANDOM, seed=1))
    assert record["sha256"] == again["sha256"] != other["sha256"]


def test_the_data_sets_default_history_is_taken_with_a_split_by_time(tmp_path):
    raw = raw_log(tmp_path / "raw", shop(), defaults={"history": 7, "min_count": 1})
    assert encode(raw, tmp_path / "out", settings(TIME))["interactions"]["history"] == 7
    assert encode(raw, tmp_path / "none", settings(TIME, history=0))["interactions"]["history"] == 0
    assert Encoded.load(tmp_path / "none").schema.of_role("event") is None


def test_the_result_is_the_same_whatever_the_pieces(tmp_path, monkeypatch):
    prices = [float(len(item) * row % 50) for row, item in enumerate(shop()["item"])]
    columns = shop(price=prices)
    raw = raw_log(tmp_path / "raw", columns, items={"price": "numeric"}, targets=["buy"])
    given = settings(TIME, history=3, numeric="quantiles", buckets=6, min_count=2)
    whole = encode(raw, tmp_path / "whole", given)
    monkeypatch.setattr(interactions, "CHUNK_CELLS", 100)
    assert encode(raw, tmp_path / "pieces", given) == whole
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert len(files) == 18
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "pieces" / file).read_bytes()


def test_keys_that_are_numbers_are_ordered_as_numbers(tmp_path):
    columns = {"user": pa.array([row % 30 for row in range(600)]), "item": pa.array([row // 30 for row in range(600)])}
    encode(raw_log(tmp_path / "raw", columns), tmp_path / "out", settings(RANDOM))
    for role in ("user", "item"):
        table = pq.read_table(tmp_path / f"out/{role}s.parquet").to_pylist()
        assert table == sorted(table, key=lambda row: (-row["rows"], int(row["key"])))


def test_what_was_learned_from_interactions_encodes_raw_values_again(tmp_path):
    columns = shop(title=pa.array([["a", item] for item in shop()["item"]]))
    columns["event"] = pa.array(columns["event"], pa.large_string())
    raw = raw_log(tmp_path / "raw", columns, items={"title": "bag"}, targets=["buy"])
    encode(raw, tmp_path / "out", settings(TIME, history=2))
    encoding = Encoding.load(tmp_path / "out")
    assert list(encoding.vocabularies) == list(encoding.schema.names) == ["user", "item", "title", "event", "event_age"]
    batch = {"user": ["u1"], "item": ["i3"], "title": [["a", "i3"]], "event": ["return"], "event_age": [1]}
    ids, _ = encoding.ids(pa.RecordBatch.from_pydict(batch))
    items = np.load(tmp_path / "out/items.npy")
    assert (
        ids[0, 1:10].tolist() == items[keys(tmp_path / "out", "item").index("i3")].tolist() and (ids[:, -2:] > 0).all()
    )


EDGES = {"item": [f"i{row % 3}" for row in range(100)]}


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({}, settings(TIME), "has no time to split by; set encode.split.by to random"),
        ({}, settings(GIVEN), "does not say which rows are for tests; set encode.split.by to random or time"),
        (
            {"test": pa.array([0, 1] * 50, pa.uint8())},
            settings(RANDOM),
            "has test rows that its publisher chose.*given",
        ),
        ({}, settings(RANDOM, history=2), "histories only with a split by time, and encode.history is 2.*to 0 or null"),
        ({"time": pa.array([1, 2] * 50)}, settings(TIME), "no row would go to part 'arch'.*same time stay together"),
        (
            {**EDGES, "test": pa.array([0] * 100, pa.uint8())},
            settings(GIVEN),
            "no row would go to part 'test'; give the publ",
        ),
        (
            {"test": pa.array([0, 1] * 50, pa.uint8())},
            settings(GIVEN),
            "go to part 'arch'.*of each item stays in train",
        ),
        (
            {"time": pa.array(range(100)), "event_age": ["x"] * 100},
            settings(TIME, history=1),
            r"has fields \['event_age'\], and histories have fields of these names; rename",
        ),
        ({"event": ["view"] * 100}, settings(RANDOM), "has no event of a type that may be predicted"),
        ({"user": [None, "u"] * 50}, settings(RANDOM), "must have a user in every row, but row 1 has none"),
    ],
)
def test_settings_that_do_not_suit_a_log_are_refused_with_a_remedy(tmp_path, change, given, message):
    columns = {"user": [f"u{i % 7}" for i in range(100)], "item": [f"i{i}" for i in range(100)]}
    kinds = {name: "categorical" for name in change if name == "event_age"}
    raw = raw_log(tmp_path / "raw", columns | change, users=kinds, targets=["buy"])
    with pytest.raises(ValueError, match=f"table.parquet: .*{message}"):
        encode(raw, tmp_path / "out", given)
    assert not (tmp_path / "out").exists()


def test_a_record_that_does_not_describe_its_interactions_is_refused(tmp_path):
    columns = {"user": ["u"], "item": ["i"]}
    for number, (entry, message) in enumerate(
        [
            ({"roles": {}}, "must describe its interactions by roles, keys, targets"),
            (None, "names columns that table.parquet does not have: .'label'."),
        ]
    ):
        raw = raw_log(tmp_path / str(number), columns, interactions=entry)
        with pytest.raises(ValueError, match=message):
            encode(raw, tmp_path / "out", settings(RANDOM))
    with pytest.raises(BadData, match=r"has interactions, and a stream needs labels"):
        as_stream(raw_log(tmp_path / "good", columns))


def test_labelled_rows_have_neither_a_history_nor_a_given_split(tmp_path):
    columns = {"label": pa.array([0, 1] * 50, pa.uint8()), "user": ["u"] * 100, "item": ["i"] * 100}
    raw = raw_log(tmp_path / "raw", columns, label={"type": "uint8", "mean": 0.5}, interactions=None)
    with pytest.raises(BadData, match=r"has labels, and only interactions have a history; set encode.history to null"):
        encode(raw, tmp_path / "out", settings(RANDOM, history=3))
    with pytest.raises(BadData, match=r"has no test rows that its publisher chose; set encode.split.by to random"):
        encode(raw, tmp_path / "out", settings(GIVEN))
