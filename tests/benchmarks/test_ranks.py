"""The section on several processes: both kinds of steps run, and its table says what is exchanged."""

from pathlib import Path

import pytest

from benchmarks import ranks as section
from benchmarks.models import KINDS
from pipeline.data.schema import Field, Schema
from pipeline.training import ranks

SCHEMA = Schema((Field("a", 7), Field("b", 5), Field("c", 3)))


def measured() -> None:
    with ranks.together(measured, 2, "--processes"):
        for kind in KINDS:
            found = section.measure(kind, SCHEMA, 64, rounds=2)
            if found:
                Path(f"{kind}.md").write_text(section.table(found))


@pytest.mark.usefixtures("forks")
def test_steps_of_both_kinds_are_timed_and_their_exchanges_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ranks.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    measured()
    for kind in KINDS:
        text = (tmp_path / f"{kind}.md").read_text()
        assert "| one process |" in text and "| 2 processes |" in text
        # vectors, first-order weights, dense weights, two BatchNorms forward and backward, and the loss
        assert "8 exchanges of " in text
