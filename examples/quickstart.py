"""How tight the bound of each guide is, on a model whose evidence is known."""

from pyro.infer.autoguide import AutoNormal

from guides import Amortized, FullRank, Linear, Local, MeanField
from inference import analytic_elbo, compare, elbo, fit
from models import FactorAnalysis

model, x = FactorAnalysis.demo()  # h_i ~ N(0, I), x_i ~ N(loading h_i + mean, noise_scale); x has 60 rows

guide = Local(model, MeanField())  # q(h_i) = N(loc_i, diag scale_i²), one λ_i for each x_i
done = fit(model, guide, x, steps=1000, lr=0.03)

truth = model.log_evidence(x).sum()  # log p(x), exact
bound = elbo(model, guide, x, draws=1000)  # an estimate with its standard error
print(f"log p(x) = {truth:.2f} = ELBO {bound.value:.2f} ± {bound.se:.2f} + KL {truth - bound.value:.2f}")
print(f"the same ELBO in closed form: {analytic_elbo(model, guide.q(x), x).sum():.2f}")

guides = {
    "local mean field": lambda m: Local(m, MeanField()),
    "amortized full rank": lambda m: Amortized(m, FullRank(), Linear()),
    "Pyro's AutoNormal": AutoNormal,
}
print(compare(model, guides, x, steps=1000, lr=0.03, seeds=2).to_frame())
