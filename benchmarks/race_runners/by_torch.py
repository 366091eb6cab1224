"""The cases in hand-written PyTorch: each loss is written out and does only the arithmetic that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from .data import BATCH, RATE, data

__all__ = ["by_torch"]

Loss = Callable[..., Tensor]


def normal(value: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """log N(value; loc, scale²), summed."""
    scale = torch.as_tensor(scale)
    return (-(((value - loc) / scale) ** 2) / 2 - scale.log() - log(2 * pi) / 2).sum()


def local(x: Tensor) -> tuple[list[Tensor], Loss]:
    loc, raw = torch.zeros(100, requires_grad=True), torch.zeros(100, requires_grad=True)

    def loss() -> Tensor:
        h = loc + raw.exp() * torch.randn(100)
        return normal(h, loc, raw.exp()) - normal(h, 0.0, 1.0) - normal(x, h, 1.0)

    return [loc, raw], loss


def schools_joint(h: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
    mu, tau, effect = h[0], h[1].exp(), h[2:]
    half_cauchy = log(2 / (pi * 5.0)) - torch.log1p((tau / 5.0) ** 2)
    return normal(mu, 0.0, 5.0) + half_cauchy + h[1] + normal(effect, 0.0, 1.0) + normal(y, mu + tau * effect, sigma)


def logistic_joint(w: Tensor, inputs: Tensor, y: Tensor) -> Tensor:
    return normal(w, 0.0, 1.0) - binary_cross_entropy_with_logits(inputs @ w, y, reduction="sum")


def factorised(joint: Loss, size: int, args: tuple[Tensor, ...]) -> tuple[list[Tensor], Loss]:
    """Mean field over `size` unconstrained latents, parametrised as Pyro's AutoNormal."""
    loc, raw = torch.zeros(size, requires_grad=True), torch.full((size,), -2.0, requires_grad=True)

    def loss() -> Tensor:
        h = loc + softplus(raw) * torch.randn(size)
        return normal(h, loc, softplus(raw)) - joint(h, *args)

    return [loc, raw], loss


def full_rank(joint: Loss, size: int, args: tuple[Tensor, ...]) -> tuple[list[Tensor], Loss]:
    """Full rank over `size` unconstrained latents, parametrised as Pyro's AutoMultivariateNormal."""
    loc, raw = torch.zeros(size, requires_grad=True), torch.full((size,), -2.0, requires_grad=True)
    lower = torch.eye(size).requires_grad_()

    def loss() -> Tensor:
        scale = softplus(raw)
        tril = scale[:, None] * (lower.tril(-1) + torch.eye(size))
        h = loc + tril @ torch.randn(size)
        z = torch.linalg.solve_triangular(tril, (h - loc)[:, None], upper=False)
        return normal(z, 0.0, 1.0) - scale.log().sum() - joint(h, *args)

    return [loc, raw, lower], loss


def vae(pixels: int, hidden: tuple[int, ...], size: int, total: int) -> tuple[list[Tensor], Loss]:
    def net(widths: tuple[int, ...]) -> nn.Sequential:
        layers = [layer for k, n in enumerate(widths[1:]) for layer in (nn.Linear(widths[k], n), nn.Tanh())]
        return nn.Sequential(*layers[:-1])

    encoder, decoder = net((pixels, *hidden, 2 * size)), net((size, *hidden[::-1], pixels))

    def loss(x: Tensor) -> Tensor:
        loc, raw = encoder(x).chunk(2, -1)
        h = loc + raw.exp() * torch.randn_like(loc)
        likelihood = binary_cross_entropy_with_logits(decoder(h), x, reduction="sum")
        return total / len(x) * (normal(h, loc, raw.exp()) - normal(h, 0.0, 1.0) + likelihood)

    return [*encoder.parameters(), *decoder.parameters()], loss


def problem(case: str, args: tuple[Tensor, ...]) -> tuple[list[Tensor], Loss]:
    """Parameters and loss of a case."""
    if case == "a":
        return local(*args)
    if case == "b1":
        return factorised(schools_joint, 10, args)
    if case == "b2":
        return full_rank(schools_joint, 10, args)
    if case == "c":
        return full_rank(logistic_joint, 50, args)
    if case == "f":
        return vae(784, (200, 200), 50, len(args[0]))
    return vae(64, (200,), 8, len(args[0]))


def batches(case: str, args: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """The arguments of the loss in each step: a minibatch, all data, or nothing where the loss holds the data."""
    while True:
        if case in BATCH:
            for index in torch.randperm(len(args[0])).split(BATCH[case]):
                yield (args[0][index],)
        else:
            yield args if case == "e" else ()


def by_torch(case: str, steps: int) -> Tensor:
    """The losses of a fit, shape (steps,)."""
    torch.manual_seed(0)
    args = tuple(map(torch.from_numpy, data(case)))
    parameters, loss = problem(case, args)
    adam = torch.optim.Adam(parameters, lr=RATE)
    losses = torch.empty(steps)
    for step, batch in zip(range(steps), batches(case, args), strict=False):
        value = loss(*batch)
        adam.zero_grad()
        value.backward()
        adam.step()
        losses[step] = value.detach()
    return losses
