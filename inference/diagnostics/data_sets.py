"""Many data sets of one model as a single local model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from models import LocalModel, Model
from models.base import data_plate
from models.datasets import Dataset

from ..programs.arguments import checked
from ..programs.log_joint import LogJoint
from ..programs.quantities import quantities
from ..programs.validation import check_count

__all__ = ["DataSets"]


class DataSets(LocalModel):
    """A local model whose datum x_i is a whole data set of another model, and whose h_i holds all latents of that data set.

    The h_i are packed and unconstrained: p(x_i, h_i) is the other model's joint density times the Jacobian. So one call of
    `fit_unseen` fits a separate q to each of many simulated data sets at once, and an `Amortized` guide learns q for any data
    set.

    Args:
        model: the model of one data set, with a proper prior and continuous latents.
        rows: number of data in each data set.

    Raises:
        ValueError: if the model cannot simulate data, or its latents are discrete.
    """

    @checked
    def __init__(self, model: Model, rows: int) -> None:
        super().__init__()
        check_count(rows=rows)
        self._inner = (model,)
        self.rows = rows
        _, x = model.simulate(rows, seed=0)
        self._joint = (LogJoint(model, x),)
        self.support = model.support
        self.register_buffer("origin", x.new_zeros(self.joint.dim, dtype=model.dtype))

    origin: Tensor

    @property
    def inner(self) -> Model:
        """The model of one data set."""
        return self._inner[0]

    @property
    def joint(self) -> LogJoint:
        """The log joint density of one data set and its latents."""
        return self._joint[0]

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (self.rows, *self.inner.data_shape)

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        raise NotImplementedError("DataSets is made from another model: DataSets(model, rows).")

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        raise NotImplementedError("DataSets is made from another model: DataSets(model, rows).")

    def prior(self) -> Tensor:
        """The site ``"h"``, without a density of its own: `likelihood` scores the joint. For draws use `simulate`."""
        ones = torch.ones_like(self.origin)
        return pyro.sample("h", dist.Normal(self.origin, ones).to_event(1).mask(False))

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        """log p(x_i, h_i), shape (*, N). Call it outside the data plate, as `forward` does."""
        if x is None:
            raise ValueError("DataSets only scores data sets, so x is needed: to simulate them, use simulate(n, seed=...).")
        over_sets = torch.func.vmap(lambda u, one: self.joint.at(u, (one,)), in_dims=(0, 0))
        over_draws = torch.func.vmap(over_sets, in_dims=(0, None))
        h = h.expand(*h.shape[:-2], len(x), h.shape[-1])
        many = h.reshape(-1, *h.shape[-2:])
        with pyro.validation_enabled(False):
            try:
                density: Tensor = over_draws(many, x)
            except LinAlgError:
                raise
            except RuntimeError:
                # A model that vmap cannot map: one call for each data set of each draw.
                each = [self.joint.at(u, (one,)) for draw in many for u, one in zip(draw, x, strict=True)]
                density = torch.stack(each)
        return density.reshape(h.shape[:-1])

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """The joint. Arguments as in `Model.forward`; x is required."""
        plate = data_plate(x, index, size)
        with plate:
            h = self.prior()
        # Outside the plate, because the inner model opens its own plates.
        density = self.likelihood(h, x)
        with plate:
            pyro.factor("x", density)
        return density

    @checked
    def simulate(self, n: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """`n` pairs of latents, shape (n, dim), and data sets, shape (n, rows, *data_shape)."""
        check_count(n=n)
        pairs = [self.inner.simulate(self.rows, seed=seed + i) for i in range(n)]
        h = [latents if isinstance(latents, Mapping) else {"h": latents} for latents, _ in pairs]
        values = {name: torch.stack([one[name] for one in h]) for name in h[0]}
        return self.joint.unconstrain(values), torch.stack([x for _, x in pairs])

    def quantities(self, h: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The quantities of the model of one data set: for h of shape (K, N, dim), each of shape (K, N, *shape)."""
        packed: Any = h["h"]
        values = quantities(self.inner, self.joint.constrain(packed.reshape(-1, packed.shape[-1])))
        return {name: value.reshape(*packed.shape[:-1], *value.shape[1:]) for name, value in values.items()}
