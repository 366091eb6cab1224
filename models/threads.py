"""One thread at a time: Pyro keeps its handlers and parameters, and torch its generator and flags, once for all threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps out other threads that call this; the thread inside may call it again."""
    with _LOCK.current:
        yield


class _Lock:
    def __init__(self) -> None:
        self.current = threading.RLock()

    def renew(self) -> None:
        self.current = threading.RLock()


_LOCK = _Lock()
# A child process has only the thread that forked it: a lock that another thread held would never be released.
os.register_at_fork(after_in_child=_LOCK.renew)
