"""The pieces of work of `benchmarks.scale`; each runs in a process of its own, and reads what earlier ones left."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import criteo_planted
from benchmarks.alone import peak_mib
from pipeline.allocation.allocation import Allocation
from pipeline.allocation.budget import TooFewBytes
from pipeline.data.encoded import Encoded
from pipeline.embeddings.coded import CodedTables
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import full_tables
from pipeline.embeddings.mixed_precision import PackedPrecision
from pipeline.encoding.encode import encode
from pipeline.experiment import saved
from pipeline.experiment.code import Coder
from pipeline.experiment.derive import derive, evidence
from pipeline.experiment.experiment import Experiment
from pipeline.experiment.find import find
from pipeline.experiment.finetune import finetune
from pipeline.experiment.found import Found
from pipeline.experiment.measure import measure
from pipeline.experiment.train import train
from pipeline.methods.frequent_int4 import FrequentRows
from pipeline.metrics.difference import encoded, sketch
from pipeline.models.dense import round_dense
from pipeline.models.model import Model
from pipeline.sources.raw import write_raw
from pipeline.workflow.outputs import read_json, whole, write_json
from pipeline.workflow.params import Architecture, Encode, Finetune, Method, Params, Plug, Retrain, Search, Split

MIN_COUNTS = {"all": 2, "frequent": 10}  # vocabulary: occurrences in training that a value needs for an id
SHARES = (0.1, 0.05, 0.025, 0.01, 0.005)  # of the bytes of the full tables of vocabulary "all"
OPTIONS: Mapping[str, Mapping[str, Any]] = {"mpe": {"value": "frequency"}}
TUNED = ("full", "mpe", "frequent_int4")  # methods whose first trainings differ: rounding comes after that of int4
TUNING_SHARE = 0.025  # at which the learning rates of methods with a budget are chosen
DENSE_BITS = 8  # of the weights of the MLP in all models that are rounded or coded
CHECKPOINT_SECONDS = 300


@dataclass(frozen=True)
class Settings:
    """What all pieces of a folder have in common.

    Args:
        rows: of the log.
        seed: of the log, of the weights and of the order of the rows.
        dim: D of the full tables.
        batch_size: of all trainings.
        backbone: a file of pipeline/backbones.
        rates: learning rates of the first training to choose from.
        second_rates: likewise, of the second training of each model.
    """

    rows: int
    seed: int = 0
    dim: int = 16
    batch_size: int = 2000
    backbone: str = "ipnn"
    rates: tuple[float, ...] = (0.003, 0.006, 0.012, 0.024)
    second_rates: tuple[float, ...] = (0.0003, 0.001, 0.003)

    @classmethod
    def load(cls, folder: Path) -> Settings:
        record: dict[str, Any] = read_json(folder / "settings.json")
        rates = {name: tuple(record[name]) for name in ("rates", "second_rates")}
        return cls(**{**record, **rates})

    def keep(self, folder: Path) -> None:
        """Write the settings to a new folder.

        Raises:
            ValueError: if the folder has others.
        """
        if (folder / "settings.json").exists() and Settings.load(folder) != self:
            raise ValueError(f"{folder} has a run with other settings: {Settings.load(folder)}; choose another folder")
        write_json(folder / "settings.json", asdict(self))


@dataclass(frozen=True)
class Piece:
    """A model to train and to test.

    Args:
        method: its name.
        vocabulary: of `MIN_COUNTS`.
        width: of its tables; None if it follows from ``share``.
        share: of the bytes of the full tables.
    """

    method: str
    vocabulary: str = "all"
    width: int | None = None
    share: float | None = None

    @property
    def name(self) -> str:
        """Also of the file of the result."""
        size = f"d-{self.width}" if self.share is None else f"share-{self.share:g}"
        return f"{self.method}-{self.vocabulary}-{size}"


def pieces(dim: int) -> list[Piece]:
    """All models of the table, in order; the full model comes first, and coded models are made of it."""
    half, quarter, eighth = dim // 2, dim // 4, dim // 8
    listed = [Piece("full", width=dim)]
    listed += [Piece("uniform", width=width) for width in (half, quarter)]
    listed += [Piece("uniform", "frequent", width) for width in (dim, half, quarter, eighth)]
    listed += [Piece("int4", vocabulary, width) for vocabulary in MIN_COUNTS for width in (dim, half, quarter)]
    listed += [Piece(method, share=share) for share in SHARES for method in ("coded", "frequent_int4", "mpe")]
    return listed


# --- what a process of its own does; all of these functions take the folder first


def make_log(folder: str) -> dict[str, Any]:
    """Write the raw table, and return facts about the popularity of its values; see `popularity`."""
    settings, raw = Settings.load(Path(folder)), Path(folder) / "raw"
    with whole(raw) as draft:
        draft.mkdir()
        record = write_raw(criteo_planted.source(settings.rows, settings.seed), draft / "table.parquet")
        write_json(draft / "raw.json", {"dataset": "criteo_planted", **record})
    return {"click_rate": record["label"]["mean"], **popularity(raw / "table.parquet")}


def popularity(file: Path) -> dict[str, Any]:
    """How the occurrences of the categorical values of a raw table are spread; a missing value is a value, too.

    Returns:
        ``values``, their number; ``twice`` and ``ten_times``, the shares of the values that occur as often;
        ``of_ten_times``, the share of the occurrences that these make; ``half``, the number of most frequent values
        that make half of all occurrences; ``six_fields``, the share of the values that the six largest fields have.
    """
    counts = []
    for name in criteo_planted.VALUES:
        numbers = pq.read_table(file, columns=[name])[name].combine_chunks().fill_null(0).to_numpy()
        counted = np.bincount(numbers)
        counts.append(counted[counted > 0])
    joint = np.sort(np.concatenate(counts))[::-1]
    fields = sorted(len(of_field) for of_field in counts)
    return {
        "values": len(joint),
        "twice": float((joint >= 2).mean()),
        "ten_times": float((joint >= 10).mean()),
        "of_ten_times": float(joint[joint >= 10].sum() / joint.sum()),
        "half": int(np.searchsorted(np.cumsum(joint), joint.sum() / 2)) + 1,
        "six_fields": sum(fields[-6:]) / len(joint),
    }


def make_encoded(folder: str, vocabulary: str) -> dict[str, Any]:
    """Encode the log with a vocabulary."""
    split = Split(by="random", train=0.8, arch=0.02, val=0.08, test=0.1)
    with whole(Path(folder) / vocabulary) as draft:
        record = encode(Path(folder) / "raw", draft, Encode(split=split, min_count=MIN_COUNTS[vocabulary]))
    data = Encoded.load(Path(folder) / vocabulary)
    best = experiment(Path(folder), Piece("full", vocabulary)).task.ceiling(
        np.load(data.folder / "test/oracle.npy"), data.split("test")
    )
    return {"rows": record["rows"], "ids": data.schema.num_rows, "best_auc": best}


def try_rate(folder: str, method: str, rate: str) -> dict[str, Any]:
    """The AUC on ``val`` of a method after a first training with a learning rate.

    All rows are used: on a part of them, there are fewer steps, and higher rates look better.
    """
    place = Path(folder)
    piece = Piece(method, share=None if method == "full" else TUNING_SHARE)
    tried = experiment(place, piece, float(rate))
    allocation = allocated(tried, piece, find(tried, place / f"work/search-{method}-{rate}"))
    checkpoint = place / f"work/rate-{method}-{rate}.ckpt"
    trained = train(tried, allocation, tried.params.search.seed, checkpoint)
    checkpoint.unlink(missing_ok=True)
    return {"val": trained.validation["auc"]}


def search_mpe(folder: str) -> dict[str, Any]:
    """The search of MPE, on all training rows; its findings stay in the folder."""
    place = Path(folder)
    checkpoints = place / "work/search-mpe.found"
    found = find(experiment(place, Piece("mpe"), chosen_rate(place, "mpe")), checkpoints)
    write_json(place / "mpe.json", found.to_dict())
    shutil.rmtree(checkpoints, ignore_errors=True)
    return {}


def train_and_test(folder: str, name: str) -> dict[str, Any]:
    """Train and test a model.

    Returns:
        ``val`` and ``test``, its AUC; ``before``, that on ``test`` before the second training; ``second``, the learning
        rate of that, None if no rate improved ``val``; ``bytes``; ``model_bytes``; ``kept``, the number of rows with
        bits; and ``sketch`` of the influence of the test rows. If nothing fits the bytes, only ``problem``.
    """
    place = Path(folder)
    settings = Settings.load(place)
    piece = next(piece for piece in pieces(settings.dim) if piece.name == name)
    rate = chosen_rate(place, piece.method if piece.method in TUNED else "full")
    tried, checkpoint = experiment(place, piece, rate), place / f"work/{name}.ckpt"
    try:
        model, allocation = first_training(tried, piece, place, checkpoint)
    except TooFewBytes as error:
        return {"problem": str(error)}
    test = tried.data.split("test")
    before = measure(tried, model, test).metrics["auc"]
    model, validation, second = trained_again(tried, model, settings.second_rates, checkpoint)
    if piece.method == "full":
        saved.save(place / "full", tried, model, allocation, [])
    tested = measure(tried, model, test)
    checkpoint.unlink(missing_ok=True)
    return {
        "val": validation,
        "test": tested.metrics["auc"],
        "before": before,
        "second": second,
        "bytes": tested.cost.bytes,
        "model_bytes": tested.model_bytes,
        "kept": kept_rows(model.embedding, tried.schema.num_rows),
        "sketch": encoded(sketch(tested.influence)),
    }


# --- the parts of these


def experiment(folder: Path, piece: Piece, rate: float = 0.01) -> Experiment:
    """The experiment of a piece.

    Args:
        folder: of the run.
        piece: its method and vocabulary.
        rate: learning rate of the search and of the first training.
    """
    settings = Settings.load(folder)
    training: dict[str, Any] = {"batch_size": settings.batch_size, "epochs": 1, "lr": rate, "weight_decay": 0.0}
    training |= {"checkpoint_seconds": CHECKPOINT_SECONDS}
    rounded = piece.method not in ("full", "uniform")
    retrain = Retrain(
        **training,
        seeds=(settings.seed,),
        patience=None,
        schedule="linear",
        dense_bits=DENSE_BITS if rounded else None,
    )
    sections = {
        "task": Plug(name="ctr"),
        "dim": settings.dim,
        "candidates": {"full": (settings.dim,)},
        "method": Method(name=piece.method, options={piece.method: dict(OPTIONS.get(piece.method, {}))}),
        "backbone": Plug(name=settings.backbone),
        "search": Search(**training, candidates="full", seed=settings.seed, architecture=Architecture()),
        "retrain": retrain,
    }
    return Experiment(
        Params.model_construct(_fields_set=set(sections), **sections), Encoded.load(folder / piece.vocabulary)
    )


def limit(tried: Experiment, piece: Piece) -> int:
    """Bytes of a piece that has a share."""
    assert piece.share is not None
    return int(piece.share * full_tables(tried.schema, tried.dim).bytes)


def allocated(tried: Experiment, piece: Piece, found: Found) -> Allocation:
    """The allocation of a piece.

    Raises:
        TooFewBytes: if none fits its share.
    """
    if piece.share is None:
        width = tried.dim if piece.width is None else piece.width
        return Allocation(piece.method, dict.fromkeys(tried.schema.names, width))
    return derive(tried.method, evidence(found, tried.schema, limit(tried, piece)))[0]


def first_training(tried: Experiment, piece: Piece, place: Path, checkpoint: Path) -> tuple[Model, Allocation | None]:
    """A model in the form that is served, and its allocation. Coded models are made of the full one.

    Raises:
        TooFewBytes: if nothing fits the bytes.
    """
    if piece.method == "coded":
        coded = Coder(tried, saved.load(place / "full", tried)[0].eval()).coded(limit(tried, piece))
        assert isinstance(coded, Model)
        round_dense(coded.backbone, DENSE_BITS)
        return coded, None
    searched, own = piece.method == "mpe", place / "work" / piece.name
    found = Found.load(place / "mpe.json", tried.schema) if searched else find(tried, own)
    allocation = allocated(tried, piece, found)
    trained = train(tried, allocation, tried.params.retrain.seeds[0], checkpoint, title=piece.name)
    assert isinstance(trained.model, Model)
    return trained.model, allocation


def trained_again(
    tried: Experiment, model: Model, rates: Sequence[float], checkpoint: Path
) -> tuple[Model, float, float | None]:
    """The model after a second training with the learning rate that is best on ``val``.

    Args:
        tried: the experiment.
        model: in the form that is served; not changed.
        rates: to try.
        checkpoint: of the first training.

    Returns:
        The model, its AUC on ``val``, and the rate; the model as it was, and None, if no rate improves ``val``.
    """
    val, retrain = tried.data.split("val"), tried.params.retrain
    before = tried.task.measure(tried.task.predict(model, val), val)
    best, most, chosen = model, before["auc"], None
    for rate in rates:
        again = copy.deepcopy(model)
        after = finetune(
            tried,
            again,
            tried.training_rows(),
            retrain.seeds[0],
            checkpoint.with_suffix(f".{rate:g}.finetune"),
            before=before,
            chosen=Finetune(epochs=1, lr=rate),
            settings=retrain,
            title=f"second training, {rate:g}",
        )
        if after["auc"] > most:
            best, most, chosen = again.eval(), after["auc"], rate
    return best, most, chosen


def kept_rows(embedding: FieldEmbedding, rows: int) -> int:
    """Of the ``rows`` of a vocabulary, the number with bits of their own."""
    if isinstance(embedding, CodedTables):
        return sum(int(plan.rows[(plan.bits > 0).any(1)].sum()) for plan in embedding.plans)
    if isinstance(embedding, PackedPrecision):
        return int(embedding.rows[embedding.bits > 0].sum())
    return int(embedding.rows.sum()) if isinstance(embedding, FrequentRows) else rows


def chosen_rate(folder: Path, method: str) -> float:
    """The learning rate of a method with the best AUC on ``val``."""
    rates = Settings.load(folder).rates
    return max(rates, key=lambda rate: float(result(folder, f"rate-{method}-{rate:g}")["val"]))


def result(folder: Path, name: str) -> dict[str, Any]:
    """What a finished piece of the work left."""
    record: dict[str, Any] = read_json(folder / "done" / f"{name}.json")
    return record


# --- what a process of its own is asked for


JOBS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "log": make_log,
    "encoded": make_encoded,
    "rate": try_rate,
    "search": search_mpe,
    "piece": train_and_test,
}


def work(folder: str, job: str, *arguments: str) -> dict[str, Any]:
    """Do a job of `JOBS` in this process; adds its ``seconds`` of a processor and its ``peak_mib`` to the result."""
    done = JOBS[job](folder, *arguments)
    return {**done, "seconds": time.process_time(), "peak_mib": peak_mib()}
