"""Data sets that ship with scikit-learn, as tensors: available everywhere without a download."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import flag, instance, number, seed_of

__all__ = ["Dataset", "diabetes", "digits", "train_test_split"]


class Dataset(NamedTuple):
    """Rows x, shape (N, d), and their targets y, shape (N,), or None."""

    name: str
    x: Tensor
    y: Tensor | None = None


def digits(*, scaled: bool = True, binarised: bool = False) -> Dataset:
    """1797 handwritten digits of 8 × 8 pixels, x of shape (1797, 64), and their labels.

    Args:
        scaled: divide the pixel values, 0 … 16, by 16.
        binarised: 1 if a pixel is above half its range, else 0 (implies `scaled`).

    Source: Alpaydin & Kaynak, "Optical recognition of handwritten digits" (UCI, 1998), through scikit-learn.
    """
    from sklearn.datasets import load_digits

    scaled, binarised = flag("digits: scaled", scaled), flag("digits: binarised", binarised)
    data = load_digits()
    x = torch.from_numpy(data.data).to(torch.get_default_dtype())
    if scaled or binarised:
        x = x / 16
    if binarised:
        x = (x > 0.5).to(x.dtype)
    return Dataset("digits", x, torch.from_numpy(data.target))


def diabetes() -> Dataset:
    """442 patients: ten covariates x, shape (442, 10), and the progression y of the disease after a year.

    Source: Efron, Hastie, Johnstone & Tibshirani, "Least angle regression" (2004), through scikit-learn.
    """
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    dtype = torch.get_default_dtype()
    return Dataset("diabetes", torch.from_numpy(data.data).to(dtype), torch.from_numpy(data.target).to(dtype))


def train_test_split(data: Dataset, *, test: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Splits the rows at random into a training set and a test set; `test` is the fraction of rows in the test set.

    Raises:
        ValueError: if either set would be empty.
    """
    instance("train_test_split: data", data, Dataset, example="digits()")
    test, seed, n = number("train_test_split: test", test), seed_of("train_test_split: seed", seed), len(data.x)
    held_out = round(test * n)
    if not 0 < held_out < n:
        raise ValueError(f"test={test} of {n} rows leaves a set empty: give a fraction between 0 and 1, or more rows.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))

    def take(index: Tensor) -> Dataset:
        return Dataset(data.name, data.x[index], None if data.y is None else data.y[index])

    return take(order[held_out:]), take(order[:held_out])
