"""A shop's log, which the data set `table` reads as interactions of users and items."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.datasets.table import read
from pipeline.sources.raw import write_raw
from pipeline.sources.source import BadData
from pipeline.workflow.validation import checked_options

COLUMNS = {
    "user": "customer",
    "item": "sku",
    "users": ["country"],
    "items": ["title", "price"],
    "event": "type",
    "targets": ["buy"],
    "basket": "order",
}
KINDS = {"categorical": ["country"], "numeric": ["price"], "bag": ["title"]}
OPTIONS = {**KINDS, "time": "at", "separator": " "}
DAY = 86_400_000  # milliseconds
HEADER = "at,type,order,customer,country,sku,title,price"
LOG = [
    "30,buy,o1,1,IT,a,red mug,2.5",
    "10,view,,1,IT,a,red mug,2.5",
    "20,buy,o1,2,,b,,",
]


def put(folder, *lines):
    (folder / "log.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return folder / "log.csv"


def opened(path, columns=COLUMNS, **options):
    """The file, with the options as a user writes them."""
    return read(path, **checked_options([read], {"interactions": columns, **options}, "options"))


def read_whole(path, **columns):
    source = opened(path, {**COLUMNS, **columns}, **OPTIONS)
    return source, pa.Table.from_batches(source.batches).to_pydict()


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([3, 1, 2], None),
        (["3", "1", "2"], None),
        (["2024-01-03", "2024-01-01T12:00", "2024-01-02"], "us"),
        (["2024-01-03T00:00:00.123456789", "2024-01-01", "2024-01-02"], "ns"),
        (pa.array([3, 1, 2], pa.timestamp("ms")), "ms"),
        (pa.array([3, 1, 2], pa.date32()), "s"),
        (pa.array([DAY * day for day in (3, 1, 2)], pa.date64()), "s"),
        (pa.array([3, 1, 2], pa.time32("s")), "ms"),  # Parquet has no coarser one
    ],
)
def test_the_unit_of_times_is_a_fact_if_the_data_state_it(tmp_path, times, unit):
    pq.write_table(pa.table({"u": ["a", "b", "c"], "i": ["x", "y", "z"], "at": times}), tmp_path / "log.parquet")
    record = write_raw(
        opened(tmp_path / "log.parquet", {"user": "u", "item": "i"}, time="at"), tmp_path / "raw.parquet"
    )
    assert record["time"] is True and record["facts"] == ({"time_unit": unit} if unit else {})


def test_the_columns_of_a_shop_become_interactions(tmp_path):
    source, found = read_whole(put(tmp_path, *LOG))
    assert found == {
        "time": [30, 10, 20],
        "customer": ["1", "1", "2"],
        "sku": ["a", "a", "b"],
        "country": ["IT", "IT", None],
        "price": [2.5, 2.5, None],
        "title": [["red", "mug"], ["red", "mug"], None],
        "event": ["buy", "view", "buy"],
        "basket": ["o1", "", "o1"],
    }
    kinds = dict.fromkeys(["customer", "sku", "country"], "categorical") | {"price": "numeric", "title": "bag"}
    assert source.fields == kinds and source.defaults == {"history": 20} and source.notes == []
    about = source.interactions
    assert (about.user, about.item, about.targets) == ("customer", "sku", ["buy"])
    assert {name for name, role in about.roles.items() if role == "user"} == {"customer", "country"}
    assert {name for name, role in about.roles.items() if role == "item"} == {"sku", "price", "title"}


def test_a_user_and_an_item_are_enough(tmp_path):
    path = put(tmp_path, *LOG)
    source = opened(path, {"user": "customer", "item": "sku"})
    record = write_raw(source, tmp_path / "table.parquet")
    assert pq.read_table(tmp_path / "table.parquet").to_pydict() == {
        "customer": ["1", "1", "2"],
        "sku": ["a", "a", "b"],
    }
    assert record["label"] is None and record["time"] is False and record["defaults"] == {"history": 0}
    told = record["interactions"]
    assert told["targets"] is None and not (told["event"] or told["basket"] or told["test"])


def test_rows_that_lack_what_makes_them_interactions_are_left_out_and_counted(tmp_path):
    wrong = [
        "1,buy,o2,,FR,b,,3",
        "2,buy,o2, ,FR,b,,3",
        "3,buy,o2,2,FR,,x,3",
        "4,,o2,2,FR,b,,3",
        "5,buy,,2,FR,b,,3",
        "6,buy,,,FR,,,3",  # counts once
    ]
    source, found = read_whole(put(tmp_path, *LOG, *wrong))
    assert found["time"] == [30, 10, 20]
    assert source.notes == [
        "left out 3 rows without a value in 'customer'",
        "left out 1 rows without a value in 'sku'",
        "left out 1 rows without a value in 'type'",
        "left out 1 rows without a value in 'order'",
    ]
    message = r"log.csv: no row is an interaction, got \[\"1 rows without a value in 'customer'\"\]; check the columns"
    with pytest.raises(BadData, match=message):
        read_whole(put(tmp_path, wrong[0]))


def test_every_target_needs_a_basket_if_all_types_are_targets(tmp_path):
    source, found = read_whole(put(tmp_path, *LOG), targets=None)
    assert found["time"] == [30, 20] and source.notes == ["left out 1 rows without a value in 'order'"]


def test_types_and_baskets_may_be_numbers_of_parquet(tmp_path):
    columns = {
        "customer": pa.array([1, None, 3]).dictionary_encode(),
        "sku": ["a", "b", ""],
        "type": [0, 1, 1],
        "order": pa.array([None, 7, 8]),
        "at": [1, 2, 3],
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    shop = {"user": "customer", "item": "sku", "event": "type"}
    with pytest.raises(BadData, match=r"targets must be types of events that occur, 0, got \['1'\]"):
        source = opened(tmp_path / "log.parquet", {**shop, "targets": [1], "basket": "order"})
        write_raw(source, tmp_path / "table.parquet")
    source = opened(tmp_path / "log.parquet", {**shop, "targets": [0]}, time="at")
    found = pa.Table.from_batches(source.batches).to_pydict()
    assert found == {"time": [1], "customer": [1], "sku": ["a"], "event": ["0"]}
    assert source.notes == [f"left out 1 rows without a value in {name!r}" for name in ("customer", "sku")]


def test_a_part_of_a_date_may_describe_a_user(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("customer,sku,joined\n1,a,2020-05-01\n")
    shop = {"user": "customer", "item": "sku", "users": ["joined_year"]}
    source = opened(path, shop, dates={"joined": ["year"]})
    assert source.interactions.roles["joined_year"] == "user"
    assert pa.Table.from_batches(source.batches)["joined_year"].to_pylist() == [2020]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (None, {}, "dataset.options: 'label' is missing; name its column, or set interactions"),
        ({"item": "sku"}, {}, "options: interactions: 'user' is missing"),
        ({**COLUMNS, "itmes": []}, {}, r"options: interactions: there is no 'itmes' \(did you mean 'items'\?\)"),
        (COLUMNS, {"label": "type"}, "label must be null with interactions, got 'type'; remove one of them"),
        (COLUMNS, {"positive": "buy"}, "positive must be null without a label, got 'buy'; remove it"),
        ({**COLUMNS, "event": None}, {}, r"targets must be null without event, got \['buy'\]; name that column"),
        ({**COLUMNS, "targets": []}, {}, r"targets must name at least one type of events, got \[\]; name one"),
        ({**COLUMNS, "items": ["title"]}, {}, r"\['country', 'price', 'title'\] once, got \['country', 'title'\]"),
        ({**COLUMNS, "users": ["country", "age"]}, {}, r"once, got \['country', 'age', 'title', 'price'\]; say of"),
        ({**COLUMNS, "users": ["country", "title"]}, {}, r"once, got \['country', 'title', 'title', 'price'\]"),
        (COLUMNS, {"categorical": ["country", "type"]}, r"no column may be named twice, got \['type'\]"),
        ({**COLUMNS, "basket": "type"}, {}, r"no column may be named twice, got \['type'\]"),
        ({**COLUMNS, "item": "customer"}, {}, r"no column may be named twice, got \['customer'\]"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, columns, options, message):
    with pytest.raises(ValueError, match=message):
        opened(put(tmp_path, *LOG), columns, **{**OPTIONS, **options})
