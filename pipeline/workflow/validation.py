"""Checks of values that a person wrote; errors say in one line what is wrong and what is valid."""

from __future__ import annotations

import datetime
import difflib
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Layers = Annotated[int, Field(ge=1, le=100)]  # of a model
Rate = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
AsTuple = Field(strict=False)  # ``Annotated[tuple[Count, ...], AsTuple]`` converts a list to a tuple


class Section(BaseModel):
    """A mapping in a file that a person edits: immutable, without unknown keys, and without conversion of types.

    The text below an attribute says what it means; see `pipeline.workflow.reference`.
    """

    model_config = ConfigDict(**STRICT, use_attribute_docstrings=True)

    def __getattr__(self, name: str) -> Any:
        if name in type(self).model_fields:  # left out by `pipeline.workflow.params.Params.only`
            raise ValueError(
                f"this stage may not read {name!r} of {type(self).__name__}: dvc.yaml does not declare it; "
                "add it to the stage's params there"
            )
        return super().__getattr__(name)  # type: ignore[misc]


def _budget(value: int | float) -> int | float:
    if (type(value) is int and value > 1) or (type(value) is float and 0 < value <= 1):
        return value
    raise ValueError(
        "must be a whole number of bytes above 1, or a share of the full tables' bytes with a decimal point, "
        f"above 0.0 and up to 1.0, got {value!r}"
    )


Budget = Annotated[int | float, AfterValidator(_budget)]  # see `pipeline.allocation.budget.in_bytes`

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], value: Any, place: str) -> M:
    """The value as an instance of a pydantic model.

    Args:
        model: class of the result.
        value: that the user wrote.
        place: of the value, e.g. ``"params.yaml"``.

    Raises:
        ValueError: in one line, naming every wrong key, what is valid, and its value.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ValueError(explained(error, model, value, place)) from error


def explained(error: ValidationError, model: type[BaseModel], value: Any, place: str) -> str:
    """A validation error of pydantic as one line in the style of this project."""
    # pydantic reports each member of a union separately; their sentences are equal.
    sentences = dict.fromkeys(_sentence(details, model, value) for details in error.errors())
    text = "; ".join(sentences)
    return f"{place} {text}" if text.startswith("must ") else f"{place}: {text}"


def _sentence(details: Any, model: type[BaseModel], value: Any) -> str:
    """One entry of ``ValidationError.errors()`` as a sentence."""
    hint: Any = model
    at = ""
    loc = list(details["loc"])
    missing = details["type"] == "missing"
    if details["type"] in ("extra_forbidden", "missing"):
        *loc, key = loc
    for step in loc:
        inner = _inner(hint, value, step)
        if inner is None:  # the step names a member of a union
            break
        hint, value = inner
        at += f"[{step}]" if isinstance(step, int) else f".{step}" if at else str(step)
    inside = f"{at}: " if at else ""
    if missing:
        return f"{inside}{key!r} is missing"
    if details["type"] == "extra_forbidden":
        valid = list(get_type_hints(_model(hint)))
        return f"{inside}there is no {key!r}{suggestion(key, valid)}; valid are {', '.join(valid) or 'none'}"
    reason = (details.get("ctx") or {}).get("error")
    if isinstance(reason, ValueError):  # raised by a validator of this project; its text is already a sentence
        return f"{at} {reason}" if at and str(reason).startswith("must ") else f"{inside}{reason}"
    quoted = isinstance(value, str) and "number" in words(hint) and _is_number(value)
    remedy = "; write it without quotes" if quoted else ""
    if "text" in words(hint) and isinstance(value, bool | int | float | datetime.date):
        remedy = "; write it in quotes"
    return f"{at} must be {words(hint)}, got {shown(value)}{remedy}".lstrip()


def _inner(hint: Any, value: Any, step: Any) -> tuple[Any, Any] | None:
    """The type hint and the value one step further in; None if there is no such step."""
    plain = _plain(hint)
    if get_origin(plain) in (Union, UnionType):
        inner = [pair for member in get_args(plain) if (pair := _inner(member, value, step)) is not None]
        return inner[0] if inner else None
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        hints = get_type_hints(plain, include_extras=True)
        return (hints[step], value.get(step)) if step in hints and isinstance(value, Mapping) else None
    if _is_list(plain) and isinstance(step, int) and isinstance(value, list | tuple):
        return get_args(plain)[0], value[step]
    if _is_mapping(plain) and isinstance(value, Mapping) and step in value:
        return get_args(plain)[1], value[step]
    return None


def _model(hint: Any) -> Any:
    """The model that a hint names, which may be one of a union."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
    models = [_plain(member) for member in members]
    return next(model for model in models if isinstance(model, type) and issubclass(model, BaseModel))


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_list(hint: Any) -> bool:
    return get_origin(hint) in (Sequence, tuple, list)


def _is_mapping(hint: Any) -> bool:
    return get_origin(hint) in (Mapping, dict)


def words(hint: Any, many: bool = False) -> str:
    """The valid values of a type in words: for ``Count``, "a whole number of at least 1".

    Args:
        hint: the type.
        many: whether to use the plural, e.g. "whole numbers of at least 1".
    """
    if get_origin(hint) is Annotated:
        bounds = [bound for extra in get_args(hint)[1:] for bound in _bounds(extra)]
        if _plain(hint) == int | float:
            return "a whole number of bytes above 1, or a share of the full tables' bytes from above 0.0 to 1.0"
        return words(_plain(hint), many) + "".join(bounds)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(dict.fromkeys(words(member, many) for member in get_args(hint)))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if _is_list(hint):
        return f"{'lists' if many else 'a list'} of {words(get_args(hint)[0], many=True)}"
    if _is_mapping(hint):
        return f"{'mappings' if many else 'a mapping'} of names to {words(get_args(hint)[1], many=True)}"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return f"a mapping with the keys {', '.join(get_type_hints(hint))}"
    singular, plural = {
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        str: ("a text", "texts"),
        bool: ("true or false", "true or false"),
        NoneType: ("null", "null"),
    }.get(hint, ("a value", "values"))
    return plural if many else singular


def _bounds(extra: Any) -> list[str]:
    """The bounds of an annotation in words, e.g. [" of at least 0", " and below 1"]."""
    texts = {"ge": " of at least {}", "gt": " above {}", "le": " of at most {}", "lt": " below {}"}
    bounds = []
    for metadata in getattr(extra, "metadata", []):
        for name, text in texts.items():
            if hasattr(metadata, name):
                bounds.append(text.format(getattr(metadata, name)))
    return [bounds[0], *(f" and{text.replace(' of', '')}" for text in bounds[1:])] if bounds else []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def shown(value: Any) -> str:
    """A value as YAML writes it (null, true, false); otherwise its ``repr``."""
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))


def suggestion(name: object, valid: Iterable[str]) -> str:
    """The text " (did you mean 'x'?)" if a valid name is close to this one, else an empty text."""
    near = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.7)
    return f" (did you mean {near[0]!r}?)" if near else ""


def repeated(names: Iterable[str]) -> list[str]:
    """Sorted names that occur more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function, by name."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def checked_options(takers: Sequence[Callable[..., Any]], given: Any, place: str) -> dict[str, Any]:
    """Options that a user wrote, checked against the keyword-only parameters of functions.

    Args:
        takers: functions or classes. Their keyword-only parameters are the valid options, and the annotations say
            which values are valid. A parameter without a default is required.
        given: the mapping of options that the user wrote.
        place: of the mapping, e.g. ``"params.yaml: dataset.options"``.

    Returns:
        The given options; mappings become instances of a `Section` where the annotation is one.

    Raises:
        ValueError: naming every unknown, missing or wrong option, and the valid ones.
    """
    fields: dict[str, Any] = {}
    for taker in takers:
        hints = get_type_hints(taker.__init__ if isinstance(taker, type) else taker, include_extras=True)  # type: ignore[misc]
        for name, parameter in keywords(taker).items():
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (hints.get(name, Any), default)
    model: type[BaseModel] = create_model("Options", __config__=STRICT, **fields)
    if not isinstance(given, Mapping):
        raise ValueError(f"{place} must be a mapping of names to values, got {shown(given)}")
    options = validated(model, dict(given), place)
    return {name: getattr(options, name) for name in given}
