"""The contract of every model: prior and likelihood are declared apart, and the joint is composed once."""

from __future__ import annotations

import copy
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule, PyroParam
from pyro.nn.module import _PyroModuleMeta
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from .arguments import check_rows, count, matrix, seed_of
from .datasets import Dataset
from .naming import own_name, rename
from .threads import one_thread

__all__ = ["HierarchicalModel", "LocalModel", "Model", "RegressionModel", "Tractable"]


class _AbstractPyroModule(_PyroModuleMeta, ABCMeta):
    """PyroModule's own metaclass, which also refuses to make a model with an abstract method left."""


class Model(PyroModule, metaclass=_AbstractPyroModule):
    r"""One latent h for all the data: p(x, h) = p(h) ∏_i p(x_i | h).

    A subclass declares `prior` (h ~ p(h) at the site ``"h"``) and `likelihood` (x ~ p(x | h) at the site ``"x"``), both by
    `pyro.sample` and both for any number of leading batch dimensions. It also declares `demo` and `from_dataset`, which the
    contract tests and the command line call. The base class adds the joint, the data plate, simulation and checks.
    A model with several latents gives each a site of its own name; h is then the dictionary of their values.

    Every model is plain Pyro: it runs under `pyro.infer.SVI`, `Predictive`, `NUTS` and the autoguides.
    """

    support: constraints.Constraint = constraints.real
    """The values that one entry of x may take."""

    proper: ClassVar[bool] = True
    """Whether the prior is a normalised density. An improper prior has no evidence and cannot be simulated from."""

    def __init__(self) -> None:
        super().__init__(name=own_name(type(self)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that shares no parameters with this model in Pyro's param store."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        rename(new)
        return new

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("_parameters", {}).get(name)
        net = self.__dict__.get("_modules", {}).get(name)
        learned = [own] if own is not None else [] if net is None or isinstance(net, PyroModule) else list(net.parameters())
        if learned and not any(parameter.requires_grad for parameter in learned):
            # Pyro's param store would turn gradients on again, and a fit would learn parameters that the user has frozen.
            return net if own is None else own
        return super().__getattr__(name)

    @property
    @abstractmethod
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one row x_i."""

    @abstractmethod
    def prior(self) -> Any:
        """Draws h ~ p(h) at the site ``"h"``, or each latent at a site of its own."""

    @abstractmethod
    def likelihood(self, h: Any, x: Tensor | None = None) -> Tensor:
        """Draws x ~ p(x | h) at the site ``"x"``, or scores the rows `x`."""

    @classmethod
    @abstractmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        """A small instance and data simulated from it, for tests, examples and the command line's default."""

    @classmethod
    @abstractmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """An instance with sensible hyperparameters for `data`, and the x to fit it to.

        Raises:
            ValueError: if the model needs targets and `data` has none.
        """

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The joint p(x, h).

        Args:
            x: the observed rows, shape (B, *data_shape), or None to simulate them.
            index: positions of these rows in the whole data, shape (B,). Their log likelihood is scaled by size / B, so that
                the minibatch ELBO is unbiased.
            size: N, the number of rows of the whole data; len(x) if not given.
        """
        h = self.prior()
        with data_plate(x, index, size):
            return self.likelihood(h, x)

    def quantities(self, h: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The quantities of interest, computed from draws of the latents: by default the latents themselves.

        Two parametrisations of one model have the same quantities.

        Args:
            h: the draws of each latent, shape (K, *shape).

        Returns:
            The draws of each quantity, shape (K, *shape).
        """
        return dict(h)

    def simulate(self, n: int, *, seed: int) -> tuple[Any, Tensor]:
        """Draws (h, x) from the joint, with `n` rows of x. The global random state is left unchanged.

        Returns:
            The value of the site ``"h"`` if it is the only latent, else a dictionary of all latents; and x.

        Raises:
            ValueError: if the prior is improper.
        """
        n, seed = count("simulate: n", n), seed_of("simulate: seed", seed)
        if not self.proper:
            raise ValueError(f"{type(self).__name__} has an improper prior, which cannot be drawn from: give x.")
        with (
            one_thread(),
            torch.random.fork_rng(),
            torch.no_grad(),
            pyro.get_param_store().scope(),
            poutine.block(),
        ):
            torch.manual_seed(seed)
            nodes = prune_subsample_sites(poutine.trace(self).get_trace(size=n)).nodes
        latents = {k: s["value"] for k, s in nodes.items() if s["type"] == "sample" and k != "x"}
        return latents["h"] if set(latents) == {"h"} else latents, nodes["x"]["value"]

    def check_data(self, x: Tensor) -> None:
        """Raises a TypeError or ValueError that names the first row of `x` that this model cannot produce."""
        check_rows(x, self.data_shape, self.support, self.dtype, owner=type(self).__name__)

    def declare(self, name: str, value: Tensor, constraint: constraints.Constraint = constraints.real) -> None:
        """Stores `value` as the attribute `name`: learned within `constraint` if it is a Parameter, else fixed.

        Every tensor among the arguments of a model's constructor passes through here.
        """
        if not isinstance(value, torch.nn.Parameter):
            self.register_buffer(name, value)
        elif constraint is constraints.real:
            setattr(self, name, value)
        elif not value.requires_grad:
            self.register_buffer(name, value.detach().clone())
        else:
            setattr(self, name, PyroParam(value.detach().clone(), constraint=constraint))

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the model's tensors, which the data must share."""
        return next(t.dtype for t in (*self.buffers(), *self.parameters()) if t.is_floating_point())


class LocalModel(Model):
    """One latent h_i for each datum: p(x, h) = ∏_i p(x_i | h_i) p(h_i)."""

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The joint, with both factors inside the plate "data". Arguments as in `Model.forward`."""
        with data_plate(x, index, size):
            return self.likelihood(self.prior(), x)


class _SizedModel(Model):
    """A model built for a fixed number of data: its likelihood looks up by index what it needs for each datum."""

    @property
    @abstractmethod
    def size(self) -> int:
        """N, the number of data."""

    @abstractmethod
    def likelihood(self, h: Any, x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Draws x ~ p(x | h) at the site ``"x"``, or scores the rows `x`, whose positions in the whole data are `index`."""

    def local_prior(self, h: Any) -> Any:
        """Draws the latents of each datum given the shared ones `h`, inside the data plate; returns all latents."""
        return h

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The joint. Arguments as in `Model.forward`; `size` is the model's own."""
        if size not in (None, self.size):
            raise ValueError(f"{type(self).__name__}: size is {size}, but the model was built for {self.size} data.")
        h = self.prior()
        with data_plate(x, index, self.size):
            return self.likelihood(self.local_prior(h), x, index)

    def check_data(self, x: Tensor) -> None:
        """Checks `x` as every model does, and that it has `size` rows."""
        super().check_data(x)
        if len(x) != self.size:
            raise ValueError(
                f"{type(self).__name__}: x has {len(x)} rows, but the model was built for {self.size} data: give one row of x "
                "for each of them, or build a model for these data."
            )


class HierarchicalModel(_SizedModel):
    """Latents shared by all data, and local ones for each datum: p(x, h) = p(h) ∏_i p(x_i | h, h_i) p(h_i | h).

    A subclass declares `prior` for the shared latents and `local_prior` for the local ones; both return dictionaries.
    """

    @abstractmethod
    def local_prior(self, h: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws the latents of each datum given the shared ones `h`, inside the data plate; returns all latents."""


class RegressionModel(_SizedModel):
    """One latent h for all the data, and a row of covariates for each datum, a number x_i.

    Args:
        covariates: shape (N, p).
    """

    covariates: Tensor

    def __init__(self, covariates: Tensor) -> None:
        super().__init__()
        self.declare("covariates", matrix("covariates", covariates, "N", "p"))

    @classmethod
    def standardised(cls, data: Dataset) -> tuple[Tensor, Tensor]:
        """Covariates and targets of `data` with mean 0 and standard deviation 1; constant columns are left out.

        Raises:
            ValueError: if `data` has no targets.
        """
        if data.y is None:
            raise ValueError(f"{cls.__name__} needs targets, but the data set {data.name!r} has none: give one with y.")
        scale, y = data.x.std(0), data.y.double()
        covariates = ((data.x - data.x.mean(0)) / scale)[:, scale > 0]
        return covariates, ((data.y - y.mean()) / y.std()).to(covariates.dtype)

    @property
    def size(self) -> int:
        return len(self.covariates)

    @property
    def data_shape(self) -> tuple[int, ...]:
        return ()

    def predictor(self, weights: Tensor, index: Tensor | None) -> Tensor:
        """covariates_i · weights for the rows at `index`, or for all: shape (*, B)."""
        covariates = self.covariates if index is None else self.covariates[index]
        return (covariates * weights).sum(-1)


@runtime_checkable
class Tractable(Protocol):
    """A model with closed-form answers. They give the ELBO by two independent routes, which must agree.

    They are computed in float64, whatever the dtype of model and data. Numbers of nats are also returned in float64: over a
    million data, float32 would round log p(x) to a quarter of a nat. The posterior has the dtype of the data, as draws have.
    """

    def posterior(self, x: Tensor) -> TorchDistribution:
        """p(h | x): batch shape (N,) for a local model, () for a global one."""

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), in nats: shape (N,) for a local model, () for a global one; float64."""

    def expected_log_likelihood(self, q: Any, x: Tensor) -> Tensor:
        """E_q[log p(x | h)] in closed form: shape (N,) for a local model, () for a global one; float64.

        q is Gaussian; if the prior is conjugate but not Gaussian, q is of the prior's family.
        """


def data_plate(x: Tensor | None, index: Tensor | None, size: int | None) -> pyro.plate:
    """The plate "data" of `size` rows, subsampled at `index`: the minibatch scale is size / len(index)."""
    if x is None and size is None:
        raise ValueError("neither x nor size is given: pass the data x, or size=N to simulate N rows.")
    if index is not None and size is None:
        raise ValueError("index is given without size: pass size=N, the number of rows of the whole data.")
    expected = size if index is None else len(index)
    if x is not None and expected is not None and len(x) != expected:
        raise ValueError(f"x has {len(x)} rows where {expected} are expected: pass x[index] with index=index and size=N.")
    return pyro.plate("data", len(x) if size is None and x is not None else size, subsample=index, dim=-1)
