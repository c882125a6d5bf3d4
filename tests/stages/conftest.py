"""Results of all stages, made once."""

import pytest

from tests.project import Project


@pytest.fixture(scope="session")
def spoilable(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of `finished` for tests that put back what they change."""
    return finished.copy(tmp_path_factory.mktemp("spoilable"))
