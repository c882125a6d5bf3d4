import pytest

from pipeline.plug import check_options, names, plug


def test_a_name_with_dashes_finds_the_file_with_underscores():
    assert plug("datasets", "movielens-1m").__name__ == "pipeline.datasets.movielens_1m"


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match=r"no 'nope' in pipeline/datasets; there are avazu, criteo, "):
        plug("datasets", "nope")


@pytest.mark.parametrize("name", ["__init__", "../schema", ""])
def test_only_plugs_are_found(name):
    with pytest.raises(ValueError, match="in pipeline/datasets"):
        plug("datasets", name)


def test_every_data_set_has_read():
    for name in names("datasets"):
        assert callable(plug("datasets", name).read)


def some(path, *, label, genres="bag"):
    return path, label, genres


def test_options_are_those_of_the_signature():
    check_options(some, {"label": "y", "genres": "joined"}, "here")
    with pytest.raises(ValueError, match="here: no option 'genre'; valid are label, genres"):
        check_options(some, {"label": "y", "genre": "bag"}, "here")
    with pytest.raises(ValueError, match="here: option 'label' must be given"):
        check_options(some, {}, "here")
    with pytest.raises(ValueError, match="no option 'path'"):
        check_options(some, {"path": "x", "label": "y"}, "here")
