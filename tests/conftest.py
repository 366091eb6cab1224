"""Every test starts from the same global state and must restore it."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pytest
import torch

import guides
import inference
import inference.engine.auto
import models

CHECKOUT = Path(__file__).resolve().parents[1]
for package in (models, guides, inference):
    assert Path(package.__file__).resolve().parents[1] == CHECKOUT, f"{package.__name__} is imported from {package.__file__}"

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch, tmp_path_factory):
    """Resets Pyro's global state, gives the session a cache of its own, and disables background compilation."""
    monkeypatch.setenv("TAUT_CACHE", str(tmp_path_factory.getbasetemp() / "compiled"))
    monkeypatch.setattr(inference.engine.auto, "COMPILATION", math.inf)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        yield
    assert torch.get_default_dtype() == torch.float32
    assert pyro.distributions.is_validation_enabled()


KNOWN_FAULTS = Path(__file__).parent / "known_faults.txt"
"""One test a line. Each is a fault that is known and not mended yet: its test is expected to fail."""


def pytest_collection_modifyitems(items):
    known = set(KNOWN_FAULTS.read_text().splitlines()) if KNOWN_FAULTS.exists() else set()
    for item in items:
        if item.nodeid in known:
            item.add_marker(pytest.mark.xfail(reason="a known fault, named in known_faults.txt"))
