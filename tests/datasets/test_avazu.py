import gzip

import pyarrow as pa
import pytest

from pipeline.datasets import avazu
from pipeline.sources.source import BadData, NotFound
from pipeline.workflow.validation import checked_options

HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21\n"
)
LINE = (
    "1000009418151094273,0,14102100,1005,0,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,ddd2926e,"
    "44956a24,1,2,15706,320,50,1722,0,35,-1,79\n"
)


def put(folder, text):
    (folder / "train.csv").write_text(text)
    return folder


def table(path, **options):
    return pa.Table.from_batches(avazu.read(path, **options).batches)


def test_a_line_by_hand(tmp_path):
    other = LINE.replace(",0,14102100,", ",1,14103023,")
    found = table(put(tmp_path, HEADER + LINE + other))
    assert found.column_names == ["label", "time", *HEADER.strip().split(",")[2:]]
    assert len(avazu.FIELDS) == 22
    assert found["label"].to_pylist() == [0, 1]
    assert found["time"].to_pylist() == [14102100, 14103023]
    assert found["hour"].to_pylist() == ["14102100", "14103023"]
    assert found["C20"].to_pylist() == ["-1", "-1"]
    assert found["app_category"].to_pylist() == ["07d7df22"] * 2


def test_the_field_hour_can_hold_the_hour_of_the_day(tmp_path):
    other = LINE.replace(",0,14102100,", ",1,14103023,")
    found = table(put(tmp_path, HEADER + LINE + other), hour="hour_of_day")
    assert found["hour"].to_pylist() == ["00", "23"]
    assert found["time"].to_pylist() == [14102100, 14103023]
    with pytest.raises(ValueError, match="hour must be one of raw, hour_of_day, got 'day'"):
        checked_options([avazu.read], {"hour": "day"}, "options")


def test_the_publishers_train_gz_is_found(tmp_path):
    (tmp_path / "train.gz").write_bytes(gzip.compress((HEADER + LINE).encode()))
    assert len(table(tmp_path)) == 1


def test_errors_in_a_file_name_the_line(tmp_path):
    for text, message in (
        (HEADER + LINE + LINE.replace(",0,14102100,", ",3,14102100,"), r"line 3: column 'click' must be 0 or 1, .*'3'"),
        (HEADER + LINE + "1,0,14102100\n", r"line 3: must have 24 values, has 3, .* test.csv has no labels"),
        (HEADER.replace("click,", "") + LINE, r"line 1: no column 'click'; there are \['id', 'hour'"),
    ):
        with pytest.raises(BadData, match=message):
            table(put(tmp_path, text))


def test_the_error_for_missing_data_says_where_to_get_them(tmp_path):
    with pytest.raises(NotFound, match=r"no train.csv .*kaggle.com/c/avazu-ctr-prediction .* into data/avazu"):
        avazu.read(tmp_path)
