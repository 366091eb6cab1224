"""Notices what a program does outside its process, where state may be kept that no search of its objects finds."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["Outside", "watched_outside"]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
_CHANGES = ("os.", "shutil.", "socket.", "subprocess.", "sqlite3.", "mmap.", "urllib.", "fcntl.")
_READS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr", "socket.gethostname")


class Outside:
    """What one thread did outside the process.

    Attributes:
        event: the first file that was opened for writing, process started, connection made and so on; None if there was none.
    """

    def __init__(self) -> None:
        self.event: str | None = None


@contextmanager
def watched_outside() -> Iterator[Outside]:
    """Watches the audit events of this thread inside the context.

    Python keeps an audit hook until it ends. Outside such a context it returns at once.
    """
    _install()
    found = Outside()
    before, _Watching.now = _Watching.now, (threading.get_ident(), found)
    try:
        yield found
    finally:
        _Watching.now = before


class _Watching:
    now: tuple[int, Outside] | None = None


@cache
def _install() -> None:
    sys.addaudithook(_heard)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if _Watching.now is None:
        return
    thread, found = _Watching.now
    if found.event is not None or thread != threading.get_ident():
        return
    if event == "open":
        flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
        if flags & _WRITES:
            found.event = f"opens {args[0]!r} for writing"
    elif event.startswith(_CHANGES) and event not in _READS:
        found.event = f"raises the audit event {event!r}"
