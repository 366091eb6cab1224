"""Reference draws by NUTS."""

from .long_run import LongRun, NotConvergedError, reference

__all__ = ["LongRun", "NotConvergedError", "reference"]
