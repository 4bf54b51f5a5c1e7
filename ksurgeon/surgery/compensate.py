"""Fit front to back, each replacement to what those before it have made of its inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from torch import nn

from ksurgeon.calibrate import SiteMoments
from ksurgeon.calibrate.lockstep import Reached, affordable, in_lockstep
from ksurgeon.find import Site
from ksurgeon.find.inputs import ExampleInputs
from ksurgeon.surgery.build import dense_blocks, site_weight

__all__ = ["compensating"]

# What changing the weight costs, relative to the mean square of an entry of the inputs.
_RIDGE = 1e-2


def compensating(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[ExampleInputs],
    known: Mapping[str, SiteMoments],
    build: Callable[[Site, SiteMoments], nn.Module],
    seed: int = 0,
) -> Iterator[Site]:
    """Build the replacements of sites in the order in which the model calls them.

    A site's replacement K is fitted to the outputs that the original model has there, on the inputs x̂ that
    the changed model gives it: with the target ``T = E[y x̂ᵀ] E[x̂ x̂ᵀ]⁻¹`` in the place of the weight, drawn
    to the weight by a small ridge, and ``E[x̂ x̂ᵀ]`` for the moment. So it makes up for the errors before
    it as far as a linear map can.

    Args:
        model: is not changed.
        sites: such that ``can_compensate`` holds.
        batches: inputs that the model takes; as many are used as memory allows.
        known: of the sites in the original model: where changes of their outputs matter.
        build: makes a replacement.
        seed: of the rows drawn from large batches.

    Yields:
        Each site, before it is built.

    Raises:
        InputError, SurgeryError: as ``in_lockstep``.
    """
    with closing(in_lockstep(model, sites, affordable(model, batches), seed=seed)) as walk:
        for reached in walk:
            yield reached.site
            reached.replace(build(reached.site, _wanted(model, reached, known)))


def _wanted(model: nn.Module, reached: Reached, known: Mapping[str, SiteMoments]) -> SiteMoments:
    site, joint = reached.site, reached.joint
    groups = len(joint.moment)
    weight = dense_blocks(site_weight(model, site).detach(), groups)
    plain = known.get(site.path) or SiteMoments(joint.moment, joint.input_mean, joint.rows)
    return replace(
        plain,
        moment=joint.moment,
        mean=joint.input_mean,
        rows=joint.rows,
        shiftable=False,  # the moment is about the mean as it is
        target=joint.target(weight, _RIDGE),
        output_mean=joint.output_mean,
    )
