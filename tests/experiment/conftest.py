from pathlib import Path

import pytest

from tests.experiment.small import write_rows


@pytest.fixture(scope="session")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of encoded rows of `tests.experiment.small`: only read from it."""
    return write_rows(tmp_path_factory.mktemp("encoded"))
