"""Addresses of servers that tests start on this machine."""

from __future__ import annotations

import socket
import time

import requests


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def answers(address: str, seconds: float = 120) -> bool:
    """Whether something answers at an address before the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if requests.get(address, timeout=1).ok:
                return True
        except (requests.ConnectionError, requests.Timeout):
            pass
        time.sleep(0.1)
    return False
