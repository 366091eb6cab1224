"""The contract of a guide."""

from __future__ import annotations

import copy
import inspect
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import pyro
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from pyro.nn.module import _PyroModuleMeta
from torch import Tensor, nn

from ..arguments import program
from ..families import Family, FullRank
from ..latents import Latents
from ..naming import own_name, rename

__all__ = ["Guide", "ModelGuide"]


class _AbstractPyroModule(_PyroModuleMeta, ABCMeta):
    """PyroModule's own metaclass, which also refuses to make a guide with an abstract method left."""


class ModelGuide(PyroModule):
    """A guide that refers to its model without owning it: the model's parameters do not become the guide's.

    Args:
        model: any Pyro program.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        program(f"{type(self).__name__}: model", model)
        super().__init__(name=own_name(type(self)))
        # A tuple hides the model from torch, which would register it as a submodule.
        self._model = (model,)

    @property
    def model(self) -> Any:
        """The model that this guide was built for."""
        return self._model[0]


class Guide(ModelGuide, metaclass=_AbstractPyroModule):
    """q_λ(h | x) with the call signature of its model.

    `q` returns the distribution; a call samples it at the model's sites. Like Pyro's autoguides, a guide finds the sites of
    its model on its first call. `setup` does so earlier, for instance before loading a `state_dict`.

    If the model has latents outside the data plate, a guide with one λ for each datum has one more block for them,
    q(shared) = shared family(λ_shared), which is drawn first.

    Args:
        model: any Pyro program.
        family: the shape of q.
        plate: name of the model's data plate.
        shared: for a guide with one λ for each datum, the family over the latents outside the data plate; by default
            `FullRank`.

    Raises:
        TypeError: if a family is not a `Family`.
    """

    local: ClassVar[bool]
    """Whether there is one λ for each datum."""
    holds_data: bool
    """Whether the plate holds data. If not, it holds groups that data point to: all of them are drawn for every minibatch."""

    def __init__(
        self, model: Callable[..., Any], family: Family, *, plate: str = "data", shared: Family | None = None
    ) -> None:
        super().__init__(model)
        if not isinstance(family, Family):
            raise TypeError(f"{type(self).__name__}: family must be a Family such as MeanField(), but is {family!r}.")
        if shared is not None and not isinstance(shared, Family):
            raise TypeError(f"{type(self).__name__}: shared must be a Family such as FullRank(), but is {shared!r}.")
        if not isinstance(plate, str):
            raise TypeError(f"{type(self).__name__}: plate must be the name of the model's data plate, but is {plate!r}.")
        if shared is not None and not self.local:
            raise ValueError(f"{type(self).__name__} has one family over all latents: leave shared=None.")
        self.family = family
        self._needs_shared = shared is not None
        self.shared_family: Family = FullRank() if shared is None else shared
        self.plate = plate
        self._signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
        self.latents: Latents | None = None
        self.shared: Latents | None = None
        self.holds_data = True

    @abstractmethod
    def lambdas(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """λ, shape (B, family.size) for the B rows of x, or (family.size,) for all the data. Arguments as in `q`."""

    def q(self, x: Tensor, index: Tensor | None = None) -> TorchDistribution:
        """q_λ(h | x) over the packed unconstrained latents, or over the local ones alone if there are shared ones.

        Args:
            x: data rows.
            index: positions of these rows in the whole data; needed if λ is looked up by position.
        """
        return self.family(self.lambdas(x, index))

    def q_shared(self) -> TorchDistribution:
        """q over the packed unconstrained latents outside the data plate.

        Raises:
            ValueError: if the model has none.
        """
        if self.shared is None:
            raise ValueError(
                f"this {type(self).__name__} guide has no latents outside the plate {self.plate!r}: use q(x) instead."
            )
        return self.shared_family(self.shared_lam)

    def q_given(self, x: Tensor, index: Tensor | None, shared: Tensor) -> TorchDistribution:
        """`q` given a draw of the packed shared latents, shape (*, shared dim); by default independent of it."""
        return self.q(x, index)

    def lambdas_given(self, x: Tensor, index: Tensor | None, shared: Tensor) -> Tensor:
        """The λ of `q_given`, shape (*, B, family.size): family(lambdas_given(…)) is q_given(…)."""
        return self.lambdas(x, index)

    @abstractmethod
    def make_parameters(self, x: Tensor) -> None:
        """Makes the parameters of λ, when the dimension of the family is known. `x` holds rows of the data."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Finds the model's latents by one call with these arguments, and makes λ. Later calls do nothing."""
        if self.latents is not None:
            return
        x, index, _ = self._call(args, kwargs)
        latents = Latents(self.model, args, kwargs, plate=self.plate if self.local else None, discrete=self.family.discrete)
        if not self.local and index is not None and self.plate in latents.plate_sizes:
            raise ValueError(
                f"{type(self).__name__} has one λ for all the data, and the model has latents inside the plate "
                f"{self.plate!r}: fit it without minibatches, or use Local or Amortized."
            )
        unbound = self.family
        unbound_shared = self.shared_family
        shared = Latents(self.model, args, kwargs, plate=self.plate, shared=True) if self.local else None
        if self._needs_shared and not (shared is not None and shared.sites):
            raise ValueError(
                f"{type(self).__name__}: shared is given, but the model has no latents outside the plate {self.plate!r}: "
                "leave shared=None."
            )
        self.family = self.family.over(latents.dim)
        self.latents = latents
        if shared is not None and shared.sites:
            self.shared = shared
            self.shared_family = self.shared_family.over(shared.dim)
            self.shared_lam = nn.Parameter(self.shared_family.start())
        self.holds_data = self.plate in latents.observed_plates
        try:
            self._check_plate()
            self.make_parameters(x)
        except BaseException:
            self.latents, self.family = None, unbound
            self.shared, self.shared_family = None, unbound_shared
            raise
        self.to(dtype=latents.dtype, device=latents.device)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples h ~ q at the model's sites. Takes the model's arguments."""
        self.setup(*args, **kwargs)
        assert self.latents is not None
        x, index, size = self._call(args, kwargs)
        n = size if size is not None or not isinstance(x, Tensor) or not x.dim() else len(x)
        if not self.local:
            built_for = self.latents.plate_sizes.get(self.plate, n)
            if n != built_for:
                raise ValueError(
                    f"this {type(self).__name__} guide was built for {built_for} data, but there are {n}: build a guide for "
                    "these data."
                )
            return self.latents.sample(self.q(x, index), None)[0]
        values: dict[str, Tensor] = {}
        if not self.holds_data:
            n, index = self.latents.plate_sizes[self.plate], None
        if self.shared is None:
            q = self.q(x, index)
        else:
            values, packed = self.shared.sample(self.q_shared(), None, name="_shared")
            q = self.q_given(x, index, packed)
        plate = pyro.plate(self.plate, n, subsample=index, dim=-1)
        return {**values, **self.latents.sample(q, plate)[0]}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that refers to the same model."""
        memo.setdefault(id(self.model), self.model)
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        rename(new)
        return new

    def _check_plate(self) -> None:
        """Raises if this source cannot have a λ for each member of the plate."""

    def _call(self, args: Any, kwargs: Any) -> tuple[Any, Tensor | None, int | None]:
        """The data, their index and the size of the whole data, from the arguments of a call."""
        arguments = self._signature.bind(*args, **kwargs).arguments
        x = next(iter(arguments.values()), None)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
        return x, arguments.get("index"), arguments.get("size")
