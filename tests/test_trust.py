"""Verdicts on q whose errors are known: use, correct and refuse."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import demo
from torch.distributions import AffineTransform
from typer.testing import CliRunner

from guides import Delta, FullRank, Global, Local, MeanField
from inference import Decision, Fit, fit, trust
from inference.cli import app
from inference.diagnostics import by_name, moment_errors, scalars
from inference.diagnostics.modes import missed_modes
from inference.objectives import TraceELBO
from inference.stopping import Stop
from models import EightSchools, Funnel, GaussianMean, LinearRegression, LinearVAE, LocalGaussian, Ring
from models.posteriordb import KidScore


def fitted(model, guide, x):
    """A `Fit` of a guide without any steps."""
    guide.setup(x)
    store = {"params": {}, "constraints": {}}
    return Fit(
        model=model,
        guide=guide,
        nelbo=torch.zeros(1),
        steps=1,
        seconds=0.0,
        seed=0,
        stop=Stop(None, "", converged=False),
        params=store,
    )


def gaussian(model, x, mean, sd):
    """A mean-field fit with these moments."""
    done = fitted(model, Global(model, MeanField()), x)
    with torch.no_grad():
        done.guide.lam.copy_(torch.cat([mean, sd.expm1().log()]))
    return done


def decisions(verdict):
    return [verdict[name] for name in ("means", "sds", "tails", "evidence")]


def test_exact_q_is_used_for_everything():
    model = Funnel(4, centered=False).double()
    x = torch.zeros(2, dtype=torch.float64)
    verdict = trust(gaussian(model, x, torch.zeros(4).double(), torch.ones(4).double()), x)
    assert decisions(verdict) == [Decision.USE] * 4
    assert all(not f.next_step for f in verdict.findings)


@pytest.mark.slow
def test_a_somewhat_wide_or_shifted_q_is_corrected():
    model, x = demo(GaussianMean)
    exact = model.posterior(x)
    wide = trust(gaussian(model, x, exact.mean, 1.5 * exact.stddev), x)
    assert wide["means"] is Decision.USE
    assert wide["sds"] is Decision.CORRECT
    assert wide["evidence"] is Decision.CORRECT
    error = wide.weighted.corrected().sd / exact.stddev - 1
    assert error.abs().max() < 5 / (2 * wide.ess) ** 0.5
    shifted = trust(gaussian(model, x, exact.mean + 0.4 * exact.stddev, 1.1 * exact.stddev), x)
    assert shifted["means"] is Decision.CORRECT
    assert shifted["sds"] is Decision.USE


@pytest.mark.slow
def test_mean_field_on_the_centred_funnel_is_refused():
    model, x = demo(Funnel)
    verdict = trust(fit(model, Global(model, MeanField()), x, steps=500, lr=0.05), x)
    assert decisions(verdict) == [Decision.REFUSE] * 4


def test_moves_detect_a_q_on_half_of_the_posterior():
    """q draws on one side only and is proportional to the posterior there, so all weights are equal."""

    def program(x):
        h = pyro.sample("h", dist.Normal(x.new_zeros(()), 1.0))
        return pyro.sample("x", dist.Normal(0.0 * h, 1.0).expand(x.shape).to_event(1), obs=x)

    def half(x):
        below = dist.TransformedDistribution(dist.HalfNormal(x.new_ones(())), [AffineTransform(0.0, -1.0)])
        return pyro.sample("h", below)

    x = torch.zeros(2, dtype=torch.float64)
    stop = Stop(None, "", converged=False)
    store = {"params": {}, "constraints": {}}
    done = Fit(model=program, guide=half, nelbo=torch.zeros(1), steps=1, seconds=0.0, seed=0, stop=stop, params=store)
    verdict = trust(done, x, draws=1000)
    assert verdict.khat == -torch.inf
    assert decisions(verdict) == [Decision.REFUSE] * 4
    assert "moves along the posterior change the weighted mean of h by +" in verdict.findings[0].evidence


@pytest.mark.slow
def test_a_good_q_with_thin_tails_is_judged_with_a_share_of_the_prior():
    """Non-centred eight schools: a Gaussian lacks the tails of log tau, but its moments are right, and trust detects this."""
    model, x = demo(EightSchools)
    done = fit(model, Global(model, FullRank()), x, steps=1000, lr=0.03, objective=TraceELBO(8))
    verdicts = [trust(done, x, draws=2000, seed=seed) for seed in range(6)]
    # With so few draws k̂ has a standard error of 1/7: for one seed in six no estimate may count as reliable.
    used = [v for v in verdicts if v["means"] is Decision.USE and v["sds"] is Decision.USE]
    assert len(used) >= 5
    thin = [v for v in used if v.khat > 0.7]
    assert thin
    assert all(v.defended.worst < 0.6 and v["tails"] is Decision.REFUSE for v in thin)
    truth = model.moments(x)
    q = verdicts[0].weighted
    errors = moment_errors(*q.moments(), *(by_name(q.scalars.names, _flat(m)) for m in truth))
    assert max(errors.mean.max(), errors.sd.max()) < 0.3
    narrow = gaussian(model, x, torch.zeros(10).double(), 0.3 * torch.ones(10).double())
    assert decisions(trust(narrow, x)) == [Decision.REFUSE] * 4


def _flat(moments):
    names = scalars({name: value.unsqueeze(0) for name, value in moments.items()})
    return dict(zip(names.names, names.draws[0].tolist(), strict=True))


@pytest.mark.slow
def test_mean_field_on_a_strongly_correlated_regression_is_refused_for_sds():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    covariates = common + 0.2 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    model = LinearRegression(covariates, noise_scale=0.8)
    x = model.simulate(40, seed=1)[1]
    guide = Global(model, MeanField())
    done = fit(model, guide, x, steps=500, lr=0.05)
    verdict = trust(done, x)
    assert (guide.q().stddev / model.posterior(x).stddev).max() < 0.7
    assert verdict["sds"] is Decision.REFUSE
    assert "FullRank" in verdict.findings[1].next_step
    full = trust(fit(model, Global(model, FullRank()), x, steps=700, lr=0.05), x)
    assert full["sds"] is Decision.USE


def test_a_missed_mode_is_found_although_the_weights_do_not_show_it():
    model = Ring(radius=8.0).double()
    x = torch.zeros(2, dtype=torch.float64)
    angle = torch.tensor([8.0, 0.0], dtype=torch.float64)
    done = gaussian(model, x, angle, 0.5 * torch.ones(2).double())
    verdict = trust(done, x)
    assert verdict.khat < 0.7
    assert decisions(verdict) == [Decision.REFUSE] * 4
    assert "misses" in verdict.findings[0].evidence
    assert verdict.missed
    assert all(abs(float(m.h["h"].norm()) - 8) < 0.1 for m in verdict.missed)
    one = Ring(1).double()
    assert not missed_modes(one, x, {"h": one.target().sample((500,))}, float(one.log_evidence(x)))


@pytest.mark.slow
def test_local_guides_are_judged_per_datum():
    """With 200 data the joint k̂ of a good q is large; the verdict does not depend on it."""
    model = LocalGaussian(1).double()
    x = model.simulate(200, seed=1)[1]
    done = fitted(model, Local(model, MeanField()), x)
    posterior = model.posterior(x)
    with torch.no_grad():
        done.guide.table.copy_(torch.cat([posterior.mean, (0.9 * posterior.stddev).expm1().log()], -1))
    verdict = trust(done, x)
    assert verdict.weighted.khat > 0.5 > verdict.khat
    assert verdict["means"] is Decision.USE


def test_a_model_learned_with_its_guide_can_be_judged():
    model, x = demo(LinearVAE)
    guide = Local(model, FullRank())
    assert trust(fit(model, guide, x, steps=300, lr=0.05), x)["means"] is not Decision.REFUSE


@pytest.mark.slow
def test_improper_priors_have_no_evidence():
    model, x = KidScore.demo()
    verdict = trust(fit(model, Global(model, FullRank()), x, steps=700, lr=0.05), x)
    assert verdict["evidence"] is Decision.REFUSE
    assert "no evidence exists" in verdict.findings[3].evidence
    assert verdict["means"] is not Decision.REFUSE


@pytest.mark.slow
def test_wording_is_about_q():
    model, x = demo(Funnel)
    verdict = trust(fit(model, Global(model, MeanField()), x, steps=50), x)
    text = " ".join(f"{f.evidence} {f.next_step}" for f in verdict.findings)
    assert not re.search(r"\b(model|data) (is|are) (bad|wrong|poor|misspecified)", text)
    assert set(verdict.to_frame()) == {"quantity", "decision", "evidence", "next step"}


def test_bad_input():
    model, x = demo(Funnel)
    with pytest.raises(ValueError, match="draws must be at least 500"):
        trust(gaussian(model, x, torch.zeros(10), torch.ones(10)), x, draws=10)
    with pytest.raises(ValueError, match="point mass"):
        trust(fit(model, Global(model, Delta()), x, steps=2, lr=1e-3), x)


@pytest.mark.slow
def test_command():
    result = CliRunner().invoke(
        app, ["trust", "--model", "Funnel", "--guide", "Global(MeanField)", "--steps", "300", "--lr", "0.05"]
    )
    assert result.exit_code == 0, result.output
    assert "do not use" in result.output
    wrong = CliRunner().invoke(app, ["trust", "--model", "Funel", "--guide", "Global(MeanField)"])
    assert wrong.exit_code == 2
