"""All lines of the matrix, by name."""

from __future__ import annotations

from tests.faults import checkouts, disks, kills, stores, study, together
from tests.faults.line import Line

LINES: dict[str, Line] = {
    **kills.lines(),
    **disks.lines(),
    **stores.lines(),
    **together.lines(),
    **checkouts.lines(),
    **study.lines(),
}
