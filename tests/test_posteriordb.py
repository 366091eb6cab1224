"""posteriordb: both folder layouts, damaged files, and every port against the reference draws."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

from guides import FullRank, Global
from inference import elbo, fit
from inference.diagnostics import stein_check
from inference.programs.log_joint import LogJoint
from models import EightSchools
from models.posteriordb import Garch, LowDimGaussMix, entries, load, problem
from models.posteriordb.problem import ports

DATA = Path(os.environ.get("TAUT_DATA", "")) / "posteriordb"
needs_data = pytest.mark.skipif(not DATA.is_dir() or "TAUT_DATA" not in os.environ, reason="TAUT_DATA names no data folder")
NAME = "eight_schools-eight_schools_centered"


@pytest.fixture
def folder(tmp_path):
    """Our own layout: one folder for each posterior."""
    here = tmp_path / "own" / NAME
    here.mkdir(parents=True)
    (here / "data.json").write_text(json.dumps({"J": 3, "y": [1, 2, 3], "sigma": [1, 1, 2]}))
    names = np.array(["theta[1]", "theta[2]", "theta[3]", "mu", "tau"])
    np.savez(here / "draws.npz", draws=np.random.default_rng(0).random((2, 4, 5), dtype=np.float32), names=names)
    moments = {name: {"mean": 0.5, "sd": 1.0} for name in names}
    (here / "exact.json").write_text(json.dumps({"parameters": moments, "log_evidence_normalised_priors": -3.0}))
    return tmp_path / "own"


@pytest.fixture
def clone(tmp_path):
    """The layout of a posteriordb clone."""
    root = tmp_path / "clone" / "posterior_database"
    for sub in ("posteriors", "data/data", "reference_posteriors/draws/draws"):
        (root / sub).mkdir(parents=True)
    about = {"name": NAME, "data_name": "eight_schools", "reference_posterior_name": "ref"}
    (root / "posteriors" / f"{NAME}.json").write_text(json.dumps(about))
    chain = {"theta[1]": [1.0, 2.0], "theta[2]": [3.0, 4.0], "mu": [5.0, 6.0], "tau": [7.0, 8.0]}
    for file, content in (
        ("data/data/eight_schools.json", {"J": 2, "y": [1, 2], "sigma": [1, 1]}),
        ("reference_posteriors/draws/draws/ref.json", [chain, chain, chain]),
    ):
        with zipfile.ZipFile(root / f"{file}.zip", "w") as archive:
            archive.writestr(Path(file).name, json.dumps(content))
    return tmp_path / "clone"


def test_both_layouts_are_read(folder, clone):
    own, cloned = load(folder, NAME), load(clone, NAME)
    assert entries(folder) == entries(clone) == entries(clone / "posterior_database") == [NAME]
    assert own.reference.draws.shape == (2, 4, 5)
    assert own.reference.quantities()["theta"].shape == (8, 3)
    assert own.exact.log_evidence == -3.0
    assert own.moments()[0]["mu"] == 0.5
    assert cloned.reference.draws.shape == (3, 2, 4)
    torch.testing.assert_close(cloned.reference.quantities()["theta"][:2].double(), torch.tensor([[1.0, 3], [2, 4]]).double())
    assert cloned.moments()[0]["tau"] == 7.5
    model, x, _ = problem(clone, NAME)
    assert isinstance(model, EightSchools)
    assert x.tolist() == [1, 2]


def test_bad_folders_are_named(folder, clone, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load(tmp_path / "nowhere", NAME)
    with pytest.raises(ValueError, match=f"Did you mean '{NAME}'"):
        load(folder, "eight_schools-eight_schools_centred")
    (clone / "posterior_database/data/data/eight_schools.json.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"eight_schools.json.zip is missing"):
        load(clone, NAME)
    data = folder / NAME / "data.json"
    data.write_text(data.read_text()[:20])
    with pytest.raises(ValueError, match=r"data.json is damaged"):
        load(folder, NAME)


@pytest.mark.parametrize("keep", [0, 100, 400])
def test_truncated_draws_are_named(folder, keep):
    file = folder / NAME / "draws.npz"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"draws.npz is damaged"):
        load(folder, NAME)


def test_draws_of_other_dimensions_and_wrong_keys_are_refused(folder):
    np.savez(folder / NAME / "draws.npz", draws=np.zeros((2, 4, 6)), names=np.array(["mu", "tau"]))
    with pytest.raises(ValueError, match=r"\(chains, draws, 2\) is expected"):
        load(folder, NAME)
    (folder / NAME / "draws.npz").unlink()
    (folder / NAME / "data.json").write_text(json.dumps({"y": [1.0], "scale": [1.0]}))
    with pytest.raises(ValueError, match="need 'sigma', but hold"):
        problem(folder, NAME)
    (folder / NAME / "data.json").write_text(json.dumps({"y": [[1.0]], "sigma": [1.0]}))
    with pytest.raises(ValueError, match=r"'y' has shape \(1, 1\)"):
        problem(folder, NAME)
    (folder / "other").mkdir()
    (folder / "other" / "data.json").write_text("{}")
    with pytest.raises(ValueError, match="other has no Pyro port"):
        problem(folder, "other")


@pytest.mark.parametrize("name", sorted(ports()))
def test_every_port_runs_under_a_plate_of_draws_and_a_global_guide(name):
    model, x = ports()[name].demo(seed=1)
    done = fit(model, Global(model, FullRank()), x, steps=3)
    assert elbo(model, done.guide, x, draws=5).total.elbo.isfinite()
    joint = LogJoint(model, x)
    u = 0.1 * torch.randn(4, joint.dim, dtype=torch.float64)
    assert joint(u).isfinite().all()
    h = joint.constrain(u)
    torch.testing.assert_close(joint.unconstrain(h), u)
    torch.testing.assert_close(joint.unconstrain(model.latents(model.quantities(h))), u)
    step = 1e-6 * torch.eye(joint.dim, dtype=torch.float64)[0]
    slope = (joint(u + step) - joint(u - step)) / 2e-6
    torch.testing.assert_close(joint.score(u)[:, 0], slope, atol=1e-4, rtol=1e-5)


def test_improper_priors_say_so():
    model, _ = Garch.demo()
    with pytest.raises(ValueError, match="Garch has an improper prior"):
        model.simulate(10, seed=0)


def test_a_site_missing_from_the_draws_is_named():
    model, x = LowDimGaussMix.demo()
    with pytest.raises(ValueError, match="draws of the latent 'mu' must have shape"):
        stein_check(model, x, {"theta": torch.rand(5)})


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", sorted(ports()))
def test_port_at_the_reference_draws(name):
    """The score has mean zero and obeys Stein's identity, |z| < 4; with a wrong prior it does not."""
    model, x, entry = problem(DATA, name)
    draws = model.latents(entry.reference.quantities())
    chains = entry.reference.draws.shape[0]
    assert stein_check(model, x, draws, chains=chains).largest < 4
    site = next(iter(draws))
    centre, spread = draws[site].mean(0), draws[site].std(0)

    def wrong(x):
        """The model times an extra factor for one site: as wide as its posterior and shifted by half that width."""
        with pyro.poutine.trace() as trace:
            model(x)
        value = trace.trace.nodes[site]["value"]
        pyro.factor("wrong", torch.distributions.Normal(centre + spread / 2, spread).log_prob(value).sum())

    assert stein_check(wrong, x, draws, chains=chains).largest > 10


@pytest.mark.slow
@needs_data
def test_known_traps_fail_the_check():
    """Easy mistakes in a port fail: other priors of eight schools, a variance read as a standard deviation."""
    model, x, entry = problem(DATA, NAME)
    model.mu_scale.fill_(10.0)
    draws = model.latents(entry.reference.quantities())
    assert stein_check(model, x, draws, chains=10).largest > 4
    model, x, entry = problem(DATA, "gp_pois_regr-gp_regr")
    draws = entry.reference.quantities()
    draws["sigma"] = draws["sigma"].sqrt()
    assert stein_check(model, x, draws, chains=10).largest > 4


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", sorted(ports()))
def test_draws_agree_with_exact_moments(name):
    entry = load(DATA, name)
    if entry.exact is None:
        pytest.skip("no exact moments")
    flat = entry.reference.draws.flatten(0, 1)
    for position, scalar in enumerate(entry.reference.names):
        # Every entry has at least 2000 effective draws.
        error = abs(float(flat[:, position].mean()) - entry.exact.mean[scalar]) / entry.exact.sd[scalar]
        assert error < 5 / 2000**0.5
