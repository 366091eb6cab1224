"""Long runs as truth: right, refused where they have not converged, and kept on disk."""

from importlib import import_module

import pytest
import torch
from problems import demo

from inference import NotConvergedError, reference
from models import LinearRegression, NormalGamma, Ring

pytestmark = pytest.mark.slow

module = import_module("inference.reference")
SHORT = {"chains": 2, "draws": 600, "warmup": 200}


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [LinearRegression, NormalGamma])
def test_agrees_with_exact_posteriors(model_class):
    model, x = demo(model_class)
    run = reference(model, x, **SHORT)
    exact = model.posterior(x)
    flat = run.draws.flatten(0, 1)
    error = (flat.mean(0) - exact.mean) / (flat.std(0) / run.ess**0.5)
    assert error.abs().max() < 5
    assert run.rhat.max() <= 1.01
    assert run.draws.shape == (2, 600, len(exact.mean))
    assert "chains=2" in run.about["command"]
    assert set(run.about["versions"]) == {"torch", "pyro-ppl", "arviz"}


def test_the_cache_is_used_made_anew_if_torn_and_keyed_by_all_that_matters(tmp_path, monkeypatch):
    model, x = demo(LinearRegression)
    posterior = model.posterior(x)
    monkeypatch.setattr(module, "_chain", lambda *_, draws, **__: (posterior.sample((draws,)), 0))
    first = reference(model, x, **SHORT, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(module, "_chain", _refused)
    again = reference(model, x, **SHORT, cache=tmp_path)
    assert torch.equal(first.draws, again.draws)
    assert again.about == first.about
    for change in (
        lambda: reference(model, x + 1, **SHORT, cache=tmp_path),
        lambda: reference(model, x, **{**SHORT, "draws": 601}, cache=tmp_path),
        lambda: reference(LinearRegression(model.covariates, prior_scale=2.0, noise_scale=0.8), x, **SHORT, cache=tmp_path),
        lambda: (file.write_bytes(file.read_bytes()[:200]), reference(model, x, **SHORT, cache=tmp_path)),
    ):
        with pytest.raises(AssertionError, match="run anew"):
            change()


def _refused(*_, **__):
    raise AssertionError("run anew")


def test_chains_that_disagree_are_no_reference():
    model, x = demo(Ring)
    with pytest.raises(NotConvergedError, match=r"h\[[12]\] has R̂ ="):
        reference(model, x, chains=2, draws=100, warmup=50)


def test_bad_input():
    model, x = demo(LinearRegression)
    with pytest.raises(ValueError, match="chains must be at least 2"):
        reference(model, x, chains=1)
    x[3] = torch.nan
    with pytest.raises(ValueError, match="row 3"):
        reference(model, x)
