"""What the finder reports: one site for every linear map it recognised."""

from dataclasses import dataclass, field
from typing import Any

from ksurgeon.find.heads import is_head
from ksurgeon.site_kinds import site_kind

__all__ = ["Site"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A linear map in a model, or a place for one, and whether it can be replaced.

    Attributes:
        kind: name of its ``SiteKind``: "linear", "pointwise_conv", "channel_shuffle", "insertion", …
        path: path of the module; for a map inside a ``forward`` the owner's path, a colon, and the
            name of the FX node that gives the result; for an insertion the owner's path, a colon, the place
            and the dimension.
        in_features, out_features: entries of the vectors mapped, all groups together.
        reason: why the site cannot be replaced; None if it can.
        class_name: class of the module, or of the owner.
        aliases: further paths of the same module.
        dim: dimension along which a shuffle or an insertion acts.
        ndim: dimensions of the tensor that it takes; 0 if not known.
        dtype: of the tensor that an insertion maps.
        permutation: of a shuffle, ``y[i] = x[permutation[i]]``.
        groups: groups of the convolution or of the shuffle.
        vectors: vectors mapped per example (rows of a batch, pixels); 0 if not known.
        parameters: parameters of the module, bias included.
        weight_parameters: parameters of the linear map alone.
        multiplications: per example.
        owner: path of the module that owns the site; ``path`` itself where the site is a module.
        nodes: names of the FX nodes inside the owner's ``forward``; empty where the site is a module.
        has_bias: whether a bias follows the map.
        parameter: name of the owner's parameter that is the map, where its forward multiplies by one; the
            site's path then is the parameter's. Empty for every other site.
        read: whether a forward reads the weight instead of calling the layer: a replacement then makes the
            dense weight at every call.
        parts: matrices of equal sizes that stand on top of each other in the weight: 3 for a fused query, key
            and value.
        tied: other names of its weight, where these alone are the reason. A rule may say ``untie``: the
            replacement then has parameters of its own, and the others keep the weight.
        facts: plain data about the map that only its kind knows how to read.
    """

    kind: str
    path: str
    in_features: int
    out_features: int
    reason: str | None = None
    class_name: str = ""
    aliases: tuple[str, ...] = ()
    dim: int | None = None
    ndim: int = 0
    dtype: str = ""
    permutation: tuple[int, ...] | None = field(default=None, repr=False)
    groups: int = 1
    vectors: int = 0
    parameters: int = 0
    weight_parameters: int = 0
    multiplications: int = 0
    owner: str = ""
    nodes: tuple[str, ...] = ()
    has_bias: bool = False
    parameter: str = ""
    read: bool = False
    parts: int = 1
    tied: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)

    @property
    def is_module(self) -> bool:
        """Whether a module that is called is the map."""
        return not (self.nodes or self.parameter or site_kind(self.kind).inserts)

    @property
    def blocks(self) -> int:
        """Blocks on the diagonal of its weight: the groups of a layer; 1 where it has none."""
        return self.groups if self.weight_parameters else 1

    def is_along(self, dim: int | None) -> bool:
        """Whether it acts along the dimension, which may count from the last."""
        return self.dim == dim or (dim is not None and dim < 0 and self.dim == dim + self.ndim)

    @property
    def head(self) -> bool:
        """Whether it belongs to the output head, as its name tells."""
        return is_head(self.path, self.owner, *self.aliases)

    @property
    def names(self) -> tuple[str, ...]:
        """What targets may call it: its paths, its owner's, and the class name."""
        return (self.path, self.owner, self.class_name, *self.aliases)
