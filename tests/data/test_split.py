"""Rows on disk: several parts as one, and files that are refused by their name."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.split import Split


def written(folder: Path, part: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    (folder / part).mkdir()
    ids = np.arange(2 * start, 2 * stop, dtype=np.int32).reshape(-1, 2)
    labels = (np.arange(start, stop) % 3 == 0).astype(np.uint8)
    np.save(folder / part / "ids.npy", ids)
    np.save(folder / part / "labels.npy", labels)
    return ids, labels


def test_parts_are_mapped_one_after_the_other_and_read_as_one(tmp_path: Path) -> None:
    arrays = [written(tmp_path, "train", 0, 5), written(tmp_path, "arch", 5, 9)]
    ids, labels = (np.concatenate(each) for each in zip(*arrays, strict=True))
    split = Split.load(tmp_path, "train", "arch")
    assert all(isinstance(array, np.memmap) for array in (*split.ids, *split.labels))
    assert len(split) == 9 and split.all_labels().tolist() == labels.tolist()
    for start, stop in ((0, 9), (0, 5), (3, 7), (5, 9), (6, 8), (4, 4), (7, 100)):
        some, answers = split.slice(start, stop)
        assert some.tolist() == ids[start:stop].tolist() and answers.tolist() == labels[start:stop].tolist()
    assert split.head(7).slice(0, 9)[0].tolist() == ids[:7].tolist() and len(split.head(7)) == 7


def test_arrays_that_are_not_a_whole_part_are_refused_by_their_file(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    arrays = {"ids": np.zeros((5, 2), np.int32), "labels": np.zeros(5, np.uint8)}
    for name in arrays:
        for wrong, message in (
            (arrays[name][:4], r"train: has \d rows in ids.npy and \d in labels.npy; delete it and run `dvc repro`"),
            (arrays[name][..., None], rf"{name}.npy: must have \d dimensions, got shape \(5, .*\); delete it"),
        ):
            for key, array in {**arrays, name: wrong}.items():
                np.save(tmp_path / "train" / f"{key}.npy", array)
            with pytest.raises(ValueError, match=message):
                Split.load(tmp_path, "train")
        np.save(tmp_path / "train" / f"{name}.npy", arrays[name])
        (tmp_path / "train" / f"{name}.npy").write_bytes((tmp_path / "train" / f"{name}.npy").read_bytes()[:-1])
        with pytest.raises(ValueError, match=rf"{name}.npy: is not a whole .npy file \(.*\); delete it"):
            Split.load(tmp_path, "train")
        np.save(tmp_path / "train" / f"{name}.npy", arrays[name])


def test_a_share_of_the_rows_is_every_kth_row() -> None:
    ids, labels = np.arange(20, dtype=np.int32).reshape(10, 2), np.arange(10, dtype=np.uint8) % 2
    thin = Split((ids,), (labels,)).thinned(0.25)
    assert thin.ids[0].tolist() == ids[[0, 4, 8]].tolist() and thin.labels[0].tolist() == labels[[0, 4, 8]].tolist()
    for share in (0.3, 0, 2):
        with pytest.raises(ValueError, match="must be 1/k"):
            Split((ids,), (labels,)).thinned(share)
