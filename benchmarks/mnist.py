"""The one-layer VAE of the IWAE paper on dynamically binarised MNIST, trained for at most half an hour on a CPU.

    TAUT_DATA=folder python benchmarks/mnist.py --weights mnist.pt

Trains (unless the weights are there already), then writes test bounds to its section of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import TraceMeanField_ELBO

from guides import MLP, Amortized, MeanField
from inference import fit
from models import VAE, decoders
from models.images import binarise, mnist


def pair(*, seed: int) -> tuple[VAE, Amortized]:
    """The net of Burda, Grosse & Salakhutdinov (2016): 50 latents, two hidden layers of 200 tanh units on either side."""
    torch.manual_seed(seed)
    model = VAE((784,), 50, decoder=decoders.MLP((200, 200)))
    return model, Amortized(model, MeanField(scale=1.0), MLP((200, 200)))


def train(file: Path, *, steps: int, lr: float, batch_size: int, seed: int) -> None:
    """Fits the pair and saves its weights and the time it took."""
    x = mnist().x.flatten(1)
    model, guide = pair(seed=seed)
    model.start_at(x)
    begin = time.perf_counter()
    done = fit(
        model,
        guide,
        x,
        steps=steps,
        lr=lr,
        objective=TraceMeanField_ELBO(),
        optimiser=partial(torch.optim.Adam, fused=True),
        batch_size=batch_size,
        transform=binarise,
        seed=seed,
        progress=True,
    )
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "guide": guide.state_dict(),
        "seconds": time.perf_counter() - begin,
        "settings": {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed},
        "nelbo": done.nelbo[-steps // 100 :].mean() / len(x),
    }
    torch.save(state, file)
    print(f"{steps} steps in {state['seconds']:.0f} s; training NELBO {state['nelbo']:.3f} nats")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--weights", type=Path, default=Path("mnist.pt"))
    options.add_argument("--steps", type=int, default=180_000)
    options.add_argument("--lr", type=float, default=2e-3)
    options.add_argument("--batch-size", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    settings = options.parse_args()
    if not settings.weights.exists():
        train(settings.weights, steps=settings.steps, lr=settings.lr, batch_size=settings.batch_size, seed=settings.seed)
