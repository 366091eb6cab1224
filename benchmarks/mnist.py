"""The one-layer VAE of the IWAE paper on dynamically binarised MNIST, trained for at most half an hour on a CPU.

    TAUT_DATA=folder python benchmarks/mnist.py --weights folder

Trains two nets, one by the ELBO and one by the importance-weighted bound; skips a net whose weights are in the folder. Writes
two tables to RESULTS.md: the bounds of both nets on the first 1000 test images, and the gaps of the first net on the first
100, with a Gaussian and with a flow as q and the same frozen decoder.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from pyro.infer import TraceMeanField_ELBO
from results import record
from torch import Tensor, nn

from guides import MLP, Amortized, Flow, MeanField
from inference import Ascent, Gaps, elbo, fit, gaps, iwae
from inference.objectives import IWAE
from models import VAE, decoders
from models.images import binarise, mnist

DRAWS = 5000
"""Draws for each importance-weighted bound."""


def pair(*, seed: int) -> tuple[VAE, Amortized]:
    """The net of Burda, Grosse & Salakhutdinov (2016): 50 latents; two hidden layers of 200 tanh units in each net."""
    torch.manual_seed(seed)
    model = VAE((784,), 50, decoder=decoders.MLP((200, 200)))
    return model, Amortized(model, MeanField(scale=1.0), MLP((200, 200)))


def train(file: Path, *, objective: Any, steps: int, lr: float, batch_size: int, seed: int) -> None:
    """Fits the pair and saves its weights, settings and training time."""
    x = mnist().x.flatten(1)
    model, guide = pair(seed=seed)
    model.start_at(x)
    begin, cpu = time.perf_counter(), time.process_time()
    done = fit(
        model,
        guide,
        x,
        steps=steps,
        lr=lr,
        objective=objective,
        batch_size=batch_size,
        transform=binarise,
        seed=seed,
        progress=True,
    )
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "guide": guide.state_dict(),
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "settings": {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed},
        "nelbo": float(done.nelbo[-steps // 100 :].mean() / len(x)),
    }
    torch.save(state, file)
    print(f"{steps} steps in {state['seconds']:.0f} s; training loss {state['nelbo']:.3f} nats")


def test_images(count: int) -> Tensor:
    """The first test images, binarised once with a fixed seed, so that all tables use the same data."""
    return binarise(mnist(train=False).x.flatten(1), seed=0)[:count]


def bounds(name: str, state: dict[str, Any]) -> str:
    """A row of the first table: the importance-weighted bound, which the literature reports as −log p(x), and the ELBO."""
    model, guide = restored(state)
    x, settings = test_images(1000), state["settings"]
    tight = iwae(model, guide, x, draws=DRAWS)
    loose = elbo(model, guide, x, draws=100)
    epochs = settings["steps"] * settings["batch_size"] / 60_000
    return (
        f"| {name} | {-tight.mean:.2f} ± {tight.mean_se:.2f} | {-loose.value / len(x):.2f} ± {loose.se / len(x):.2f} "
        f"| {float(tight.ess.median()):.0f} | {epochs:.0f} | {state['seconds'] / 60:.1f} | {state['cpu_seconds'] / 60:.1f} |"
    )


def restored(state: dict[str, Any]) -> tuple[VAE, Amortized]:
    """Rebuilds a pair from its saved weights."""
    model, guide = pair(seed=state["settings"]["seed"])
    model.load_state_dict(state["model"])
    guide.setup(test_images(2))
    guide.load_state_dict(state["guide"])
    return model, guide


def with_flow(model: VAE, guide: Amortized) -> Amortized:
    """A guide of flows that starts at nearly the same Gaussians as `guide`: its encoder has more outputs, near zero."""
    encoder = copy.deepcopy(guide.encoder)
    last = encoder[-1]
    flow = Amortized(model, Flow(scale=1.0), nn.Sequential(*encoder[:-1], nn.Linear(last.in_features, 1)))
    family = flow.family.over(model.latents)
    wider = nn.Linear(last.in_features, family.size)
    with torch.no_grad():
        wider.weight.mul_(0.01)
        wider.bias.zero_()
        wider.weight[: last.out_features] = last.weight
        wider.bias[: last.out_features] = last.bias
    return Amortized(model, Flow(scale=1.0), nn.Sequential(*encoder[:-1], wider))


def gap_table(model: VAE, guide: Amortized, *, encoder_steps: int) -> list[str]:
    """Gaps of 100 test images."""
    x, train_x = test_images(100), binarise(mnist().x.flatten(1), seed=1)
    lines = ["| guide | log p(x) by | log p(x) | approximation | amortization | optimisation |", "|---|---|---|---|---|---|"]
    for name, candidate in (("factorised Gaussian", guide), ("flow", with_flow(model, guide))):
        begin = time.perf_counter()
        found = gaps(
            model,
            candidate,
            x,
            train=train_x,
            encoder_steps=encoder_steps,
            batch_size=100,
            ascent=Ascent(steps=6000, lr=0.01),
            draws=2000,
            evidence_draws=DRAWS,
        )
        lines.append(_row(f"{name} ({time.perf_counter() - begin:.0f} s)", found))
    return [
        *lines,
        "| factorised Gaussian, Cremer et al. (2018) | best of IWAE, AIS | – | 1.43 | 1.34 | – |",
        "| flow, Cremer et al. (2018) | best of IWAE, AIS | – | 1.44 | 1.41 | – |",
        "",
        "First 100 test images; nats per datum ± Monte Carlo standard error. A copy of each encoder was trained for",
        f"{encoder_steps} more steps on the training images, with the decoder frozen. The flow's encoder starts at the",
        "Gaussian's, so its optimisation gap is the gain from this training. A negative optimisation gap means that the",
        "training lost ELBO on these test images. The λ of a flow are the weights of a small net for each image, which the",
        "encoder has to predict: the flow loses in amortization what it gains in approximation.",
    ]


def _row(name: str, found: Gaps) -> str:
    parts = " | ".join(f"{part.mean:.3f} ± {part.mean_se:.3f}" for part in found.parts.values())
    return f"| {name} | {found.evidence_by} | {found.evidence.mean:.2f} ± {found.evidence.mean_se:.2f} | {parts} |"


def report(states: dict[str, dict[str, Any]], *, encoder_steps: int) -> None:
    """Writes both tables."""
    settings = states["VAE"]["settings"]
    lines = [
        "## The VAE on dynamically binarised MNIST",
        "",
        "| model, objective | −log p(x), nats | −ELBO, nats | effective draws | epochs | minutes | CPU minutes |",
        "|---|---|---|---|---|---|---|",
        *(bounds(name, state) for name, state in states.items()),
        "| VAE, Burda et al. (2016), all test images | 86.76 | – | – | 3280 | – | – |",
        "| IWAE, k = 5, Burda et al. (2016), all test images | 85.54 | – | – | 3280 | – | – |",
        "",
        f"First 1000 test images, {DRAWS} samples each; ± is the Monte Carlo error. Adam from {settings['lr']} to 0 along a",
        f"cosine, batch {settings['batch_size']}, seed {settings['seed']}, float32, on a shared machine.",
        "",
        "### Where the gap of the VAE comes from",
        "",
        *gap_table(*restored(states["VAE"]), encoder_steps=encoder_steps),
    ]
    record(__file__, "\n".join(lines))


RUNS: dict[str, tuple[str, Any, int]] = {
    "VAE": ("vae.pt", TraceMeanField_ELBO(), 180_000),
    "IWAE, k = 5": ("iwae.pt", IWAE(5), 105_000),
}
"""File, objective and steps of each training; either takes at most half an hour."""


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--weights", type=Path, default=Path(), help="folder of trained weights")
    options.add_argument("--lr", type=float, default=2e-3, help="learning rate at the first step")
    options.add_argument("--batch-size", type=int, default=100, help="images in a minibatch")
    options.add_argument("--encoder-steps", type=int, default=3000, help="further steps of the encoder when gaps are measured")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    found = {}
    for name, (file, objective, steps) in RUNS.items():
        if not (given.weights / file).exists():
            train(
                given.weights / file,
                objective=objective,
                steps=steps,
                lr=given.lr,
                batch_size=given.batch_size,
                seed=given.seed,
            )
        found[name] = torch.load(given.weights / file, weights_only=True)
    report(found, encoder_steps=given.encoder_steps)
