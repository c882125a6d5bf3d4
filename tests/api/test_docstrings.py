"""What the Python reference shows of the library: a name without a docstring would be missing there."""

import functools
import inspect
import re
from typing import Any

import pytest

from pipeline import api, compress

NAMES = sorted({*api.__all__, *compress.__all__} - {"PADDING"})  # a number, which the module's docstring explains


def named(name: str) -> Any:
    return getattr(api if hasattr(api, name) else compress, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    text = vars(named(name)).get("__doc__") if inspect.isclass(named(name)) else named(name).__doc__
    assert text and not text.startswith(f"{name}(")  # which a dataclass writes itself


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isclass(named(name))])
def test_every_method_and_property_is_described(name: str) -> None:
    of = named(name)
    kinds = (property, functools.cached_property, classmethod, staticmethod)
    for member, value in vars(of).items():
        if member.startswith("_") or not (inspect.isfunction(value) or isinstance(value, kinds)):
            continue
        inherited = any(hasattr(base, member) for base in of.__mro__[1:])
        assert inherited or value.__doc__ or re.search(rf"^ +{member}: ", of.__doc__, re.MULTILINE), member
