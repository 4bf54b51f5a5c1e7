"""Networks that reorder a dimension, spelled in the ways we know, and decoys that only look like it."""

import torch
from torch import nn

N = 12
INDEX = torch.tensor([7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 4, 6])


def bit_reversal(bits):
    return torch.tensor([int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits)])


class Between(nn.Module):
    """A reordering in the middle of a forward: a layer before it, another after."""

    size, dim, permutation, stored = N, 2, INDEX, None

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(5, self.size), nn.Linear(self.size, 3)
        self.register_buffer("index", (self.permutation if self.stored is None else self.stored).clone())

    def example(self):
        return torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))

    def reorder(self, x):
        raise AssertionError("every spelling brings its own")

    def forward(self, x):
        return self.after(torch.tanh(self.reorder(torch.relu(self.before(x)))))


class Getitem(Between):
    def reorder(self, x):
        return x[..., self.index]


class ListIndex(Between):
    def reorder(self, x):
        return x[:, :, [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 4, 6]]


class IndexSelect(Between):
    def reorder(self, x):
        return x.index_select(-1, self.index)


class TorchIndexSelect(Between):
    def reorder(self, x):
        return torch.index_select(x, 2, self.index)


class Gather(Between):
    def reorder(self, x):
        return x.gather(2, self.index.expand(x.shape[0], x.shape[1], -1))


class TakeAlong(Between):
    def reorder(self, x):
        return torch.take_along_dim(x, self.index[None, None], dim=2)


class Flip(Between):
    permutation = torch.arange(N).flip(0)

    def reorder(self, x):
        return x.flip(-1)


class Roll(Between):
    permutation = torch.arange(N).roll(5)

    def reorder(self, x):
        return torch.roll(x, 5, dims=2)


class SwapHalves(Between):
    permutation = torch.arange(N).roll(6)

    def reorder(self, x):
        a, b = x.chunk(2, dim=-1)
        return torch.cat([b, a], dim=-1)


class BitReversal(Between):
    size, permutation = 16, bit_reversal(4)

    def reorder(self, x):
        return x[:, :, self.index]


class BitReversalByView(Between):
    size, permutation = 16, bit_reversal(4)

    def reorder(self, x):
        b, t, _ = x.shape
        return x.view(b, t, 2, 2, 2, 2).permute(0, 1, 5, 4, 3, 2).reshape(b, t, 16)


class BlocksFlipped(Between):
    permutation = torch.arange(N).view(3, 4).flip(0).flatten()

    def reorder(self, x):
        return x.unflatten(2, (3, 4)).flip(2).flatten(2)


class Chain(Between):
    permutation, stored = INDEX.flip(0).roll(3), INDEX

    def reorder(self, x):
        return x[..., self.index].flip(2).contiguous().roll(3, 2)


class ShuffledFlip(Between):
    """No shuffle on its own, because it is turned round half-way."""

    permutation = torch.arange(N).view(3, 4).flip(0).T.flatten()

    def reorder(self, x):
        return x.unflatten(2, (3, 4)).flip(2).transpose(2, 3).flatten(2)


class Channels(Between):
    dim = 1

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Conv2d(5, N, 1), nn.Conv2d(N, 3, 1)

    def example(self):
        return torch.randn(2, 5, 4, 6)

    def reorder(self, x):
        return x[:, self.index]


class Pixels(Between):
    """Tokens in a fixed order of a fixed image."""

    size, dim, permutation = 16, 1, torch.arange(16).view(4, 2, 2).transpose(0, 1).flatten()

    def example(self):
        return torch.randn(2, 16, 5)

    def reorder(self, x):
        b, _, c = x.shape
        return x.view(b, 4, 2, 2, c).transpose(1, 2).reshape(b, 16, c)


class _Scan(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("order", INDEX.clone())

    def forward(self, x):
        return x[:, :, self.order]


class InAModule(Between):
    def __init__(self):
        super().__init__()
        self.scan = _Scan()

    def reorder(self, x):
        return self.scan(x)


SPELLINGS = [
    Getitem, ListIndex, IndexSelect, TorchIndexSelect, Gather, TakeAlong, Flip, Roll, SwapHalves, BitReversal,
    BitReversalByView, BlocksFlipped, Chain, ShuffledFlip, Channels, Pixels, InAModule,
]  # fmt: skip


class FlipInTime(Between):
    """The length comes from the input."""

    def reorder(self, x):
        return x.flip(1)


class RollInTime(Between):
    def reorder(self, x):
        return x.roll(2, 1)


class DrawnInside(Between):
    """Another index every time."""

    def reorder(self, x):
        return x[:, :, torch.randperm(12)]


REFUSED = [FlipInTime, RollInTime, DrawnInside]
"""Reorderings, listed with a reason."""


class Repeated(Between):
    def reorder(self, x):
        return x[..., (self.index // 2)]


class Dropped(Between):
    def reorder(self, x):
        return torch.cat([x[..., :6], x[..., :6]], -1)


class Identity(Between):
    def reorder(self, x):
        return x.flip(2).flip(2)


class ByTheInput(Between):
    def reorder(self, x):
        return x[:, :, x[0, 0].argsort()]


class Sorted(Between):
    def reorder(self, x):
        return x.sort(-1).values


class AcrossBatch(Between):
    def reorder(self, x):
        return x.flip(0)


class TwoDimensions(Between):
    def reorder(self, x):
        return x.roll((1, 2), (1, 2))


class Heads(Between):
    def reorder(self, x):
        b, t, c = x.shape
        return x.view(b, t, 3, c // 3).transpose(1, 2).reshape(b, t, c)


class Square(Between):
    def example(self):
        return torch.randn(2, 12, 5)

    def reorder(self, x):
        return x.transpose(1, 2)


class UsedTwice(Between):
    """Between the movements there is arithmetic."""

    def reorder(self, x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * 2, b], -1)


class PerRow(Between):
    """Another order for every token."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.stack([INDEX.roll(i) for i in range(7)]))

    def reorder(self, x):
        return x.gather(2, self.rows.expand(len(x), -1, -1))


class Masked(Between):
    def reorder(self, x):
        return x[..., self.index >= 0]


DECOYS = [
    Repeated, Dropped, Identity, ByTheInput, Sorted, AcrossBatch, TwoDimensions, Heads, Square, UsedTwice,
    PerRow, Masked,
]  # fmt: skip
