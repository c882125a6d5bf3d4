"""A source says which fields it has."""

import pytest

from pipeline.sources.source import BadData, Source


def test_fields_have_known_kinds_and_free_names():
    with pytest.raises(BadData, match="kind of field 'age' must be one of categorical, numeric, bag, got 'number'"):
        Source({"age": "number"}, [], "the log")
    with pytest.raises(BadData, match="no field may have the name 'time'; rename it"):
        Source({"time": "categorical"}, [], "the log")
    with pytest.raises(BadData, match="there is no field"):
        Source({}, [], "the log")
