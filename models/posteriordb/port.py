"""What a port of a posteriordb posterior adds to a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..base import Model
from ..datasets import Dataset

__all__ = ["Port"]


class Port(Model):
    """A model that is one of posteriordb's, in float64, with the quantities that the reference draws hold.

    `quantities` turns draws of the latents into the reference's; `latents` turns them back.
    """

    entry: ClassVar[str]
    """Name of the posterior in posteriordb."""

    @classmethod
    @abstractmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        """The model, and its x, from the entry's data.

        Raises:
            ValueError: if the data have not the keys of this entry.
        """

    def latents(self, quantities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latents of draws of the quantities: the inverse of `quantities`."""
        return dict(quantities)

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        raise ValueError(f"{cls.__name__} is made for {cls.entry} of posteriordb: use models.posteriordb.")

    @classmethod
    def column(cls, data: Mapping[str, Any], key: str, shape: Sequence[int] = (-1,)) -> Tensor:
        """One entry of the data as a float64 tensor of `shape`, where −1 is any size.

        Raises:
            ValueError: if it is missing, or of another shape.
        """
        if key not in data:
            raise ValueError(f"{cls.__name__}: the data of {cls.entry} need {key!r}, but hold {sorted(data)}.")
        value = torch.as_tensor(data[key], dtype=torch.float64)
        if value.dim() != len(shape) or any(want not in (-1, got) for want, got in zip(shape, value.shape, strict=True)):
            raise ValueError(f"{cls.__name__}: {key!r} has shape {tuple(value.shape)}, but {tuple(shape)} is expected.")
        return value
