"""The linear VAE against its closed form, and the amortization gap of encoders of two widths.

python benchmarks/encoders.py
"""

from __future__ import annotations

import torch
from pyro.infer import TraceMeanField_ELBO
from results import record

from guides import MLP, Amortized, Linear, MeanField
from inference import Gaps, analytic_elbo, fit, gaps
from models import VAE, LinearVAE, datasets, decoders


def linear_vae() -> list[str]:
    """Compares SVI from random weights with probabilistic PCA at its maximum likelihood."""
    digits = datasets.digits()
    model, x = LinearVAE.from_dataset(digits._replace(x=digits.x.double()))
    best = float(model.optimum(x).log_evidence(x).mean())
    start = best - float(model.log_evidence(x).mean().detach())
    guide = Amortized(model, MeanField(scale=1.0), Linear())
    fit(model, guide, x, steps=4000, lr=0.02, batch_size=256, objective=TraceMeanField_ELBO())
    with torch.no_grad():
        left = best - float(model.log_evidence(x).mean())
    x = x[:200]
    found = gaps(model, guide, x, draws=500)
    with torch.no_grad():
        whole = float((model.log_evidence(x) - analytic_elbo(model, guide.q(x), x)).mean())
    parts = sum(part.mean for part in found.parts.values())
    return [
        "### LinearVAE on digits, 8 latents, 4000 steps of SVI from random weights (float64, seed 0)",
        "",
        f"Closed-form log p(x) at the optimum: {best:.3f} nats per datum. SVI starts {start:.1f} nats below it and ends",
        f"{left:.4f} below. The gap log p(x) − ELBO is {whole:.4f} in closed form; the three measured gaps of 200 data add",
        f"up to {parts:.4f} ± {found.elbo.mean_se:.4f}.",
    ]


def widths() -> list[str]:
    """Measures the gaps of a narrow and a wide encoder on the same frozen decoder."""
    torch.manual_seed(0)
    truth = VAE((20,), 3, decoder=decoders.MLP((16,))).double()
    with torch.no_grad():
        for parameter in truth.decoder.parameters():
            parameter.mul_(4.0)
    x = truth.simulate(400, seed=1)[1]
    lines = ["| hidden units | approximation | amortization |", "|---|---|---|"]
    for hidden in (1, 200):
        guide = Amortized(truth, MeanField(scale=0.7), MLP((hidden,)))
        guide.setup(x)
        found = gaps(truth, guide, x, encoder_steps=3000, encoder_lr=3e-3, draws=400, evidence_draws=2000)
        lines.append(f"| {hidden} | {_pm(found, 'approximation')} | {_pm(found, 'amortization')} |")
    return [
        "### Encoders of one layer on a frozen decoder",
        "",
        *lines,
        "",
        "400 data simulated from a VAE with 3 latents and 20 binary entries. Factorised Gaussian; 3000 steps for each",
        "encoder; evidence by IWAE with 2000 draws from the best λ. Nats per datum ± Monte Carlo standard error, seed 0.",
    ]


def _pm(found: Gaps, name: str) -> str:
    part = found.parts[name]
    return f"{part.mean:.4f} ± {part.mean_se:.4f}"


if __name__ == "__main__":
    record(__file__, "\n".join(["## Encoders and their gaps", "", *linear_vae(), "", *widths()]))
