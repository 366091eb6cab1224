"""Image data that no package ships: MNIST and the Olivetti faces, from a file or a public loader."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .arguments import check_dense, flag, seed_of, shown
from .datasets import Dataset

__all__ = ["binarise", "faces", "mnist"]


def mnist(*, train: bool = True, binarised: bool = False, path: Path | str | None = None) -> Dataset:
    """60 000 handwritten digits (10 000 if not `train`), x in [0, 1] of shape (N, 28, 28), and their labels.

    Args:
        train: return the training images rather than the test images, in the official order.
        binarised: draw each pixel as Bernoulli(grey value) with a fixed seed; use `binarise` for new draws in each step.
        path: mnist.npz with x_train, y_train, x_test, y_test in uint8, or its folder. The default is the folder in the
            environment variable TAUT_DATA, or else torchvision, which downloads to ~/.cache/taut.

    Raises:
        FileNotFoundError: if there is neither a file nor torchvision.

    Source: LeCun, Cortes & Burges (CC BY-SA 3.0).
    """
    part, binarised = "train" if flag("mnist: train", train) else "test", flag("mnist: binarised", binarised)
    if file := _file("mnist.npz", path):
        with np.load(file) as data:
            x, y = data[f"x_{part}"], data[f"y_{part}"]
    else:
        try:
            from torchvision.datasets import MNIST
        except ImportError:
            raise FileNotFoundError(
                "mnist.npz was not found: set TAUT_DATA to its folder, pass its path, or install torchvision."
            ) from None
        loaded = MNIST(Path("~/.cache/taut").expanduser(), train=train, download=True)
        x, y = loaded.data.numpy(), loaded.targets.numpy()
    grey = _unit(x)
    return Dataset("mnist", binarise(grey, seed=0) if binarised else grey, torch.from_numpy(y.astype(np.int64)))


def faces(*, path: Path | str | None = None) -> Dataset:
    """400 photographs of 40 people, x in [0, 1] of shape (400, 64, 64), and the number of the person on each.

    Args:
        path: orl_faces_64x64.npz with x in uint8 and subject, or its folder. The default is the folder in the environment
            variable TAUT_DATA, or else scikit-learn's fetcher, which downloads the data.

    Source: Samaria & Harter, "Parameterisation of a stochastic model for human face identification" (1994), AT&T Cambridge.
    """
    if file := _file("orl_faces_64x64.npz", path):
        with np.load(file) as data:
            return Dataset("faces", _unit(data["x"]), torch.from_numpy(data["subject"].astype(np.int64)))
    from sklearn.datasets import fetch_olivetti_faces

    fetched = fetch_olivetti_faces()
    return Dataset("faces", torch.from_numpy(fetched.images).to(torch.get_default_dtype()), torch.from_numpy(fetched.target))


def binarise(x: Tensor, *, seed: int | None = None) -> Tensor:
    """Draws each pixel as Bernoulli(grey value), with a `seed` always the same values, without it from the global state.

    `fit(..., transform=binarise)` is dynamic binarisation: every minibatch is drawn again in every step.

    Raises:
        ValueError: if a grey value is outside [0, 1].

    Reference: Salakhutdinov & Murray, "On the quantitative analysis of deep belief networks" (2008).
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"binarise: x must be a tensor of grey values, but is {shown(x)}.")
    check_dense("binarise: x", x)
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed_of("binarise: seed", seed))
    try:
        return torch.bernoulli(x, generator=generator)
    except RuntimeError as error:
        low, high = float(x.min()), float(x.max())
        if low >= 0 and high <= 1:
            raise
        raise ValueError(
            f"binarise: grey values must lie in [0, 1], but range from {low:g} to {high:g}: rescale x."
        ) from error


def _file(name: str, path: Path | str | None) -> Path | None:
    if path is None:
        folder = os.environ.get("TAUT_DATA")
        file = Path(folder, name) if folder else None
        return file if file is not None and file.is_file() else None
    file = Path(path)
    file = file / name if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: pass the path of {name} or of its folder.")
    return file


def _unit(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x).to(torch.get_default_dtype()) / 255
