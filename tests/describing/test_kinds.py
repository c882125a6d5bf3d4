"""What each kind of column is used as, and why."""

import datetime
from typing import Any

import pyarrow as pa
import pytest

from pipeline.describing.kinds import use_of, words
from tests.describing.columns import column, drawn

DAY = datetime.date(2020, 1, 1)
MOMENT = datetime.datetime(2020, 1, 1)
HOURS = [MOMENT + datetime.timedelta(hours=place) for place in range(200)]
TAGS = ["sport", "film", "news", "art", "food", "music"]

COLUMNS: list[tuple[str, str, Any, str, str]] = [  # what it is, its name, values, use, a part of the reason
    ("texts", "city", drawn(lambda rng: rng.choice(["Rome", "Oslo", "Bern"])), "categorical", "text"),
    ("booleans", "mobile", [True, False] * 100, "categorical", "bool"),
    ("few whole numbers", "x", drawn(lambda rng: str(rng.randrange(12))), "categorical", "few different"),
    ("ids by name", "userId", drawn(lambda rng: str(rng.randrange(10**6))), "categorical", "named id"),
    ("ids by their order", "x", drawn(lambda rng: str(1 + rng.randrange(600)), 9000), "categorical", "from 1 to 600"),
    ("long ids", "x", drawn(lambda rng: 10**11 + rng.randrange(500) * 7919), "categorical", "same length"),
    ("codes", "x", drawn(lambda rng: f"{rng.randrange(400):05d}"), "categorical", "leading zeros"),
    ("hours by name", "hour", drawn(lambda rng: rng.randrange(240) * 9), "categorical", "named hour"),
    ("fractions", "price", drawn(lambda rng: f"{rng.random() * 90:.2f}"), "numeric", "fractions"),
    ("amounts by name", "age", drawn(lambda rng: rng.randrange(5000)), "numeric", "named age"),
    ("a long tail", "x", drawn(lambda rng: str(int(rng.paretovariate(0.7)))), "numeric", "many different"),
    ("amounts that are rarely not 0", "x", drawn(lambda rng: rng.randrange(20, 60) ** 3), "numeric", "many"),
    ("negative numbers", "x", drawn(lambda rng: str(rng.randrange(-500, 500))), "numeric", "negative"),
    ("few, mostly once", "x", [str(place * 37) for place in [*range(50), *range(50)]], "numeric", "many different"),
    ("texts by |", "x", drawn(lambda rng: "|".join(rng.sample(TAGS, rng.randrange(1, 5)))), "bag", "'|'"),
    ("texts by comma", "x", drawn(lambda rng: ", ".join(rng.sample(TAGS, rng.randrange(1, 5)))), "bag", "','"),
    ("texts by space", "x", drawn(lambda rng: " ".join(rng.sample(TAGS, rng.randrange(1, 5)))), "bag", "' '"),
    ("lists", "x", [["a", "b"], [], None, ["a"]] * 20, "bag", "lists"),
    ("two parts each", "x", drawn(lambda rng: f"{rng.choice(TAGS)}|{rng.randrange(300)}"), "categorical", "text"),
    ("dates", "x", [str(DAY + datetime.timedelta(place % 90)) for place in range(500)], "date", "ISO 8601"),
    ("times with a zone", "x", [f"{hour:%Y-%m-%dT%H:%M:%S}Z" for hour in HOURS], "date", "ISO 8601"),
    ("Unix seconds", "x", drawn(lambda rng: str(1_600_000_000 + rng.randrange(10**7))), "date", "Unix seconds"),
    ("Unix milliseconds", "x", drawn(lambda rng: 1_600_000_000_000 + rng.randrange(10**9)), "date", "milliseconds"),
    ("days as digits", "x", [f"{hour:%Y%m%d%H}" for hour in HOURS], "date", "digits"),
    ("stored timestamps", "x", pa.array(HOURS, pa.timestamp("ms")), "date", "timestamp[ms]"),
    ("dates in US order", "x", drawn(lambda rng: f"{rng.randrange(1, 13)}/28/2020"), "left out", "as 2020-12-31"),
    (
        "times with and without a zone",
        "x",
        ["2020-01-01T10:00:00", "2020-01-01T10:00:00Z"] * 50,
        "left out",
        "not read",
    ),
    ("decimal commas", "x", drawn(lambda rng: f"{rng.random() * 90:.2f}".replace(".", ",")), "left out", "12,5"),
    ("row numbers", "x", list(range(300)), "left out", "different in every row"),
    ("UUIDs", "x", drawn(lambda rng: f"{rng.getrandbits(128):032x}"), "left out", "different in every row"),
    ("nearly unique texts", "x", [*map(str, range(99)), "a", "a"], "left out", "98% of its values occur once"),
    ("one value", "x", ["same"] * 50, "left out", "one value"),
    ("no values", "x", pa.nulls(50), "left out", "no values"),
    ("hardly any value", "x", [None] * 99 + ["a"], "left out", "99.0%"),
    ("sentences", "x", drawn(lambda rng: " ".join(str(rng.random()) for _ in range(9)), 15), "left out", "9 words"),
    ("infinite numbers", "x", [1.5, float("inf")] * 50, "left out", "infinite"),
    ("structs", "x", [{"a": 1}] * 50, "left out", "struct<a: int64>"),
    ("a forbidden name", "label", ["a", "b"] * 50, "left out", "'label'"),
    ("no name", "", ["a", "b"] * 50, "left out", "no name"),
]


@pytest.mark.parametrize(
    ("name", "values", "kind", "why"), [row[1:] for row in COLUMNS], ids=[row[0] for row in COLUMNS]
)
def test_a_column_is_used_by_what_it_holds(name: str, values: Any, kind: str, why: str) -> None:
    use = use_of(column(values, name))
    assert use.kind == kind
    assert why in use.why


def test_whether_a_value_is_missing_can_be_all_that_a_column_says() -> None:
    assert use_of(column(["seen", None] * 50)).kind == "categorical"


def test_the_parts_of_a_date_are_those_that_it_has() -> None:
    assert use_of(column([str(DAY), str(MOMENT)] * 50)).parts == ("hour", "weekday")
    assert use_of(column([str(DAY), "2020-01-02"] * 50)).parts == ("weekday",)
    assert use_of(column(pa.array([DAY, None] * 50))).parts == ("weekday",)
    times = pa.array([datetime.time(8), datetime.time(9)] * 50)
    assert use_of(column(times)).parts == ("hour",) and not use_of(column(times)).orders


def test_ids_of_users_are_kept_where_most_occur_once_in_a_part_of_the_rows() -> None:
    values = [*map(str, range(500)), "7"]
    assert use_of(column([f"u{value}" for value in values], "user", whole=False)).kind == "categorical"
    assert use_of(column([f"u{value}" for value in values], "user")).kind == "left out"


def test_odd_texts_among_numbers_are_named() -> None:
    use = use_of(column([*drawn(lambda rng: str(rng.randrange(500))), "unknown"]))
    assert use.kind == "categorical" and "unknown" in use.why


def test_a_name_is_divided_into_words() -> None:
    assert words("userID") == words("user_id") == words("User ID") == {"user", "id"}
    assert words("HTTPCode2") == {"http", "code"}
