"""`taut fit`: fit one guide, and split its ELBO into reconstruction and complexity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from guides import Guide, Local
from models import VAE, Tractable

from ..diagnostics.latent_pictures import active_units_picture, manifold, prior_samples, reconstructions, traversals
from ..elbos.estimate import elbo
from . import names, options
from .main import app, console, reporting_errors
from .output import check_folder, complete_folder, plain_table, plus_minus
from .pairs import fit_pair

__all__ = ["fit_one"]


@app.command("fit")
@reporting_errors()
def fit_one(
    *,
    model: options.Model = "VAE",
    data: options.Data = None,
    guide: options.Guide = "Amortized(MeanField, MLP)",
    steps: options.Steps = None,
    lr: options.LearningRate = None,
    objective: options.Objective = None,
    optimiser: options.Optimiser = None,
    stop: options.Stop = None,
    start: options.Start = None,
    restarts: options.Restarts = 1,
    batch_size: options.BatchSize = None,
    draws: options.Draws = 100,
    seed: options.Seed = 0,
    out: options.Out = Path("fit"),
    overwrite: options.Overwrite = False,
) -> None:
    """Fits one guide, and the model's own parameters with it, and splits its ELBO into reconstruction and complexity.

    Writes the weights, the loss of each step and, for a VAE, plots of its latent space. Without --stop, the fit takes
    2000 steps from a learning rate of 0.01.

    Example:

        taut fit --model VAE --data "digits(binarised=True)" --guide "Amortized(MeanField, MLP((200,)))" --batch-size 100
    """
    method = options.fit_options(
        steps=steps, lr=lr, stop=stop, start=start, restarts=restarts, objective=objective, optimiser=optimiser
    )
    check_folder(out, overwrite=overwrite)
    title, instance, x = names.problem(model, data)
    factory = names.parse_guide(guide)
    fitted = fit_pair(instance, factory, x, seed=seed, batch_size=batch_size, progress=console.is_terminal, **method)
    terms = elbo(fitted.model, fitted.guide, x, draws=draws, seed=seed).total
    effort = f"{fitted.steps} steps, {fitted.seconds:.1f} s"
    table = plain_table(f"{title}, {guide}\nN = {len(x)}, {effort}; nats per datum", "quantity", "")
    for name in ("elbo", "reconstruction", "complexity"):
        table.add_row(name, plus_minus(getattr(terms, name) / len(x), getattr(terms, f"{name}_se") / len(x)))
    if isinstance(instance, Tractable):
        with torch.no_grad():
            table.add_row("log p(x), exact", f"{float(instance.log_evidence(x).sum()) / len(x):.4f}")
    console.print(table)
    console.print(f"Stopping reason: {fitted.stop.reason}.", soft_wrap=True)
    with complete_folder(out) as folder:
        torch.save(instance.state_dict(), folder / "model.pt")
        if isinstance(fitted.guide, torch.nn.Module):
            torch.save(fitted.guide.state_dict(), folder / "guide.pt")
        pd.DataFrame({"nelbo": fitted.nelbo.numpy()}).to_csv(folder / "nelbo.csv", index_label="step")
        _plots(instance, fitted.guide, x, folder)
    console.print(f"Weights and plots are in {out}.", soft_wrap=True)


def _plots(model: Any, guide: Any, x: Tensor, folder: Path) -> None:
    if not isinstance(model, VAE) or not isinstance(guide, Guide) or guide.family.discrete:
        return
    active_units_picture(guide, x).savefig(folder / "active-units.png", dpi=150)
    try:
        prior_samples(model).savefig(folder / "prior-samples.png", dpi=150)
    except ValueError:  # x_i is not an image
        return
    local = isinstance(guide, Local)
    traversals(model, guide, x if local else x[:500]).savefig(folder / "traversals.png", dpi=150)
    if not local:
        reconstructions(model, guide, x).savefig(folder / "reconstructions.png", dpi=150)
    if model.latents == 2:
        manifold(model).savefig(folder / "manifold.png", dpi=150)
