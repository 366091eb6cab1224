"""Pictures of VAEs show the right numbers."""

from __future__ import annotations

import pytest
import torch

from guides import MLP, Amortized, Flow, MeanField
from inference import fit
from inference.latent_pictures import (
    active_units,
    active_units_picture,
    manifold,
    prior_samples,
    reconstructions,
    traversals,
)
from models import VAE, datasets, decoders


@pytest.fixture(scope="module")
def pair():
    x = datasets.digits(binarised=True).x[:300]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAE((64,), 2, decoder=decoders.MLP((32,)))
        guide = Amortized(model, MeanField(scale=1.0), MLP((32,)))
        fit(model, guide, x, steps=300, lr=0.02)
    return model, guide, x


def canvas(figure):
    return torch.from_numpy(figure.axes[0].images[0].get_array().copy())


def test_reconstructions_are_nearer_to_their_data_than_to_others(pair):
    model, guide, x = pair
    shown = canvas(reconstructions(model, guide, x))
    assert shown.shape == (16, 160, 3)
    top, bottom = (shown[rows, :, 0].unflatten(1, (20, 8)).transpose(0, 1) for rows in (slice(8), slice(8, 16)))
    assert torch.equal(top.flatten(1).float(), x[:20])
    right = (bottom - top).square().sum()
    wrong = (bottom - top.roll(1, 0)).square().sum()
    assert right < 0.9 * wrong


def test_prior_samples_and_manifold_are_decoded_latents(pair):
    model, _, _ = pair
    assert canvas(prior_samples(model, side=3)).shape == (24, 24, 3)
    shown = canvas(manifold(model, side=5))
    with torch.no_grad():
        middle = model.decode(torch.zeros(2)).mean.reshape(8, 8)
    torch.testing.assert_close(shown[16:24, 16:24, 0], middle, atol=1e-5, rtol=0.0)


def test_traversals_move_one_latent(pair):
    """One line for each latent, the most active first; the other latent stays where the first datum's posterior has it."""
    model, guide, x = pair
    shown = canvas(traversals(model, guide, x, steps=5))
    assert shown.shape == (16, 40, 3)
    with torch.no_grad():
        means = guide.q(x).mean
        for line, latent in enumerate(means.var(0).argsort(descending=True)):
            for column, value in enumerate(torch.linspace(-3, 3, 5)):
                h = means[0].clone()
                h[latent] = value
                tile = shown[8 * line : 8 * line + 8, 8 * column : 8 * column + 8, 0]
                torch.testing.assert_close(tile, model.decode(h).mean.reshape(8, 8), atol=1e-5, rtol=0.0)
    assert (shown[:, :8] - shown[:, 32:]).abs().max() > 0.1


def test_manifold_needs_two_latents():
    with pytest.raises(ValueError, match="has 3; use traversals"):
        manifold(VAE((64,), 3))


def test_data_that_are_not_images_are_refused():
    with pytest.raises(ValueError, match="is no image"):
        prior_samples(VAE((5,), 2), side=2)


def test_colour_and_plain_images():
    assert canvas(prior_samples(VAE((3, 8, 4), 2), side=2)).shape == (16, 8, 3)
    assert canvas(prior_samples(VAE((8, 4), 2), side=2)).shape == (16, 8, 3)


@pytest.mark.parametrize("family", [MeanField(scale=1.0), Flow(scale=1.0)])
def test_an_unused_latent_is_not_active(family, tmp_path):
    """An encoder that ignores x has no active unit; one that shifts a single mean has one."""
    model, x = VAE((4,), 3), torch.eye(4).repeat(50, 1)
    guide = Amortized(model, family, MLP(()))
    guide.setup(x)
    with torch.no_grad():
        for parameter in guide.encoder.parameters():
            parameter.zero_()
        assert (active_units(guide, x) < 0.05).all()
        guide.encoder[-1].weight[1, 0] = 5.0
    assert (active_units(guide, x) > 0.5).tolist() == [False, True, False]
    active_units_picture(guide, x).savefig(tmp_path / "units.png")
