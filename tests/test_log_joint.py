"""The log joint density of programs that vmap cannot map: the same numbers, by one call for each draw."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.distributions import Transform

from guides import FullRank, Global
from inference import fit, trust
from inference.diagnostics import DataSets, stein_check
from inference.programs.log_joint import LogJoint
from models import GaussianMean

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
ZERO = torch.zeros((), dtype=torch.float64)


def observe(x, mean):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


class Filled(Transform):
    """exp, written into memory that was made before."""

    domain = constraints.real
    codomain = constraints.positive
    bijective = True

    def _call(self, x):
        y = torch.ones((1,), dtype=x.dtype)
        y *= x.exp()
        return y[0]

    def _inverse(self, y):
        return y.log()

    def log_abs_det_jacobian(self, x, y):
        return x


def plain(x):
    observe(x, pyro.sample("h", dist.Normal(ZERO, 1.0)).exp())


def in_place(x):
    h = pyro.sample("h", dist.Normal(ZERO, 1.0))
    mean = torch.zeros(1, dtype=x.dtype)
    mean += h
    observe(x, mean[0].exp())


def in_a_transform(x):
    observe(x, Filled()(pyro.sample("h", dist.Normal(ZERO, 1.0))))


def branching(x):
    h = pyro.sample("h", dist.Normal(ZERO, 1.0))
    observe(x, h.exp() if h > 0 else 1 / (-h).exp())


class Exp(torch.autograd.Function):
    """A function in the old style, which torch.func refuses."""

    @staticmethod
    def forward(ctx, h):
        y = h.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


def own_function(x):
    observe(x, Exp.apply(pyro.sample("h", dist.Normal(ZERO, 1.0))))


def improper(x):
    h = pyro.sample("h", dist.ImproperUniform(constraints.real, (), ()))
    pyro.factor("prior", dist.Normal(ZERO, 1.0).log_prob(h))
    observe(x, h.exp())


PROGRAMS = [plain, in_place, in_a_transform, branching, own_function, improper]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_numbers_are_those_of_a_program_that_maps(program):
    u = torch.tensor([[0.3], [-0.7], [1.2]], dtype=torch.float64, requires_grad=True)
    joint, other = LogJoint(program, X), LogJoint(plain, X)
    value, score = joint(u), joint.score(u)
    hessian = torch.stack([joint.hessian(one) for one in u])
    assert joint.constrain(u)["h"].shape == (3,)
    torch.testing.assert_close(value, other(u))
    torch.testing.assert_close(score, other.score(u))
    torch.testing.assert_close(hessian, torch.stack([other.hessian(one) for one in u]))
    torch.testing.assert_close(torch.autograd.grad(value.sum(), u)[0], score)


@pytest.mark.filterwarnings("ignore:guide and model are called once for each draw")
def test_the_users_of_the_density_take_it():
    def model(x):
        mean = torch.zeros(1, dtype=x.dtype)
        mean += pyro.sample("h", dist.Normal(ZERO, 1.0))
        observe(x, mean[0])

    done = fit(model, Global(model, FullRank(scale=0.5)), X, steps=400, lr=0.05)
    verdict = trust(done, X, draws=500)
    assert verdict.khat < 0.7
    assert stein_check(model, X, {"h": torch.randn(50, dtype=torch.float64)}).largest > 0


def test_many_data_sets_of_one_model_take_it():
    class InPlace(GaussianMean):
        def likelihood(self, h, x=None):
            mean = torch.zeros(h.shape[-1], dtype=h.dtype) if h.dim() == 1 else torch.zeros(h.shape, dtype=h.dtype)
            mean += h
            return super().likelihood(mean, x)

    sets, others = (DataSets(cls(2).double(), 4) for cls in (InPlace, GaussianMean))
    h, x = others.simulate(3, seed=0)
    torch.testing.assert_close(sets.likelihood(h, x), others.likelihood(h, x))


def test_an_error_of_the_program_is_its_own():
    broken = []

    def wrong(x):
        plain(x)
        if broken:
            raise KeyError("a column is missing")

    joint = LogJoint(wrong, X)
    broken.append(True)
    with pytest.raises(KeyError, match="a column is missing"):
        joint(torch.zeros(2, 1, dtype=torch.float64))
