"""Many draws of any pair by one call of guide and model, mapped by `torch.func.vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .mapping import NotMappedError, agree, mappable
from .scored_sites import ScoredSite, guide_sites, hold, pair_sites, scored, scored_model
from .traced_pairs import rerun, runs_the_model

__all__ = ["MappedDraws"]


class MappedDraws:
    """Scores draws of a pair in batches, mapped over the pair or, with one call of the guide for each draw, over the model.

    The first batch is compared at two of its draws with Pyro's own traces. A pair with control flow that depends on values,
    with updates in place, or with sites that come and go cannot be mapped.

    Args:
        model, guide, args: the pair, which has made its parameters.
        one, other: the sites of two separate calls.

    Raises:
        NotMappedError: by `draw`, if the pair cannot be mapped.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        one: list[ScoredSite],
        other: list[ScoredSite],
    ) -> None:
        self.model, self.guide, self.args, self.one, self.other = model, guide, args, one, other
        self._whole = self._checked = False

    def draw(self, draws: int) -> list[ScoredSite]:
        """The sites of `draws` draws, which lie in the first dimension of values and densities."""
        if self._checked:
            return self._by_pair(draws) if self._whole else self._by_model(draws)
        rng = torch.get_rng_state()
        try:
            sites, self._whole = self._by_pair(draws), True
            self._check(sites)
        except NotMappedError:
            torch.set_rng_state(rng)
            sites, self._whole = self._by_model(draws), False
            self._check(sites)
        self._checked = True
        return sites

    def _by_pair(self, draws: int) -> list[ScoredSite]:
        def run(_: Tensor) -> list[ScoredSite]:
            return scored(self.model, self.guide, self.args)

        return self._mapped(run, torch.arange(draws))

    def _by_model(self, draws: int) -> list[ScoredSite]:
        if runs_the_model(self.guide):
            raise NotMappedError("its guide runs the model, and cannot be mapped with it")
        runs = [self._drawn() for _ in range(draws)]
        traces, own = [trace for trace, _ in runs], [sites for _, sites in runs]
        names = [name for name, site in traces[0].nodes.items() if site["type"] == "sample" and not site["is_observed"]]
        if any([s.signature for s in sites] != [s.signature for s in own[0]] for sites in own):
            raise NotMappedError("the guide's sites differ between draws")
        try:
            values = {name: torch.stack([trace.nodes[name]["value"] for trace in traces]) for name in names}
            q = [
                sites[0]._replace(
                    value=torch.stack([s.value for s in sites]), log_prob=torch.stack([s.log_prob for s in sites])
                )
                for sites in zip(*own, strict=True)
            ]
        except (RuntimeError, TypeError, KeyError) as error:
            raise NotMappedError("the shapes of the guide's sites differ between draws") from error

        def run(value: dict[str, Tensor]) -> list[ScoredSite]:
            drawn = poutine.Trace()
            for name in names:
                drawn.add_node(name, **{**traces[0].nodes[name], "value": value[name]})
            return scored_model(self.model, drawn, self.args)

        return q + self._mapped(run, values)

    def _drawn(self) -> tuple[poutine.Trace, list[ScoredSite]]:
        trace = poutine.trace(self.guide).get_trace(*self.args)
        return trace, guide_sites(trace)

    def _mapped(self, run: Callable[[Any], list[ScoredSite]], points: Any) -> list[ScoredSite]:
        """The sites that `run` finds, mapped over the first dimension of `points`."""
        found: list[ScoredSite] = []

        def densities(point: Any) -> tuple[list[Tensor], list[Tensor]]:
            found[:] = run(point)
            return [site.log_prob for site in found], [site.value for site in found]

        with mappable():
            log_probs, values = torch.func.vmap(densities, randomness="different")(points)
        return [
            site._replace(log_prob=log_prob, value=value)
            for site, log_prob, value in zip(found, log_probs, values, strict=True)
        ]

    def _check(self, sites: list[ScoredSite]) -> None:
        """Raises unless the densities of the first and the last draw are those of Pyro's traces at these draws."""
        if [site.signature for site in self.one] != [site.signature for site in sites]:
            raise NotMappedError("its sites or plates differ between draws")
        for site, one, other in zip(sites, self.one, self.other, strict=True):
            same = site.value.is_floating_point() and len(site.value) > 1 and bool((site.value[0] == site.value[1:]).all())
            if site.role != "likelihood" and same and not torch.equal(one.value, other.value):
                raise NotMappedError(f"{site.name!r} has the same value in all draws")
        for draw in {0, len(sites[0].value) - 1}:
            try:
                replayed = self._replayed(sites, draw)
            except (RuntimeError, ValueError, KeyError, NotImplementedError) as error:
                raise NotMappedError("its density at a given draw cannot be computed again") from error
            mapped = sites if self._whole else [site for site in sites if site.role != "q"]
            if [site.signature for site in replayed] != [site.signature for site in mapped]:
                raise NotMappedError("its sites or plates differ between draws")
            for site, alone in zip(mapped, replayed, strict=True):
                if not agree(site.log_prob[draw], alone.log_prob):
                    raise NotMappedError(f"the log density of {site.name!r} differs from that of a call for one draw")

    def _replayed(self, sites: list[ScoredSite], draw: int) -> list[ScoredSite]:
        """The sites of one call of guide and model at the values of one draw; of the model alone if only that is mapped."""
        with torch.random.fork_rng():
            if runs_the_model(self.guide):
                held = {s.name: {"value": s.value[draw], "cond_indep_stack": ()} for s in sites if s.role == "q"}
                return pair_sites(rerun(held, self.model, self.guide, self.args, {}))
            own = poutine.trace(self.guide).get_trace(*self.args)
            q = [site for site in sites if site.role == "q"]
            if self._whole:
                own = poutine.trace(poutine.replay(self.guide, trace=hold(q, own, draw))).get_trace(*self.args)
                found = guide_sites(own)
            else:
                own, found = hold(q, own, draw, point_masses=True), []
            trace = poutine.trace(poutine.replay(self.model, trace=own)).get_trace(*self.args)
            drawn = hold([site for site in sites if site.role == "prior" and site.name not in own], trace, draw)
            for name, node in own.nodes.items():
                drawn.add_node(name, **node)
            return found + scored_model(self.model, drawn, self.args)
