"""nutpie's NUTS."""

from __future__ import annotations

import numpy as np
import torch

from ..programs.arguments import checked
from ..programs.log_joint import LogJoint
from .base import MAX_DENSE_DIM, Chains, Length, package, start

__all__ = ["nutpie_nuts"]


@checked
def nutpie_nuts(joint: LogJoint, length: Length) -> Chains:
    """nutpie's NUTS, one chain after the other. Its mass matrix also learns from gradients, so it needs less warmup.

    nutpie calls back to the model for density and score in a thread of its own. Only one chain runs at a time, because Pyro
    has one stack of handlers for all threads.

    Reference: Seyboldt, Carlson & Carpenter, "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence" (2026).
    """
    nutpie, pyfunc = package("nutpie"), package("nutpie.compiled_pyfunc")
    both = torch.func.grad_and_value(joint.at)
    starts = iter(start(joint, length.chains).double().numpy())

    def density(u: np.ndarray) -> tuple[float, np.ndarray]:
        score, value = both(torch.from_numpy(u.copy()).to(joint.latents.dtype))
        return float(value), score.double().numpy()

    compiled = pyfunc.from_pyfunc(
        joint.dim,
        lambda: density,
        lambda *_: lambda u: {"u": u},
        [np.dtype("float64")],
        [(joint.dim,)],
        ["u"],
        make_initial_point_fn=lambda _: next(starts),
    )
    with joint.evaluated():
        found = nutpie.sample(
            compiled,
            draws=length.draws,
            tune=length.warmup,
            chains=length.chains,
            cores=1,
            seed=length.seed,
            target_accept=length.target_accept,
            low_rank_modified_mass_matrix=joint.dim <= MAX_DENSE_DIM,
            save_warmup=False,
            progress_bar=length.progress,
        )
    draws = np.array(found.posterior["u"].values, dtype=np.float64)
    return Chains(torch.from_numpy(draws), int(found.sample_stats["diverging"].values.sum()))
