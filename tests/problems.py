"""The models, families, sources and pairs that the contract tests run over, found through `__all__`."""

from __future__ import annotations

import inspect

import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.util import prune_subsample_sites

import guides
import models
from guides import Amortized, Family, Linear, SemiAmortized
from models import HierarchicalModel, LocalModel, Model, Tractable


def concrete(module, base):
    exports = (getattr(module, name) for name in module.__all__)
    return [e for e in exports if inspect.isclass(e) and issubclass(e, base) and not inspect.isabstract(e)]


def has_one_vector(model_class):
    """Whether the only latent is a vector at the site "h", of real numbers or of zeros and ones."""
    model, x = model_class.demo()
    nodes = prune_subsample_sites(poutine.trace(model).get_trace(x)).nodes
    latent = [site for site in nodes.values() if site["type"] == "sample" and not site["is_observed"]]
    supports = (constraints.real, constraints.real_vector, constraints.boolean)
    if [site["name"] for site in latent] != ["h"]:
        return False
    support = latent[0]["fn"].support
    return getattr(support, "base_constraint", support) in supports


ALL_MODELS = concrete(models, Model)
"""Every model, including those with several latents and with bounded or discrete ones."""

MODELS = [m for m in ALL_MODELS if has_one_vector(m)]
FAMILIES = concrete(guides, Family)
SOURCES = concrete(guides, guides.Guide)


def demo(model_class, seed=0):
    """The model and data of `Model.demo`, in float64."""
    model, x = model_class.demo(seed=seed)
    return model.double(), x.double()


def is_discrete(model_class):
    """Whether the latents are zeros and ones."""
    with poutine.block(), torch.random.fork_rng():
        return poutine.trace(demo(model_class)[0].prior).get_trace().nodes["h"]["fn"].support.is_discrete


def fits_together(model_class, source, family=None):
    """Whether the source takes this model and family; without a family, whether it takes the model with a continuous one."""
    if issubclass(source, SemiAmortized) and is_discrete(model_class):
        return False
    # On a model without shared latents Structured is Local, step by step (test_hierarchical_guides): no need to run it again.
    if issubclass(source, guides.Structured) and not issubclass(model_class, HierarchicalModel):
        return False
    discrete = family is not None and family.discrete
    return issubclass(model_class, LocalModel) == source.local and is_discrete(model_class) == discrete


def latent_dim(model, x):
    family = guides.Bernoulli() if is_discrete(type(model)) else guides.MeanField()
    guide = guides.Local(model, family) if isinstance(model, LocalModel) else guides.Global(model, family)
    guide.setup(x)
    return guide.latents.dim


def build(model, source, family_class, x):
    """A guide that is set up for x; a source that needs an encoder gets a linear one."""
    family = family_class.demo(latent_dim(model, x))
    options = {"steps": 1, "draws": 2} if issubclass(source, SemiAmortized) else {}
    guide = source(model, family, Linear(), **options) if issubclass(source, Amortized) else source(model, family)
    guide.setup(x)
    return guide


def shake(guide, scale, seed):
    """Adds noise to λ, so that an identity is tested at a λ without symmetries."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def is_gaussian(family_class, dim=3):
    """Whether q is a Gaussian with a density, which a point mass has not."""
    family = family_class.demo(dim).over(dim)
    try:
        models.gaussian.mean_and_covariance(family(family.start()))
    except TypeError:
        return False
    return True


def has_gaussian_posterior(model_class):
    """Whether a model with an exact posterior has a Gaussian one."""
    model, x = demo(model_class)
    try:
        models.gaussian.mean_and_covariance(model.posterior(x))
    except TypeError:
        return False
    return True


CONTINUOUS = [m for m in MODELS if not is_discrete(m)]
"""Models with a vector of real latents, which every autoguide of Pyro takes."""
SOLVED = [m for m in MODELS if issubclass(m, Tractable)]
TRACTABLE = [m for m in SOLVED if not is_discrete(m)]
"""Tractable models whose closed forms take a Gaussian q."""
NOT_GAUSSIAN = [m for m in ALL_MODELS if issubclass(m, Tractable) and not has_gaussian_posterior(m)]
"""Tractable models whose closed forms take a q of the prior's family, which is not Gaussian."""
GAUSSIAN = [family for family in FAMILIES if is_gaussian(family)]
SLOW = pytest.mark.slow
PAIRS = [
    pytest.param(m, s, f, id=f"{m.__name__}-{s.__name__}-{f.__name__}", marks=SLOW if issubclass(s, SemiAmortized) else ())
    for m in TRACTABLE
    for s in SOURCES
    for f in GAUSSIAN
    if fits_together(m, s)
]


def has_optimum(model_class, family_class):
    """Whether the family's best ELBO on `model_class.demo()` has a closed form."""
    dim = latent_dim(*demo(model_class))
    return family_class.demo(dim).over(dim).blocks() is not None


OPTIMA = [(m, f) for m in TRACTABLE for f in GAUSSIAN if has_optimum(m, f)]


def few(model_classes):
    """Test parameters of which `make test` runs the first local and the first global model; the others are slow."""
    quick = [next((m for m in model_classes if issubclass(m, LocalModel) == local), None) for local in (False, True)]
    return [pytest.param(m, marks=() if m in quick else SLOW) for m in model_classes]


FIXED_PAIRS = [pair for pair in PAIRS if not list(pair.values[0].demo()[0].parameters())]
"""Pairs whose model has nothing to learn."""
PAIRS_WITH_OPTIMUM = [pair for pair in FIXED_PAIRS if (pair.values[0], pair.values[2]) in OPTIMA]
