"""The contract that every model keeps: prior and likelihood declared apart, the joint composed once."""

from __future__ import annotations

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

from .arguments import check_rows
from .datasets import Dataset

__all__ = ["HierarchicalModel", "LocalModel", "Model", "RegressionModel", "Tractable"]


class _AbstractPyroModule(_PyroModuleMeta, ABCMeta):
    """PyroModule has a metaclass of its own; this one also refuses a model with an abstract method left."""


class Model(PyroModule, metaclass=_AbstractPyroModule):
    r"""One latent h for all the data: p(x, h) = p(h) ∏_i p(x_i | h).

    A subclass declares `prior` (h ~ p(h) at the site ``"h"``) and `likelihood` (x ~ p(x | h) at the site ``"x"``), both by
    `pyro.sample` and both for any number of leading batch dimensions, and `demo` and `from_dataset`, through which the
    contract tests and the command line find it. Everything else is here: the joint, the data plate, simulation, checks.
    A model of several latents has a site of its own name for each, and h is the dictionary of their values.

    Every model is plain Pyro and runs under `pyro.infer.SVI`, `Predictive`, `NUTS` and the autoguides as it is.
    """

    support: constraints.Constraint = constraints.real
    """Where a single entry of x may lie."""

    proper: ClassVar[bool] = True
    """Whether the prior is a density. Under an improper one no evidence exists, and nothing can be simulated."""

    def __init__(self) -> None:
        super().__init__(name=type(self).__name__)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("_parameters", {}).get(name)
        net = self.__dict__.get("_modules", {}).get(name)
        learned = [own] if own is not None else [] if net is None or isinstance(net, PyroModule) else list(net.parameters())
        if learned and not any(parameter.requires_grad for parameter in learned):
            # Pyro's param store makes a parameter that it holds require a gradient, so that a fit would learn what is frozen.
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
        """A small instance and data simulated from it: what tests, examples and the command line's default run on."""

    @classmethod
    @abstractmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """An instance with sensible hyperparameters for `data`, and the x to give it.

        Raises:
            ValueError: if the model needs targets and `data` has none.
        """

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The joint p(x, h).

        Args:
            x: the observed rows, shape (B, *data_shape), or None to simulate them.
            index: which of the `size` rows of the whole data these are, shape (B,). Their log likelihood is scaled by
                size / B, so that the minibatch ELBO is unbiased.
            size: N, the number of rows of the whole data; len(x) if not given.
        """
        h = self.prior()
        with data_plate(x, index, size):
            return self.likelihood(h, x)

    def quantities(self, h: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What one wants to know, as functions of draws of the latents: by default the latents themselves.

        Args:
            h: for each latent its draws, shape (K, *shape).

        Returns:
            For each quantity its draws, shape (K, *shape). Two parametrisations of one model have the same quantities.
        """
        return dict(h)

    def simulate(self, n: int, *, seed: int) -> tuple[Any, Tensor]:
        """Draws (h, x) from the joint, x with `n` rows. Leaves the global random state as it was.

        Returns:
            The value of the site ``"h"``, or a dictionary of all latents where it does not exist; and x.

        Raises:
            ValueError: if the prior is improper.
        """
        if not self.proper:
            raise ValueError(f"{type(self).__name__} has an improper prior, from which nothing can be drawn: give x.")
        with torch.random.fork_rng(), torch.no_grad(), pyro.get_param_store().scope(), poutine.block():
            torch.manual_seed(seed)
            nodes = prune_subsample_sites(poutine.trace(self).get_trace(size=n)).nodes
        latents = {k: s["value"] for k, s in nodes.items() if s["type"] == "sample" and k != "x"}
        return latents.get("h", latents), nodes["x"]["value"]

    def check_data(self, x: Tensor) -> None:
        """Raises a TypeError or ValueError that names the first row of `x` which this model cannot have produced."""
        check_rows(x, self.data_shape, self.support, self.dtype, owner=type(self).__name__)

    def declare(self, name: str, value: Tensor, constraint: constraints.Constraint = constraints.real) -> None:
        """Makes `value` the attribute `name`: learned within `constraint` if it is a Parameter, else fixed."""
        if not isinstance(value, torch.nn.Parameter):
            self.register_buffer(name, value)
        elif constraint is constraints.real:
            setattr(self, name, value)
        else:
            setattr(self, name, PyroParam(value.detach().clone(), constraint=constraint))

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the model's numbers, which the data must share."""
        return next(t.dtype for t in (*self.buffers(), *self.parameters()) if t.is_floating_point())


class LocalModel(Model):
    """One latent h_i for each datum: p(x, h) = ∏_i p(x_i | h_i) p(h_i)."""

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The joint; the plate "data" is around both factors. Arguments as in `Model.forward`."""
        with data_plate(x, index, size):
            return self.likelihood(self.prior(), x)


class HierarchicalModel(Model):
    """Latents shared by all data, and local ones for each datum: p(x, h) = p(h) ∏_i p(x_i | h, h_i) p(h_i | h).

    A subclass declares `prior` for the shared latents and `local_prior`, which adds the local ones; both return
    dictionaries. The number of data is fixed by the model (`rows`).
    """

    @property
    @abstractmethod
    def rows(self) -> int:
        """N, the number of data."""

    @abstractmethod
    def local_prior(self, h: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws each datum's latents given the shared ones `h`, inside the data plate; returns all latents."""

    @abstractmethod
    def likelihood(self, h: Any, x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Draws x ~ p(x | h) at the site ``"x"``, or scores the rows `x`, whose places in the whole data are `index`."""

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The joint. Arguments as in `Model.forward`; `size` is `rows`."""
        _check_size(self, size, self.rows)
        h = self.prior()
        with data_plate(x, index, self.rows):
            return self.likelihood(self.local_prior(h), x, index)

    def check_data(self, x: Tensor) -> None:
        """Checks `x` as every model does, and that it has `rows` rows."""
        super().check_data(x)
        _check_rows(self, x, self.rows)


class RegressionModel(Model):
    """One latent h for all the data, and a row of covariates for each datum.

    A subclass registers `covariates`, shape (N, p), and its `likelihood` takes the `index` of the rows it scores.
    """

    covariates: Tensor

    @abstractmethod
    def likelihood(self, h: Any, x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Draws x ~ p(x | h, covariates[index]) at the site ``"x"``, or scores the rows `x`."""

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The joint. Arguments as in `Model.forward`; `size` is the number of rows of the covariates."""
        rows = len(self.covariates)
        _check_size(self, size, rows)
        h = self.prior()
        with data_plate(x, index, rows):
            return self.likelihood(h, x, index)

    def check_data(self, x: Tensor) -> None:
        """Checks `x` as every model does, and that it has a row for each row of the covariates."""
        super().check_data(x)
        _check_rows(self, x, len(self.covariates))


@runtime_checkable
class Tractable(Protocol):
    """A model whose algebra is closed. Its answers give the ELBO by two independent routes, which must agree."""

    def posterior(self, x: Tensor) -> TorchDistribution:
        """p(h | x): batch shape (N,) for a local model, () for a global one."""

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), in nats: shape (N,) for a local model, () for a global one."""

    def expected_log_likelihood(self, q: Any, x: Tensor) -> Tensor:
        """E_q[log p(x | h)] in closed form: shape (N,) for a local model, () for a global one.

        q is Gaussian; where the prior is conjugate and not Gaussian, q is of the prior's family.
        """


def data_plate(x: Tensor | None, index: Tensor | None, size: int | None) -> pyro.plate:
    """The plate "data" of `size` rows, subsampled at `index`, so that the minibatch scale is size / len(index)."""
    if x is None and size is None:
        raise ValueError("neither x nor size is given: pass the data x, or size=N to simulate N rows.")
    if index is not None and size is None:
        raise ValueError("index is given without size: pass size=N, the rows of the whole data, to scale the minibatch.")
    rows = size if index is None else len(index)
    if x is not None and rows is not None and len(x) != rows:
        raise ValueError(f"x has {len(x)} rows where {rows} are expected: pass x[index] with index=index and size=N.")
    return pyro.plate("data", len(x) if size is None and x is not None else size, subsample=index, dim=-1)


def _check_size(model: Model, size: int | None, rows: int) -> None:
    if size not in (None, rows):
        raise ValueError(f"{type(model).__name__}: size is {size}, but the covariates have {rows} rows.")


def _check_rows(model: Model, x: Tensor, rows: int) -> None:
    if len(x) != rows:
        raise ValueError(
            f"{type(model).__name__}: x has {len(x)} rows, but the covariates have {rows}; "
            "give one x for each row of the covariates."
        )
