"""The planted log has the shape and the truth that it claims, and a run at scale continues where it was killed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import criteo_planted, scale, scale_pieces
from benchmarks.alone import alone
from benchmarks.scale_pieces import Settings
from pipeline.data.encoded import Encoded
from pipeline.experiment import saved
from pipeline.sources.source import LABEL, ORACLE
from tests.project import ROOT

ROWS = 200_000


@pytest.fixture(scope="module")
def world() -> criteo_planted.World:
    return criteo_planted.World(0)


@pytest.fixture(scope="module")
def log(world: criteo_planted.World) -> pa.Table:
    return pa.Table.from_batches(world.batches(ROWS))


def test_a_quarter_is_clicked_and_the_best_possible_auc_is_high_but_not_perfect(log: pa.Table) -> None:
    labels, chance = log[LABEL].to_numpy(), log[ORACLE].to_numpy()
    assert abs(labels.mean() - criteo_planted.CLICK_RATE) < 0.006
    assert abs(labels.mean() - chance.mean()) < 5 * (0.25 / ROWS) ** 0.5  # the probabilities are those of the labels
    for low, high in ((0.0, 0.1), (0.4, 0.6), (0.9, 1.0)):
        some = (chance >= low) & (chance < high)
        assert abs(labels[some].mean() - chance[some].mean()) < 4 * (0.25 / some.sum()) ** 0.5
    assert 0.8 < roc_auc_score(labels, chance) < 0.86


def test_the_log_has_the_columns_and_the_popularity_of_criteo(log: pa.Table, tmp_path: Path) -> None:
    assert log.schema.names == [*criteo_planted.NAMES, LABEL, ORACLE] and len(log) == ROWS
    assert 0.42 < log["I1"].null_count / ROWS < 0.48 and log["I2"].null_count == 0
    pq.write_table(log, tmp_path / "table.parquet")
    found = scale_pieces.popularity(tmp_path / "table.parquet")
    assert 400_000 < found["values"] < 500_000
    assert 0.25 < found["twice"] < 0.33 and 0.05 < found["ten_times"] < 0.09
    assert found["of_ten_times"] > 0.85 and found["half"] < 300 and 0.75 < found["six_fields"] < 0.95


def test_popularity_is_counted_as_by_hand(tmp_path: Path) -> None:
    columns: dict[str, Any] = {name: pa.array([1] * 12) for name in criteo_planted.VALUES}
    columns["C1"] = pa.array([1] * 9 + [2, 2, None])
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    found = scale_pieces.popularity(tmp_path / "table.parquet")
    assert found["values"] == 25 + 3 and found["half"] == 13  # 13 of 25 values with 12 occurrences each
    assert found["twice"] == 27 / 28 and found["ten_times"] == 25 / 28 and found["of_ten_times"] == 25 / 26
    assert found["six_fields"] == 8 / 28


def test_a_seed_gives_the_same_log_and_a_longer_log_begins_with_it(log: pa.Table) -> None:
    again = pa.Table.from_batches(criteo_planted.World(0).batches(1000))
    assert again.equals(log.slice(0, 1000).combine_chunks())
    other = pa.Table.from_batches(criteo_planted.World(1).batches(1000))
    assert not other["C1"].equals(again["C1"]) and other[ORACLE][0] != again[ORACLE][0]


def test_the_probabilities_are_those_of_the_formula(world: criteo_planted.World, log: pa.Table) -> None:
    """A plain reference: one row after the other, one pair after the other."""
    values, columns = world.draw(criteo_planted.CHUNK_ROWS, np.random.default_rng([0, 2, 0]))
    assert columns["C3"].equals(log["C3"].combine_chunks().slice(0, criteo_planted.CHUNK_ROWS))
    for row in range(20):
        weights, vectors = {}, {}
        for name in criteo_planted.NAMES:
            of_weight, of_vector = world.weights(name, values[name][row : row + 1])
            weights[name], vectors[name] = float(of_weight[0]), of_vector[0].astype(float)
        pairs, used = 0.0, dict.fromkeys(criteo_planted.NAMES, 0)
        for rank, fields in criteo_planted.BLOCKS:
            own = {name: vectors[name][used[name] : used[name] + rank] for name in fields}
            pairs += sum(own[a] @ own[b] for i, a in enumerate(fields) for b in fields[i + 1 :])
            used |= {name: used[name] + rank for name in fields}
        logit = world.bias + world.factor * (sum(weights.values()) + world.of_pairs * pairs)
        assert 1 / (1 + np.exp(-logit)) == pytest.approx(log[ORACLE][row].as_py(), rel=1e-4)
        assert used == criteo_planted.ranks()


def test_vectors_have_the_planted_ranks_and_rare_values_have_weights_like_frequent_ones(
    world: criteo_planted.World,
) -> None:
    assert sum(rank for rank, _ in criteo_planted.BLOCKS) == 16  # D of the full tables
    for name, rank in criteo_planted.ranks().items():
        vectors = world.weights(name, np.arange(2000))[1]
        assert vectors.shape == (2000, rank)
        assert rank == 0 or np.linalg.matrix_rank(vectors) == rank
    frequent, rare = (world.weights("C3", np.arange(start, start + 20_000))[0] for start in (0, 5_000_000))
    assert abs(frequent.std() / rare.std() - 1) < 0.05 and len(np.unique(rare)) > 0.999 * len(rare)


def here(function: Callable[..., Any], *arguments: str) -> Any:
    """As `benchmarks.alone.alone`, in this process."""
    return json.loads(json.dumps(function(*arguments), allow_nan=False))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all pieces at a tiny size, killed once in between."""
    folder = tmp_path_factory.mktemp("scale")
    Settings(4000, dim=8, batch_size=200, rates=(0.01,), second_rates=(0.001, 0.003)).keep(folder)
    calls = 0

    def killed(function: Callable[..., Any], *arguments: str) -> Any:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return here(function, *arguments)

    with pytest.raises(KeyboardInterrupt):
        scale.run(folder, killed)
    done = {file: file.read_bytes() for file in (folder / "done").iterdir()}
    assert len(done) == 12 and "| full, d = 8 |" in scale.report(folder)
    scale.run(folder, here)
    assert all(file.read_bytes() == kept for file, kept in done.items())
    return folder


def test_a_killed_run_continues_and_all_pieces_are_tested(small: Path) -> None:
    settings = Settings.load(small)
    assert {file.stem for file in (small / "done").iterdir()} == set(scale.jobs(settings))
    scale.run(small, lambda *_: pytest.fail("nothing is left to do"))
    for piece in scale_pieces.pieces(settings.dim):
        done = scale_pieces.result(small, piece.name)
        if "problem" in done:  # at this size, the fixed parts of a coding take more than the smallest shares
            assert piece.share is not None and piece.share <= 0.05
            continue
        assert 0 < done["test"] < 1 and 0 < done["bytes"] < done["model_bytes"] and done["seconds"] > 0
        data = Encoded.load(small / piece.vocabulary)
        if piece.width is not None and piece.method != "int4":
            assert done["bytes"] == 4 * piece.width * data.schema.num_rows
        if piece.share is not None:
            assert done["bytes"] <= piece.share * 4 * settings.dim * data.schema.num_rows
        assert 0 < done["kept"] <= data.schema.num_rows


def test_the_time_of_a_piece_that_was_killed_is_not_known(tmp_path: Path) -> None:
    Settings(1000, dim=8).keep(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/rate-full-0.003.ckpt").touch()
    scale.run(tmp_path, lambda *_: {"seconds": 3.0, "val": 0.5})
    assert scale_pieces.result(tmp_path, "rate-full-0.003")["seconds"] is None
    assert scale_pieces.result(tmp_path, "rate-full-0.006")["seconds"] == 3.0


def test_coded_models_are_made_of_the_full_model(small: Path) -> None:
    settings = Settings.load(small)
    piece = next(piece for piece in scale_pieces.pieces(settings.dim) if piece.method == "coded")
    tried = scale_pieces.experiment(small, piece)
    full = saved.load(small / "full", tried)[0].eval()
    val = tried.data.split("val")
    judged = tried.task.measure(tried.task.predict(full, val), val)["auc"]
    assert judged == pytest.approx(scale_pieces.result(small, "full-all-d-8")["val"], abs=1e-6)
    coded, allocation = scale_pieces.first_training(tried, piece, small, small / "work/again.ckpt")
    test, done = tried.data.split("test"), scale_pieces.result(small, piece.name)
    judged = tried.task.measure(tried.task.predict(coded, test), test)["auc"]
    assert allocation is None and judged == pytest.approx(done["before"], abs=1e-6)


def test_the_rate_of_the_second_training_is_the_best_on_val_or_none(small: Path) -> None:
    settings, seen = Settings.load(small), set()
    piece = next(piece for piece in scale_pieces.pieces(settings.dim) if piece.name == "uniform-all-d-4")
    tried = scale_pieces.experiment(small, piece)
    model, _ = scale_pieces.first_training(tried, piece, small, small / "work/again.ckpt")
    val = tried.data.split("val")
    before = tried.task.measure(tried.task.predict(model, val), val)["auc"]
    for rates in ([], [0.001], [0.003], [0.001, 0.003], [1e-12]):
        _, judged, rate = scale_pieces.trained_again(tried, model, rates, small / "work/again.ckpt")
        assert judged >= before and (rate is None) == (judged == before) and rate in (None, *rates)
        seen.add(judged)
    assert max(seen) == scale_pieces.trained_again(tried, model, [0.003, 0.001], small / "work/again.ckpt")[1]
    done = scale_pieces.result(small, piece.name)
    assert done["val"] == pytest.approx(max(seen), abs=1e-6) and done["second"] in (None, 0.001, 0.003)


def test_the_factors_of_each_ratio_multiply_to_it(small: Path) -> None:
    report = scale.report(small)
    values = scale_pieces.result(small, "log")["values"]
    rows = [line.split(" | ") for line in report.split("| model | R |")[1].splitlines()[2:]]
    assert len(rows) > 10
    for piece, row in zip(scale.tested(small), rows, strict=True):
        ratio, *factors = (float(cell.strip(" |").replace(",", "")) for cell in row[1:])
        size = scale_pieces.result(small, piece.name)["bytes"]
        assert ratio == pytest.approx(values * 8 * 4 / size, abs=0.5)
        assert np.prod(factors) == pytest.approx(values * 8 * 4 / size, rel=0.03)  # of rounded factors


def test_other_settings_need_another_folder(small: Path) -> None:
    with pytest.raises(ValueError, match="has a run with other settings"):
        Settings(5000).keep(small)


def test_the_program_shows_what_is_finished(small: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "--folder", str(small), "--show"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.strip() == scale.report(small) == (small / "table.md").read_text().strip()


def test_a_job_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    Settings(1000, dim=8).keep(tmp_path)
    done = alone(scale_pieces.work, str(tmp_path), "log")
    assert done["seconds"] > 0 and done["peak_mib"] > 0 and done["values"] > 1000
    assert (tmp_path / "raw/table.parquet").exists()
