"""How often users click, order and leave, on each page: from the logs of a shop, or as given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.chain.world import DETAIL, ENTRANCE

_DETAIL_CODE = 3
_LEAST, _MOST = 6, 49  # pages of a session in the published data


@dataclass(frozen=True)
class Rates:
    """Mean rates per recommendation. The defaults are those of `measured`, but for the order, which is an assumption.

    Args:
        click: on the entrance page and on the detail page.
        leave: likewise.
        order: orders for each click.

    Raises:
        ValueError: if they are no rates, or leave nothing for skips.
    """

    click: tuple[float, float] = (0.296, 0.572)
    leave: tuple[float, float] = (0.135, 0.084)
    order: float = 0.05

    def __post_init__(self) -> None:
        for page, name in ((ENTRANCE, "entrance"), (DETAIL, "detail")):
            click, leave = self.click[page], self.leave[page]
            if not (click > 0 and leave > 0 and self.order > 0 and click * (1 + self.order) + leave < 1):
                raise ValueError(
                    f"rates on the {name} page must be above 0 and leave something for skips, got {click} for clicks, "
                    f"{self.order} orders for each, and {leave} for leaving"
                )


def measured(file: Path, order: float = Rates.order) -> Rates:
    """The rates in ``sessions.npz`` of the page views that Ozyurt et al. published ("A Deep Markov Model for
    Clickstream Analytics in Online Shopping", WWW 2022).

    Its arrays are ``page``, the code of each view's type of page, 0 to 6, and ``length``, the views of each session. A
    click is a view of a detail page that follows.

    It is assumed that code 3, which is most frequent and comes after itself most often, is the detail page, and that
    all other pages are the entrance page. The authors removed sessions below 6 views, so the rates are those of the 6th
    to 48th views: of the sessions that have these, none is missing. They chose the share of sessions with a purchase,
    so orders cannot be measured.

    Args:
        file: the arrays.
        order: see `Rates`.

    Raises:
        ValueError: naming the file, if it holds no such sessions.
        FileNotFoundError: if there is no such file.
    """
    with np.load(file) as arrays:
        missing = {"page", "length"} - set(arrays.files)
        if missing:
            raise ValueError(
                f"{file}: has no array {sorted(missing)[0]!r}; it must hold the sessions of ClickstreamDMM"
            )
        detail, length = arrays["page"] == _DETAIL_CODE, arrays["length"].astype(np.int64)
    ends = np.cumsum(length)
    if not len(ends) or (length < 1).any() or ends[-1] != len(detail):
        raise ValueError(f"{file}: its lengths sum to {length.sum()}, but there are {len(detail)} views")
    place = np.arange(len(detail)) - np.repeat(ends - length, length) + 1
    last = np.zeros(len(detail), dtype=bool)
    last[ends - 1] = True
    click = np.append(detail[1:], False) & ~last
    seen = (place >= _LEAST) & (place < _MOST)
    pages = [seen & ~detail, seen & detail]
    if not all(page.any() for page in pages):
        raise ValueError(f"{file}: has no 6th views of sessions on both pages")
    of_pages = [(float(click[page].mean()), float(last[page].mean())) for page in pages]
    return Rates((of_pages[0][0], of_pages[1][0]), (of_pages[0][1], of_pages[1][1]), order)
