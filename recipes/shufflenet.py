"""Networks of the recipe shufflenet."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

_REPEATS = (4, 8, 4)
_CHANNELS = (384, 768, 1536)  # of the stages with 8 groups, at width 1
_STEM = 24


class Mix(nn.Module):
    """A fixed orthogonal matrix on the channels: Hadamard's, in blocks of a power of two, or a random one."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        if kind == "orthogonal":
            weight, _ = torch.linalg.qr(torch.randn(channels, channels))
        else:
            size = channels & -channels  # the largest power of two in it
            block = torch.ones(1, 1)
            while len(block) < size:
                block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)]) / math.sqrt(
                    2
                )
            # The rest is mixed by the Fourier transform's real counterpart (Hartley), orthogonal as well.
            rest = channels // size
            angles = 2 * math.pi / rest * torch.outer(torch.arange(rest), torch.arange(rest))
            weight = torch.kron(block, (angles.cos() + angles.sin()) / math.sqrt(rest))
        self.register_buffer("weight", weight[:, :, None, None].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight)


class Shuffle(nn.Module):
    """The channel shuffle of ShuffleNet."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def _mixing(kind: str, channels: int, groups: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "shuffle":
        return Shuffle(groups)
    return nn.Conv2d(channels, channels, 1, bias=False) if kind == "dense" else Mix(channels, kind)


class Block(nn.Module):
    """A unit of ShuffleNet v1; ``first`` and ``second`` say what mixes channels before and after conv1."""

    def __init__(
        self, ins: int, outs: int, groups: int, first_groups: int, stride: int, first: str, second: str
    ) -> None:
        super().__init__()
        self.stride, middle = stride, outs // 4
        outs = outs - ins if stride > 1 else outs
        self.mix0 = _mixing(first, ins, groups)
        self.conv1 = nn.Conv2d(ins, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.mix1 = _mixing(second, middle, groups)
        self.depthwise = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outs, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(outs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix1(torch.relu(self.bn1(self.conv1(self.mix0(x)))))
        y = self.bn3(self.conv3(self.bn2(self.depthwise(y))))
        if self.stride == 1:
            return torch.relu(x + y)
        return torch.relu(torch.cat([nn.functional.avg_pool2d(x, 3, self.stride, 1), y], 1))


def net(
    width: float = 0.25,
    groups: int = 8,
    classes: int = 31,
    first: str = "none",
    second: str = "shuffle",
    stem: int = 1,
    channels: tuple[int, ...] | None = None,
    repeats: tuple[int, ...] = _REPEATS,
) -> nn.Module:
    """ShuffleNet v1 (Zhang et al. 2018) with the mixing of channels that is asked for.

    Args:
        width: of the stages, for 8 groups.
        first: before a unit's first pointwise convolution: "none", as it is there, "shuffle", "hadamard",
            "orthogonal" (fixed, random) or "dense" (a learned 1×1 convolution).
        second: after that convolution, its normalisation and ReLU.
        stem: its stride, 1 or 2 for small images, or 4, with a pooling, as for ImageNet.
        channels: of the stages, in place of those at ``width``.
    """
    outs = tuple(channels or (round(c * width) for c in _CHANNELS))
    ins = groups * math.ceil(_STEM * width / groups)
    first_layers: list[nn.Module] = [
        nn.Conv2d(3, ins, 3, min(stem, 2), 1, bias=False),
        nn.BatchNorm2d(ins),
        nn.ReLU(),
    ]
    if stem == 4:
        first_layers.append(nn.MaxPool2d(3, 2, 1))
    stages: list[nn.Module] = []
    for stage, (out, repeat) in enumerate(zip(outs, repeats, strict=True)):
        blocks: list[nn.Module] = []
        for number in range(repeat):
            first_groups = 1 if stage == number == 0 else groups
            blocks.append(Block(ins, out, groups, first_groups, 2 if number == 0 else 1, first, second))
            ins = out
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(*first_layers),
            stages=nn.Sequential(*stages),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(ins, classes),
        )
    )
