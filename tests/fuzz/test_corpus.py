"""Damage that a command once did not notice, or did not name in one line."""

import subprocess
import sys

from tests.project import ROOT


def test_what_failed_once_is_refused_in_one_line_or_harmless() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--corpus"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all |" in done.stdout
