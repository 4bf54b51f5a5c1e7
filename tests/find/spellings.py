"""Networks that shuffle channels, spelled in every way we know, and decoys that only look like it."""

import einops
import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn


class Around(nn.Module):
    """A shuffle in the middle of a forward: a convolution before it, another after."""

    dims, channels, groups = 2, 12, 3

    def __init__(self) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[self.dims]
        self.before = conv(5, self.channels, 1)
        self.after = conv(self.channels, 5, 1)

    def example(self) -> Tensor:
        return torch.randn(2, 5, *(4, 6, 3)[: self.dims])

    def shuffle(self, x: Tensor) -> Tensor:
        raise AssertionError("every spelling brings its own")

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(self.shuffle(self.before(x)) * 2 + 1))


class ViewTransposeView(Around):
    def shuffle(self, x):
        b, c, h, w = x.size()
        return x.view(b, 3, c // 3, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


class ReshapePermute(Around):
    def shuffle(self, x):
        b, c, h, w = x.shape
        return x.reshape(b, 3, c // 3, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)


class UnflattenFlatten(Around):
    def shuffle(self, x):
        return x.unflatten(1, (3, -1)).swapaxes(1, 2).flatten(1, 2)


class FlatSpace(Around):
    def shuffle(self, x):
        n = x.shape[0]
        return torch.transpose(x.reshape(n, 3, 4, -1), 1, 2).reshape(x.shape)


class Movedim(Around):
    def shuffle(self, x):
        return torch.flatten(torch.movedim(torch.unflatten(x, 1, (3, 4)), 1, 2), 1, 2)


class Functional(Around):
    def shuffle(self, x):
        return F.channel_shuffle(x, 3)


class Einops(Around):
    def shuffle(self, x):
        return einops.rearrange(x, "b (g c) h w -> b (c g) h w", g=3)


class StackChunks(Around):
    def shuffle(self, x):
        return torch.stack(x.chunk(3, dim=1), dim=2).flatten(1, 2)


class CatSlices(Around):
    groups = 4

    def shuffle(self, x):
        return torch.cat([x[:, 0::3], x[:, 1::3], x[:, 2::3]], dim=1)


class IndexSelect(Around):
    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.arange(12).view(3, 4).T.flatten())

    def shuffle(self, x):
        return x.index_select(1, self.order)


class ChannelsLastDim(Around):
    def shuffle(self, x):
        x = x.permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        x = x.reshape(b, h, w, 3, c // 3).transpose(3, 4).reshape(b, h, w, c)
        return x.permute(0, 3, 1, 2)


class ThreeDimensional(Around):
    dims = 1

    def shuffle(self, x):
        b, c, n = x.shape
        return x.view(b, 3, c // 3, n).transpose(1, 2).reshape(b, c, n)


class FiveDimensional(Around):
    dims = 3

    def shuffle(self, x):
        b, c, d, h, w = x.shape
        return x.view(b, 3, c // 3, d, h, w).transpose(1, 2).reshape(b, c, d, h, w)


class Tokens(nn.Module):
    """Tokens of a transformer, channels in the last dimension."""

    channels, groups = 12, 3

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(5, 12), nn.Linear(12, 5)

    def example(self):
        return torch.randn(2, 7, 5)

    def forward(self, x):
        x = self.before(x)
        b, n, c = x.shape
        return self.after(x.view(b, n, 3, c // 3).transpose(-1, -2).reshape(b, n, c))


class InAModule(Around):
    def __init__(self):
        super().__init__()
        self.mix = nn.ChannelShuffle(3)

    def shuffle(self, x):
        return self.mix(x)


class InRearrange(Around):
    def __init__(self):
        super().__init__()
        self.mix = Rearrange("b (g c) h w -> b (c g) h w", g=3)

    def shuffle(self, x):
        return self.mix(x)


class _Mix(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        b, c, h, w = x.data.size()
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class InAnOwnModule(Around):
    def __init__(self):
        super().__init__()
        self.mix = _Mix(3)

    def shuffle(self, x):
        return self.mix(x)


class _Transpose(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class InASequential(Around):
    def __init__(self):
        super().__init__()
        self.mix = nn.Sequential(
            nn.ReLU(), nn.Unflatten(1, (3, 4)), _Transpose(), nn.Flatten(1, 2), nn.ReLU()
        )

    def shuffle(self, x):
        return self.mix(x)


class DropoutAround(Around):
    """The forward differs between training and evaluation."""

    def shuffle(self, x):
        x = F.dropout(x, 0.5, training=self.training)
        return F.channel_shuffle(x, 3)


class Twice(Around):
    """Two shuffles in one forward."""

    def shuffle(self, x):
        return F.channel_shuffle(torch.tanh(F.channel_shuffle(x, 3)), 3)


class SizesReadInside(Around):
    """Sizes are read from tensors between the first and the last movement."""

    def shuffle(self, x):
        b, c, h, w = x.shape
        x = x.view(b, 3, c // 3, h, w).transpose(1, 2).contiguous()
        groups = x.shape[2]
        return x.view(x.size(0), -1, h, w) * groups


class Unpacked(Around):
    """Iterating guards the number of parts."""

    def shuffle(self, x):
        return torch.cat([part for part in torch.stack(x.split(4, 1), 2).unbind(1)], 1)


class ChildInTraining(Around):
    """The forward asks a child whether it is in training."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def shuffle(self, x):
        return F.channel_shuffle(self.inner(x) * (3 if self.inner.training else 1), 3)


class SizesInATuple(Around):
    def shuffle(self, x):
        b, c, h, w = tuple(x.shape)
        x = torch.transpose(torch.reshape(x, (b, 3, c // 3, h, w)), 1, 2)
        return torch.reshape(x, (b, c, h, w))


class IndexMade(Around):
    def shuffle(self, x):
        return x[:, torch.arange(12).view(3, 4).t().flatten()]


class IndexOfSizes(Around):
    def shuffle(self, x):
        index = torch.arange(x.shape[1], device=x.device).reshape(3, -1).transpose(0, 1).reshape(-1)
        return x.index_select(1, index)


class Gather(Around):
    def shuffle(self, x):
        b, c, h, w = x.shape
        index = torch.arange(c).view(3, c // 3).t().reshape(1, c, 1, 1)
        return torch.gather(x, 1, index.expand(b, c, h, w))


class TakeAlong(Around):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(12).view(3, 4).t().reshape(1, 12, 1, 1))

    def shuffle(self, x):
        return torch.take_along_dim(x, self.order.expand(x.shape), dim=1)


class SplitAndStack(Around):
    def shuffle(self, x):
        b, c, h, w = x.shape
        rows = torch.hsplit(x.movedim(1, -1).reshape(b * h * w, c), 3)
        return torch.dstack(rows).reshape(b, h, w, c).movedim(-1, 1)


class Einsum(Around):
    def shuffle(self, x):
        return torch.einsum("bgchw->bcghw", x.unflatten(1, (3, 4))).flatten(1, 2)


class Packed(Around):
    def shuffle(self, x):
        flat, sizes = einops.pack([x], "b c *")
        mixed = einops.rearrange(flat, "b (g c) s -> b (c g) s", g=3)
        return einops.unpack(mixed, sizes, "b c *")[0]


SPELLINGS = [
    ViewTransposeView, ReshapePermute, UnflattenFlatten, FlatSpace, Movedim, Functional, Einops, StackChunks,
    CatSlices, IndexSelect, ChannelsLastDim, ThreeDimensional, FiveDimensional, Tokens, InAModule,
    InRearrange, InAnOwnModule, InASequential, DropoutAround, Twice, SizesReadInside,
    Unpacked, ChildInTraining, SizesInATuple, IndexMade, IndexOfSizes, Gather, TakeAlong,
    SplitAndStack, Einsum, Packed,
]  # fmt: skip


class AcrossBatch(Around):
    def shuffle(self, x):
        b, c, h, w = x.shape
        return x.reshape(2, -1, c, h, w).transpose(0, 1).reshape(b, c, h, w)


class AcrossBatchAtOne(Around):
    """With a batch of one it could not be told from a channel shuffle."""

    def example(self):
        return torch.randn(1, 5, 4, 6)

    def shuffle(self, x):
        return x.reshape(3, -1, 4, 6).transpose(0, 1).reshape(x.shape)


class AcrossRows(Around):
    def shuffle(self, x):
        b, c, h, w = x.shape
        return x.view(b, c, 2, h // 2, w).transpose(2, 3).reshape(b, c, h, w)


class AcrossColumns(Around):
    def shuffle(self, x):
        b, c, h, w = x.shape
        return x.view(b, c, h, 2, w // 2).transpose(3, 4).reshape(b, c, h, w)


class AcrossTokens(Tokens):
    def forward(self, x):
        x = self.before(x)[:, :6]
        b, n, c = x.shape
        return self.after(x.view(b, 2, n // 2, c).transpose(1, 2).reshape(b, n, c))


class SpaceAndChannels(Around):
    def shuffle(self, x):
        return x.transpose(1, 2).reshape(x.shape)


class PixelShuffle(Around):
    def shuffle(self, x):
        return F.pixel_unshuffle(F.pixel_shuffle(x[:, :12], 2), 2).roll(1, 2)


class PixelModules(Around):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.PixelShuffle(2), nn.PixelUnshuffle(2)

    def shuffle(self, x):
        return self.down(torch.relu(self.up(x)))


class Heads(Tokens):
    def forward(self, x):
        x = self.before(x)
        b, n, c = x.shape
        q = x.view(b, n, 3, 4).transpose(1, 2)
        return self.after((q @ q.mT @ q).transpose(1, 2).reshape(b, n, c))


class HeadsForgotten(Tokens):
    """Splits heads and folds them back wrongly, across tokens."""

    def forward(self, x):
        x = self.before(x)
        b, n, c = x.shape
        return self.after(x.view(b, n, 3, 4).transpose(1, 2).reshape(b, n, c))


class OtherPermutation(Around):
    def shuffle(self, x):
        return x.flip(1)


class Identical(Around):
    def shuffle(self, x):
        b, c, h, w = x.shape
        return x.view(b, 3, c // 3, h, w).transpose(1, 2).transpose(1, 2).reshape(b, c, h, w)


class UsedInside(Around):
    """What is between the first and the last movement is read elsewhere too."""

    def shuffle(self, x):
        b, c, h, w = x.shape
        grouped = x.view(b, 3, c // 3, h, w)
        return grouped.transpose(1, 2).reshape(b, c, h, w) + grouped.sum(1).repeat(1, 3, 1, 1)


class WithArithmetic(Around):
    def shuffle(self, x):
        b, c, h, w = x.shape
        return (x.view(b, 3, c // 3, h, w).transpose(1, 2) * 1.0).reshape(b, c, h, w)


class OfOnePixel(Around):
    """At one pixel it could not be told from a channel shuffle."""

    def example(self):
        return torch.randn(2, 5, 1, 1)

    def shuffle(self, x):
        return x.reshape(x.shape[0], 3, -1).transpose(1, 2).reshape(x.shape)


class RandomOrder(Around):
    def shuffle(self, x):
        return x[:, torch.randperm(12)]


class EinsumThatSums(Around):
    def shuffle(self, x):
        return torch.einsum("bgchw->bchw", x.unflatten(1, (3, 4))).repeat(1, 3, 1, 1)


class EinsumOfPixels(Around):
    def shuffle(self, x):
        return torch.einsum("bcxyw->bcyxw", x.unflatten(2, (2, 2))).flatten(2, 3)


class GatherOfRows(Around):
    def shuffle(self, x):
        index = torch.arange(4).view(2, 2).t().reshape(1, 1, 4, 1)
        return torch.gather(x, 2, index.expand(x.shape))


class GatherOfValues(Around):
    def shuffle(self, x):
        return torch.gather(x, 1, x.argsort(1))


class StackedDepth(Around):
    def shuffle(self, x):
        return torch.cat(torch.dsplit(x, 2)[::-1], 2)


DECOYS = [
    AcrossBatch, AcrossBatchAtOne, AcrossRows, AcrossColumns, AcrossTokens, SpaceAndChannels, PixelShuffle,
    PixelModules, Heads, HeadsForgotten, OtherPermutation, Identical, UsedInside, WithArithmetic,
    OfOnePixel, RandomOrder, EinsumThatSums,
    EinsumOfPixels, GatherOfRows, GatherOfValues, StackedDepth,
]  # fmt: skip
