"""The jobs that turn text into arrays give the same result, and the figures follow from their times."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from benchmarks import criteo_file, encode
from benchmarks.encoders import SHARES, product, with_pandas
from benchmarks.encoders.run import run_job

ROWS = 3000


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "train.txt"
    criteo_file.write(file, ROWS)
    return file


def test_the_text_has_criteo_s_columns_and_is_the_same_for_the_same_seed(text: Path, tmp_path: Path) -> None:
    lines = text.read_text().splitlines()
    assert len(lines) == ROWS and {len(line.split("\t")) for line in lines} == {40}
    assert {line.split("\t")[0] for line in lines} == {"0", "1"}
    criteo_file.write(tmp_path / "again.txt.gz", ROWS)
    assert gzip.decompress((tmp_path / "again.txt.gz").read_bytes()) == text.read_bytes()
    criteo_file.write(tmp_path / "other.txt", ROWS, seed=1)
    assert (tmp_path / "other.txt").read_bytes() != text.read_bytes()


def test_pandas_and_the_product_give_the_same_rows_the_same_ids(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks are short, so that counts are added up and rows go to a part from several chunks."""
    monkeypatch.setattr(with_pandas, "CHUNK_ROWS", 400)
    folders = {"product": tmp_path / "product", "pandas": tmp_path / "pandas"}
    for name, module in (("product", product), ("pandas", with_pandas)):
        folders[name].mkdir()
        parts = module.prepare(text, folders[name])()
        assert len(parts) == 2 and min(parts.values()) > 0
    for number, part in enumerate(SHARES):
        ours, theirs = folders["product"] / "encoded" / part, folders["pandas"]
        np.testing.assert_array_equal(np.load(ours / "labels.npy"), np.load(theirs / f"labels{number}.npy"))
        ids, others = np.load(ours / "ids.npy"), np.load(theirs / f"ids{number}.npy")
        assert ids.shape == others.shape and ids.max() > 20
        np.testing.assert_array_equal(ids, others)


@pytest.mark.parametrize("name", ["scan", "product", "pandas"])
def test_a_job_is_measured_without_its_imports(name: str, text: Path, tmp_path: Path) -> None:
    measured = run_job(name, str(text), str(tmp_path))
    assert 0 < sum(measured["parts"].values()) <= measured["seconds"] or name == "scan"
    assert measured["cores"] > 0 and measured["peak_rss_mib"] > 50


def test_figures_are_ratios_of_the_medians_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {
        "scan": [1.0, 3.0, 2.0],
        "product": [10.0, 30.0, 20.0],
        "pandas": [80.0, 100.0, 60.0],
        "fuxictr": [200.0],
    }
    done: list[str] = []

    def alone(function: object, job: str, file: str, folder: str) -> dict[str, object]:
        assert Path(file).exists() and Path(folder).is_dir()
        done.append(job)
        took = seconds[job][done.count(job) - 1]
        return {"seconds": took, "cores": 1.5, "parts": {}, "peak_rss_mib": 100.0 + done.count(job)}

    monkeypatch.setattr(encode, "alone", alone)
    results = encode.measure(50, rounds=3, fuxictr=True)
    assert done == ["scan", "product", "pandas", "fuxictr", *["scan", "product", "pandas"] * 2]
    found = {row["job"]: row for row in results}
    assert found["product"]["seconds"] == 20 and found["product"]["rows_per_second"] == 2.5
    assert found["product"]["times_limit"] == 10 and found["product"]["times_pandas"] == 4
    assert found["fuxictr"]["times_pandas"] == 0.4 and found["product"]["peak_rss_mib"] == 103
    large = [{**found["product"], "rows": rows, "peak_rss_mib": rows / 1e4} for rows in (2_000_000, 8_000_000)]
    gzipped = {**found["product"], "gz": True, "times_pandas": 1.0}
    targets = encode.targets([*large, gzipped])
    assert [(target["reached"], target["met"]) for target in targets] == [(4.0, True), (4.0, True), (4.0, False)]
    text = encode.table({"results": [*results, gzipped]})
    assert "| 50 | product | 20 | 1.5 | 2.5 | 103 | 10 | 4 |" in text and "| product, gzipped |" in text
