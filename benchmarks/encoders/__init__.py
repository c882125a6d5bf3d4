"""Several ways to encode text of Criteo's shape as arrays of ids.

Each module has a function ``prepare(file, folder)``, which does the work that is not timed and returns the job. The job
writes to the folder, and returns the seconds of its parts, by name. Each job runs in a process of its own and imports
only what it needs, so the measured memory is that of the job.
"""

from __future__ import annotations

from collections.abc import Callable

Job = Callable[[], dict[str, float]]

NUMBERS = [f"I{i}" for i in range(1, 14)]
HASHES = [f"C{i}" for i in range(1, 27)]
SHARES = {"train": 0.7, "arch": 0.1, "val": 0.1, "test": 0.1}
MIN_COUNT = 10
