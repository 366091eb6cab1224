"""Every test starts from the same global state and must leave it as it was."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch

import guides
import inference
import models

CHECKOUT = Path(__file__).resolve().parents[1]
for package in (models, guides, inference):
    assert Path(package.__file__).resolve().parents[1] == CHECKOUT, f"{package.__name__} is imported from {package.__file__}"

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_state():
    pyro.clear_param_store()
    pyro.enable_validation(True)
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        yield
    assert torch.get_default_dtype() == torch.float32
    assert pyro.distributions.is_validation_enabled()
