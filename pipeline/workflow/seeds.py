"""Seeds, and other lists of values of which none may come twice."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from pipeline.workflow.validation import AsTuple

T = TypeVar("T")


def distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    """The values, if there are some and none comes twice.

    Raises:
        ValueError: otherwise.
    """
    if not values or len(set(values)) < len(values):
        what = "value" if values and isinstance(values[0], str) else "number"
        raise ValueError(f"must be at least one {what}, and no {what} twice, got {list(values)}")
    return values


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # as Optuna takes it
Seeds = Annotated[tuple[Seed, ...], AsTuple, AfterValidator(distinct)]
