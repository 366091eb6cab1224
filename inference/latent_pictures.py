"""Pictures of a VAE's latent space."""

from .diagnostics import active_units
from .diagnostics.latent_pictures import active_units_picture, manifold, prior_samples, reconstructions, traversals

__all__ = ["active_units", "active_units_picture", "manifold", "prior_samples", "reconstructions", "traversals"]
