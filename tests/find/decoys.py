"""What looks like a shuffle, a permutation, a transform or a filterbank but is none; for (2, 12, 4, 4)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

C = 12
GENERATOR = torch.Generator().manual_seed(0)
INDEX = torch.randperm(C, generator=GENERATOR)
NAMED: dict[str, Callable[[], nn.Module]] = {}


class Decoy(nn.Module):
    """Convolutions around a map that is called as it stands."""

    def __init__(self, function, **state):
        super().__init__()
        self.before, self.after = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(C, 5, 3)
        self.function = function
        for name, value in state.items():
            if isinstance(value, (nn.Parameter, nn.Module)):
                setattr(self, name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, x):
        return self.after(torch.tanh(self.function(self, torch.relu(self.before(x)))))


def decoy(name, function, **state):
    assert name not in NAMED
    NAMED[name] = lambda: Decoy(function, **{k: v() if callable(v) else v for k, v in state.items()})


def shuffled(x, groups=3):
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def dft():
    return torch.view_as_real(torch.fft.fft(torch.eye(C, dtype=torch.complex64)))[..., 0].contiguous()


def along_channels(self, x):
    return torch.einsum("oi,bihw->bohw", self.matrix, x)


def rows(x):
    return x.flatten(2).mT


def back(x):
    return x.mT.unflatten(2, (4, 4))


def by_rows(self, x):
    return back(rows(x) @ self.matrix.T)


# Reorderings of something else than channels, or of nothing.
decoy("pixels into channels and back", lambda s, x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2))
decoy(
    "channels into pixels, with another factor back", lambda s, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2)
)
decoy("the batch turned round", lambda s, x: x.flip(0))
decoy("the batch in another order", lambda s, x: x[torch.tensor([1, 0])])
decoy("a shuffle of batch and channels", lambda s, x: x.reshape(C, 2, 4, 4).transpose(0, 1).reshape(x.shape))
decoy("two dimensions rolled", lambda s, x: x.roll((1, 1), (2, 3)))
decoy("two dimensions turned round", lambda s, x: x.flip((1, 2)))
decoy("all entries rolled", lambda s, x: x.roll(5))
decoy("rows and columns exchanged, square only", lambda s, x: x.transpose(2, 3))
decoy("a quarter turn, square only", lambda s, x: x.rot90(1, (2, 3)))
decoy("rows and columns by a view", lambda s, x: x.flatten(2).unflatten(2, (4, 4)).mT.contiguous())
decoy("columns of windows", lambda s, x: x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(x.shape))
decoy("nothing moves", lambda s, x: x[:, list(range(C))])
decoy("a roll all the way round", lambda s, x: x.roll(C, 1))
decoy("a different order for each example", lambda s, x: torch.stack([x[0], x[1].flip(0)]))
decoy(
    "a different order for each row",
    lambda s, x: x.gather(1, s.index.expand_as(x)),
    index=lambda: torch.stack([torch.arange(C), INDEX, INDEX.flip(0), INDEX], 1)[None, :, :, None],
)
decoy("a shuffle of channels and rows", lambda s, x: x.flatten(1, 2).unflatten(1, (4, C)).transpose(1, 2))
decoy("channels against columns", lambda s, x: x.flatten(2).reshape(2, 16, C).mT.reshape(x.shape))
# Indices that are no permutation, or not fixed.
decoy("an index with repeats", lambda s, x: x[:, s.index], index=INDEX % 6)
decoy("an index that leaves out", lambda s, x: F.pad(x[:, INDEX[:9].tolist()], (0, 0, 0, 0, 0, 3)))
decoy("an index by the input", lambda s, x: x[:, x.mean((0, 2, 3)).argsort()])
decoy("sorted channels", lambda s, x: x.sort(1)[0])
decoy("the largest channels", lambda s, x: x.topk(C, 1)[0])
decoy("sampled channels", lambda s, x: x[:, torch.multinomial(x.mean((0, 2, 3)) + 1, C)])
decoy(
    "an index from scores that learn",
    lambda s, x: x[:, s.scores.argsort()],
    scores=lambda: nn.Parameter(torch.randn(C, generator=torch.Generator().manual_seed(3))),
)
decoy(
    "a soft permutation",
    lambda s, x: torch.einsum("oi,bihw->bohw", s.logits.softmax(1), x),
    logits=lambda: nn.Parameter(20 * torch.eye(C)[INDEX]),
)
decoy("a shuffle in training only", lambda s, x: shuffled(x) if s.training else x)
# A reordering with something else to it.
decoy("a shuffle with one sign changed", lambda s, x: torch.cat([-x[:, 1:2], x[:, :1], x[:, 2:]], 1))
decoy("a slice written over", lambda s, x: torch.cat([x[:, :6], x[:, :6]], 1))
# Matrices and convolutions.
decoy("nearly a DFT", by_rows, matrix=lambda: dft() + 1e-2 * torch.eye(C))
decoy("a DFT with two rows exchanged", by_rows, matrix=lambda: dft()[[1, 0, *range(2, C)]])
decoy("a DFT that trains", by_rows, matrix=lambda: nn.Parameter(dft()))
decoy("the real part of a DFT", by_rows, matrix=dft)
decoy("mel-like triangles that train", by_rows, matrix=lambda: nn.Parameter(1 - (torch.eye(C).cumsum(0) / 3)))
decoy(
    "mel-like triangles",
    by_rows,
    matrix=lambda: F.relu(1 - (torch.arange(C)[:, None] - torch.arange(C) * 0.7).abs()),
)
decoy(
    "an einsum over two dimensions",
    lambda s, x: torch.einsum("bchw,hk->bckw", x, s.matrix),
    matrix=lambda: torch.rand(4, 4),
)
decoy("an einsum that sums", lambda s, x: torch.einsum("bchw->bhw", x)[:, None].expand_as(x))
decoy("attention", lambda s, x: back(F.softmax(rows(x) @ rows(x).mT / math.sqrt(C), -1) @ rows(x)))
decoy(
    "depthwise convolution with one tap",
    lambda s, x: s.conv(x),
    conv=lambda: nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False),
)
decoy("a shift by padding", lambda s, x: F.pad(x, (0, 0, 0, 0, 1, 0))[:, :C])
decoy(
    "a random projection",
    by_rows,
    matrix=lambda: torch.randn(C, C, generator=torch.Generator().manual_seed(5)),
)
decoy(
    "a rotation of pairs",
    by_rows,
    matrix=lambda: torch.block_diag(*[torch.tensor([[0.6, -0.8], [0.8, 0.6]])] * 6),
)
decoy("a Fourier shift by the input", lambda s, x: torch.fft.fftshift(x, (2, 3)) * x.mean())
