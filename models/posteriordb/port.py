"""The contract of a port: a model that reproduces a posterior of posteriordb."""

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
    """A model of posteriordb, in float64.

    `quantities` maps draws of the latents to the quantities of the reference draws; `latents` is its inverse.
    """

    entry: ClassVar[str]
    """Name of the posterior in posteriordb."""

    @classmethod
    @abstractmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        """The model and its x, from the data of the entry.

        Raises:
            ValueError: if the data lack a key of this entry, or one has the wrong shape.
        """

    def latents(self, quantities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latents, from draws of the quantities: the inverse of `quantities`."""
        return dict(quantities)

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        raise ValueError(f"{cls.__name__} takes only the data of {cls.entry}: load them with models.posteriordb.problem.")

    @classmethod
    def column(cls, data: Mapping[str, Any], key: str, shape: Sequence[int] = (-1,)) -> Tensor:
        """The value of `key` as a float64 tensor of `shape`, in which −1 stands for any length.

        Raises:
            ValueError: if the key is missing or its value has another shape.
        """
        if key not in data:
            raise ValueError(f"{cls.__name__}: the data of {cls.entry} need {key!r}, but hold {sorted(data)}.")
        value = torch.as_tensor(data[key], dtype=torch.float64)
        if value.dim() != len(shape) or any(want not in (-1, got) for want, got in zip(shape, value.shape, strict=True)):
            raise ValueError(f"{cls.__name__}: {key!r} has shape {tuple(value.shape)}, but {tuple(shape)} is expected.")
        return value
