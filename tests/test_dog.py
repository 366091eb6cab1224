"""Optimisers without a learning rate follow the papers' recursions, keep their invariances, and can be captured."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from problems import build, demo
from torch.fx.experimental.proxy_tensor import make_fx

from guides import FullRank, Global, Local, MeanField
from inference import analytic_elbo, best_elbo, fit, optimisers
from inference.engine import Graph
from inference.objectives import StickingTheLanding
from inference.optimisers import DoG, DoWG, JointStep
from models import GaussianMean, LocalGaussian

EXPORTS = [getattr(optimisers, name) for name in optimisers.__all__]
STEPS = [e for e in EXPORTS if inspect.isclass(e) and issubclass(e, JointStep) and e is not JointStep]


def descend(optimiser, parameters, gradient, steps):
    """The parameters after each step, as one vector; shape (steps, numbers)."""
    path = []
    for _ in range(steps):
        for parameter, slope in zip(parameters, gradient(parameters), strict=True):
            parameter.grad = slope
        optimiser.step()
        path.append(torch.cat([p.detach().flatten() for p in parameters]))
    return torch.stack(path)


def start(dtype=torch.float64):
    return [torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=dtype)), torch.nn.Parameter(torch.tensor(0.5, dtype=dtype))]


def bowl(parameters):
    """Gradient of a quadratic with curvatures 1, 4 and 9."""
    first, second = (p.detach() for p in parameters)
    return [torch.tensor([1.0, 4.0], dtype=first.dtype) * first, 9.0 * second]


@pytest.mark.parametrize("cls", STEPS)
class TestContract:
    def test_follows_the_papers_recursion(self, cls):
        """Compared with the recursion written step by step in NumPy."""
        x = x0 = np.array([1.0, -2.0, 0.5])
        reached, total, path = 1e-4 * (1 + np.linalg.norm(x0)), 0.0, []
        for _ in range(50):
            g = np.array([1.0, 4.0, 9.0]) * x
            reached = max(reached, np.linalg.norm(x - x0))
            weight = reached if cls is DoWG else 1.0
            total += weight**2 * g @ g
            x = x - weight * reached / np.sqrt(total) * g
            path.append(x)
        parameters = start()
        found = descend(cls(parameters), parameters, bowl, 50)
        torch.testing.assert_close(found, torch.from_numpy(np.array(path)), atol=1e-10, rtol=0.0)
        assert np.linalg.norm(path[-1]) < 0.5 * np.linalg.norm(x0)

    def test_the_scale_of_the_loss_does_not_matter(self, cls):
        one, other = start(), start()
        first = descend(cls(one), one, bowl, 20)
        second = descend(cls(other), other, lambda p: [1e3 * g for g in bowl(p)], 20)
        torch.testing.assert_close(first, second, atol=1e-10, rtol=0.0)

    def test_resumes_from_its_state(self, cls):
        whole, parts = start(), start()
        expected = descend(cls(whole), whole, bowl, 20)
        begun = cls(parts)
        descend(begun, parts, bowl, 10)
        resumed = cls(parts)
        resumed.load_state_dict(begun.state_dict())
        assert torch.equal(descend(resumed, parts, bowl, 10), expected[10:])
        forgotten = cls(parts)
        assert not torch.equal(descend(forgotten, parts, bowl, 1)[0], expected[-1])

    def test_groups_and_late_parameters_share_the_step(self, cls):
        parameters = start()
        optimiser = cls([{"params": parameters[:1]}, {"params": parameters[1:]}])
        single = start()
        expected = descend(cls(single), single, bowl, 5)
        assert torch.equal(descend(optimiser, parameters, bowl, 5), expected)
        late = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimiser.param_groups[0]["params"].append(late)
        late.grad = torch.ones_like(late)
        optimiser.step()
        assert late.detach().abs().min() > 0

    def test_can_be_captured(self, cls):
        """A step reads no number out of a tensor, which would make symbolic tracing fail."""
        parameters = start()
        optimiser = cls(parameters)
        descend(optimiser, parameters, bowl, 1)

        def step(gradients, read):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            if read:
                float(parameters[0].sum() + gradients[0].sum())
            return [p.detach().clone() for p in parameters]

        make_fx(lambda g: step(g, read=False))(bowl(parameters))
        with pytest.raises(RuntimeError, match="tracing"):
            make_fx(lambda g: step(g, read=True))(bowl(parameters))

    def test_reaches_the_best_of_a_family(self, cls):
        model, x = demo(GaussianMean)
        guide = build(model, Global, MeanField, x)
        best = best_elbo(model, guide.family, x)
        assert best - analytic_elbo(model, guide.q(x), x) > 1.0
        fit(model, guide, x, steps=800, optimiser=cls, objective=StickingTheLanding())
        assert best - analytic_elbo(model, guide.q(x), x) < 0.05

    def test_the_rate_is_not_used_and_the_engine_does_not_matter(self, cls):
        model, x = demo(GaussianMean)
        found = []
        for lr, engine in ((0.01, None), (10.0, None), (0.01, Graph)):
            guide = build(model, Global, FullRank, x)
            options = {} if engine is None else {"engine": engine}
            found.append(fit(model, guide, x, steps=30, lr=lr, optimiser=cls, **options).nelbo)
        assert torch.equal(found[0], found[1])
        torch.testing.assert_close(found[0], found[2], atol=1e-8, rtol=1e-8)

    def test_bad_input(self, cls):
        with pytest.raises(ValueError, match=f"{cls.__name__}: reach must be positive and finite, but is 0"):
            cls(start(), reach=0.0)
        model, x = demo(LocalGaussian)
        guide = Local(model, MeanField())
        with pytest.raises(TypeError, match=f"{cls.__name__} takes one step size .* use torch's Adam"):
            fit(model, guide, x, steps=5, batch_size=10, optimiser=cls)
        fit(model, guide, x, steps=1, optimiser=cls)


def test_the_two_differ():
    one, other = start(), start()
    assert not torch.equal(descend(DoG(one), one, bowl, 5), descend(DoWG(other), other, bowl, 5))
