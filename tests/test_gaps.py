"""The three gaps: they add up exactly and agree with closed forms."""

from __future__ import annotations

import pytest
import torch
from problems import SOURCES, build, demo, fits_together, is_discrete, shake

from guides import MLP, Amortized, Bernoulli, Delta, Flow, FullRank, Global, Linear, Local, MeanField, Prior, SemiAmortized
from inference import Ascent, analytic_elbo, best_elbo, elbo, fit, fit_unseen, gaps
from models import VAE, BinaryVAE, FactorAnalysis, LinearRegression, LocalGaussian, ProbabilisticPCA, datasets, decoders

QUICK = Ascent(steps=600, lr=0.05, window=50, patience=3)
FAST = {"ascent": QUICK, "draws": 400, "evidence_draws": 500}


def total_error(found):
    """The largest |evidence − (ELBO + the three gaps)| over the data."""
    return float((found.evidence.value - found.elbo.value - sum(p.value for p in found.parts.values())).abs().max())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("family", [MeanField, Flow])
def test_the_parts_add_up_exactly(source, family):
    model_class = LinearRegression if fits_together(LinearRegression, source) else FactorAnalysis
    model, x = demo(model_class)
    guide = build(model, source, family, x)
    shake(guide, 0.1, seed=0)
    found = gaps(model, guide, x, ascent=Ascent(steps=30), draws=20, evidence_draws=20, encoder_steps=5)
    assert total_error(found) < 1e-8
    assert found.evidence_by == "exact"
    for part in (found.evidence, found.elbo, *found.parts.values()):
        assert part.value.shape == part.se.shape == (x.shape[:1] if source.local else ())
        assert part.value.dtype == torch.float64


def test_the_identity_holds_without_exact_evidence():
    model, x = demo(VAE)
    guide = build(model, Amortized, MeanField, x)
    found = gaps(model, guide, x, ascent=Ascent(steps=30), draws=20, evidence_draws=50, temperatures=3)
    assert total_error(found) < 1e-8
    assert found.evidence_by in {"IWAE, 50 draws", "AIS, 3 temperatures"}


class TestAgainstClosedForms:
    def test_local_mean_field(self):
        """The approximation gap agrees with best_elbo, the optimisation gap is the rest, and the amortization gap is zero."""
        model, x = demo(FactorAnalysis)
        guide = build(model, Local, MeanField, x)
        shake(guide, 0.3, seed=1)
        found = gaps(model, guide, x, **FAST)
        best, own = best_elbo(model, MeanField(), x), analytic_elbo(model, guide.q(x), x).detach()
        approximation, optimisation = (model.log_evidence(x) - best).mean(), (best - own).mean()
        assert abs(found.approximation.mean - approximation) < 5 * found.approximation.mean_se + 1e-4
        assert abs(found.optimisation.mean - optimisation) < 5 * found.optimisation.mean_se + 1e-4
        assert optimisation > 10 * found.optimisation.mean_se
        assert not found.amortization.value.any()
        assert not found.failed

    @pytest.mark.slow
    def test_a_poor_encoder_costs_amortization(self):
        """An encoder that ignores x has one λ for all data, and its amortization gap is the loss against the best λ_i."""
        model, x = demo(ProbabilisticPCA)
        guide = Amortized(model, FullRank(), torch.nn.Sequential(torch.nn.Linear(6, 1), torch.nn.Linear(1, 5)))
        guide.setup(x)
        with torch.no_grad():
            guide.encoder[0].weight.zero_()
            guide.encoder[0].bias.zero_()
        found = gaps(model, guide, x, **FAST)
        own = analytic_elbo(model, guide.q(x), x).detach()
        assert (
            abs(found.amortization.mean - float((model.log_evidence(x) - own).mean())) < 5 * found.amortization.mean_se + 1e-3
        )
        assert abs(found.approximation.mean) < 1e-3

    def test_training_the_encoder_further_turns_amortization_into_optimisation_gap(self):
        """A linear encoder can be exact here, so its whole gap is an optimisation gap once the encoder is trained further."""
        model, x = demo(ProbabilisticPCA)
        guide = Amortized(model, FullRank(), Linear())
        fit(model, guide, x, steps=100, lr=0.03)
        before = gaps(model, guide, x, **FAST)
        after = gaps(model, guide, x, encoder_steps=1000, encoder_lr=0.03, **FAST)
        assert before.amortization.mean > 0.02
        assert not before.optimisation.value.any()
        assert abs(after.amortization.mean) < 0.1 * before.amortization.mean
        torch.testing.assert_close(after.elbo.value, before.elbo.value)
        assert abs(after.optimisation.mean - before.amortization.mean) < 0.1 * before.amortization.mean

    @pytest.mark.slow
    def test_a_flow_closes_the_approximation_gap(self):
        model, x = demo(FactorAnalysis)
        gaussian = gaps(model, build(model, Local, MeanField, x), x, **FAST)
        flow = gaps(model, build(model, Local, Flow, x), x, **{**FAST, "ascent": Ascent(steps=1500, lr=0.05, window=50)})
        difference = gaussian.approximation.mean - flow.approximation.mean
        assert difference > 3 * (gaussian.approximation.mean_se**2 + flow.approximation.mean_se**2) ** 0.5


@pytest.mark.slow
def test_a_failed_inner_optimisation_is_reported_not_clipped():
    model, x = demo(LocalGaussian)
    guide = Local(model, MeanField())
    fit(model, guide, x, steps=800, lr=0.05)
    found = gaps(model, guide, x, ascent=Ascent(steps=40, lr=5.0), draws=400)
    assert found.optimisation.mean < 0
    assert set(found.failed) == {"optimisation"}
    assert total_error(found) < 1e-8
    assert not gaps(model, guide, x, **FAST).failed


def test_gaps_changes_nothing():
    model, x = demo(VAE)
    guide = build(model, Amortized, MeanField, x)
    state = {k: v.clone() for k, v in (*model.state_dict().items(), *guide.state_dict().items())}
    random = torch.get_rng_state()
    gaps(model, guide, x, ascent=Ascent(steps=5), draws=5, evidence_draws=5, encoder_steps=3)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[k], v) for k, v in (*model.state_dict().items(), *guide.state_dict().items()))


@pytest.mark.slow
def test_a_narrow_encoder_has_the_larger_amortization_gap():
    """One hidden unit against 200 on the same frozen decoder: equal approximation gaps, unequal amortization gaps."""
    torch.manual_seed(0)
    truth = VAE((20,), 3, decoder=decoders.MLP((16,))).double()
    with torch.no_grad():
        for parameter in truth.decoder.parameters():
            parameter.mul_(4.0)
    x = truth.simulate(400, seed=1)[1]
    found = {}
    for hidden in (1, 200):
        guide = Amortized(truth, MeanField(scale=0.7), MLP((hidden,)))
        guide.setup(x)
        found[hidden] = gaps(truth, guide, x, encoder_steps=3000, encoder_lr=3e-3, draws=400, evidence_draws=2000)
    narrow, wide = found[1], found[200]
    error = (narrow.amortization.mean_se**2 + wide.amortization.mean_se**2) ** 0.5
    assert narrow.amortization.mean - wide.amortization.mean > 5 * error
    error = (narrow.approximation.mean_se**2 + wide.approximation.mean_se**2) ** 0.5
    assert abs(narrow.approximation.mean - wide.approximation.mean) < 5 * error


class TestReport:
    def test_table_and_picture(self, tmp_path):
        model, x = demo(LocalGaussian)
        found = gaps(model, build(model, Amortized, MeanField, x), x, ascent=Ascent(steps=20), draws=50)
        frame = found.to_frame().set_index("quantity")
        assert list(frame.index) == ["evidence", "elbo", "approximation", "amortization", "optimisation"]
        parts = frame.loc[["elbo", "approximation", "amortization", "optimisation"], "mean"].sum()
        assert abs(frame.loc["evidence", "mean"] - parts) < 1e-8
        found.plot().savefig(tmp_path / "gaps.png")
        assert (tmp_path / "gaps.png").stat().st_size > 1000


class TestUnseen:
    def test_a_local_guide_is_fitted_to_unseen_data(self):
        model, x = demo(FactorAnalysis)
        guide = build(model, Local, MeanField, x)
        unseen = model.simulate(30, seed=4)[1]
        local = fit_unseen(guide, unseen, ascent=QUICK)
        best = best_elbo(model, MeanField(), unseen)
        assert (best - analytic_elbo(model, local.q(unseen), unseen)).mean() < 0.01
        start = build(model, Local, MeanField, unseen)
        assert (best - analytic_elbo(model, start.q(unseen), unseen)).mean() > 1.0

    def test_the_model_is_unchanged(self):
        model, x = demo(VAE)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        fit_unseen(build(model, Amortized, MeanField, x), x[:7], ascent=Ascent(steps=20))
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    def test_a_global_guide_is_refused(self):
        model, x = demo(LinearRegression)
        guide = Global(model, MeanField())
        guide.setup(x)
        with pytest.raises(ValueError, match="one λ for all data"):
            fit_unseen(guide, x)


class TestSemiAmortized:
    @pytest.mark.parametrize("family", [MeanField(), FullRank(), Flow()])
    def test_steps_never_lower_a_datums_elbo_on_their_own_noise(self, family):
        model, x = demo(FactorAnalysis)
        guide = SemiAmortized(model, family, Linear(), steps=4)
        guide.setup(x)
        plain = guide.encoder(x) + guide.start
        with torch.no_grad():
            refined = guide.lambdas(x)
        before, after = (guide._value_and_gradient(lam, x, through=False)[0] for lam in (plain, refined))
        assert (after >= before).all()
        assert (after > before + 0.01).float().mean() > 0.9

    def test_lambda_depends_on_its_own_datum_alone(self):
        model, x = demo(FactorAnalysis)
        guide = SemiAmortized(model, MeanField(), Linear(), steps=3)
        guide.setup(x)
        with torch.no_grad():
            torch.testing.assert_close(guide.lambdas(x[5:9]), guide.lambdas(x)[5:9])

    def test_refinement_closes_part_of_the_amortization_gap(self):
        model, x = demo(FactorAnalysis)
        plain = Amortized(model, MeanField(), Linear())
        fit(model, plain, x, steps=40, lr=0.02)
        refined = SemiAmortized(model, MeanField(), plain.encoder, steps=20)
        refined.setup(x)
        values = [elbo(model, guide, x, draws=500) for guide in (plain, refined)]
        assert values[1].value - values[0].value > 5 * (values[0].se ** 2 + values[1].se ** 2) ** 0.5

    @pytest.mark.slow
    def test_a_good_encoder_is_overfitted_by_few_draws_and_not_by_the_default(self):
        x = datasets.digits(binarised=True).x.double()[:300]
        model, _ = VAE.from_dataset(datasets.Dataset("digits", x))
        plain = Amortized(model, MeanField(), MLP((32,)))
        fit(model, plain, x, steps=500, lr=0.02)
        few, default = (SemiAmortized(model, MeanField(), plain.encoder, **o) for o in ({"draws": 2}, {}))
        values = [elbo(model, guide, x, draws=200) for guide in (plain, few, default)]
        error = 5 * max(value.se for value in values) * 2**0.5
        assert values[1].value < values[0].value - error
        assert values[2].value > values[0].value + error

    def test_refines_in_training_or_only_after(self):
        model, x = demo(FactorAnalysis)
        always, later = (SemiAmortized(model, MeanField(), Linear(), training=t) for t in (True, False))
        for guide in (always, later):
            guide.setup(x)
        later.load_state_dict(always.state_dict())
        torch.testing.assert_close(later.lambdas(x), later.encoder(x) + later.start)
        assert not torch.allclose(always.lambdas(x), later.lambdas(x))
        with torch.no_grad():
            torch.testing.assert_close(always.lambdas(x), later.lambdas(x))

    def test_a_fit_differentiates_through_the_steps(self):
        """The encoder's gradient against finite differences of the closed-form ELBO of the refined q."""
        model, x = demo(ProbabilisticPCA)
        guide = SemiAmortized(model, MeanField(), Linear(), steps=2)
        guide.setup(x)
        bias = guide.encoder[-1].bias

        def value():
            return analytic_elbo(model, guide.q(x), x).sum()

        (gradient,) = torch.autograd.grad(value(), bias)
        step = 1e-6
        for i in range(2):
            with torch.no_grad():
                bias[i] += step
                up = value()
                bias[i] -= 2 * step
                down = value()
                bias[i] += step
            assert abs((up - down) / (2 * step) - gradient[i]) < 1e-4 * abs(gradient[i]) + 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: SemiAmortized(m, MeanField(), steps=0), "steps must be at least 1, but is 0: without steps, use Amortized"),
        (lambda m: SemiAmortized(m, MeanField(), lr=0.0), "lr must be positive"),
        (lambda m: SemiAmortized(m, Bernoulli()), "no gradient with respect to its draws"),
        (lambda m: Flow(0), "layers must be at least 1"),
        (lambda m: gaps(m, Local(m, MeanField()), torch.zeros(3, 6), draws=1), "draws must be at least 2"),
        (
            lambda m: gaps(m, Local(m, MeanField()), torch.zeros(3, 6), encoder_steps=-1),
            "encoder_steps must be at least 0",
        ),
        (lambda m: gaps(m, Local(m, MeanField()), torch.zeros(3, 6) / 0.0), "row 0 of x holds nan"),
        (lambda m: gaps(m, Local(m, MeanField()), torch.zeros(3, 6), temperatures=1), "must be 0.* or at least 2"),
        (lambda m: gaps(m, Local(m, MeanField()), torch.zeros(3, 6), batch_size=10**9), "at most the 3 rows"),
        (lambda m: gaps(m, Local(m, MeanField()), torch.full((3, 6), 1e30)), "the ELBO of datum 0 .3 such of 3. is -inf"),
        (lambda m: fit_unseen(Local(m, MeanField()), torch.full((3, 6), 1e30)), "the ELBO of datum 0 .3 such of 3. is -inf"),
        (lambda m: gaps(m, Local(m, Delta()), torch.zeros(3, 6), ascent=Ascent(steps=1)), "q is a point mass"),
    ],
)
def test_bad_input(make, message):
    model, _ = FactorAnalysis.demo()
    with pytest.raises(ValueError, match=message):
        make(model)


def test_a_global_guide_of_local_latents_has_one_number():
    """The exact evidence of each datum is summed to match it."""
    model, x = demo(FactorAnalysis)
    found = gaps(model, Global(model, MeanField()), x, ascent=Ascent(steps=3), draws=10)
    assert all(part.value.shape == () for part in (found.evidence, found.elbo, *found.parts.values()))
    torch.testing.assert_close(found.evidence.value, model.log_evidence(x).sum())


def test_guides_without_a_lambda_are_refused():
    model, x = FactorAnalysis.demo()
    with pytest.raises(TypeError, match="fit_unseen: guide must be a Guide"):
        fit_unseen(Prior(model), x)
    with pytest.raises(TypeError, match="ascent must be an Ascent"):
        gaps(model, Local(model, MeanField()), x, ascent=10)
    with pytest.raises(TypeError, match="Prior has none"):
        gaps(model, Prior(model), x)


def test_binary_latents_have_no_reparameterised_lambda():
    model, x = BinaryVAE.demo()
    assert is_discrete(BinaryVAE)
    with pytest.raises(ValueError, match="no reparameterised draws"):
        gaps(model, Local(model, Bernoulli()), x)
