"""The kinds of site that ksurgeon brings along, a file for each; torch is imported where it is used."""

from ksurgeon.kinds.channel_shuffle import ChannelShuffle
from ksurgeon.kinds.filterbank import Filterbank
from ksurgeon.kinds.insertion import Inserted
from ksurgeon.kinds.linear import Linear
from ksurgeon.kinds.permutation import Permutation
from ksurgeon.kinds.pointwise_conv import PointwiseConv
from ksurgeon.kinds.transform import Transform
from ksurgeon.site_kinds import register_site_kind

__all__ = [
    "ChannelShuffle",
    "Filterbank",
    "Inserted",
    "Linear",
    "Permutation",
    "PointwiseConv",
    "Transform",
]

# Of two that recognise the same map the later has it.
for _kind in (Linear, PointwiseConv, Transform, Permutation, ChannelShuffle, Filterbank, Inserted):
    register_site_kind(_kind)
