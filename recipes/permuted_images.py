"""Networks, loss and measures of the recipe permuted_images."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ksurgeon import neighbour_share
from ksurgeon.calibrate.crops import crops
from ksurgeon.train.permutations import mean_entropy, relaxed

_SIDE = 32
_PIXELS = _SIDE**2
_ENTROPY = 1.5  # weight of the entropy at the end, where the total variation of an image counts once
_TINY = 1e-16
_LEAST = 1e-9  # of a variance that is divided by

plain = crops(_SIDE)[1]
"""What turns an image into a tensor for `[calibrate]`: the middle, normalised."""


def cifar10(folder: Path) -> dict[str, Path]:
    """CIFAR-10 as its binary version (cifar-10-binary.tar.gz) unpacks, in the working directory."""
    place = Path("cifar-10-batches-bin").absolute()
    if not place.is_dir():
        raise FileNotFoundError(
            f"there is no folder {place}; download cifar-10-binary.tar.gz from "
            "https://www.cs.toronto.edu/~kriz/cifar.html and unpack it here"
        )
    return {"patches": place}


def permutation(kind: str) -> Tensor:
    """The hidden permutation of all pixels, ``(1024,)``: pixel i of a permuted image is pixel p[i].

    Args:
        kind: "none"; "bits", the bit reversal of rows and of columns; "lines", random ones of rows and of
            columns; or "pixels", a random one of all pixels. Random ones are drawn from PyTorch's generator.
    """
    lines = torch.arange(_SIDE)
    if kind == "pixels":
        return torch.randperm(_PIXELS)
    if kind == "bits":
        rows = columns = sum((lines >> bit & 1) << (4 - bit) for bit in range(5))
    elif kind == "lines":
        rows, columns = torch.randperm(_SIDE), torch.randperm(_SIDE)
    else:
        rows = columns = lines
    return (rows[:, None] * _SIDE + columns).flatten()


class Hidden(nn.Module):
    """Images ``(batch, channels, 32, 32)`` to permuted grey pixels ``(batch, 1024)``, mean 0 and spread 1."""

    order: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.register_buffer("order", permutation(kind))

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(1).flatten(1)
        grey = grey - grey.mean(1, keepdim=True)
        spread = grey.square().mean(1, keepdim=True).sqrt()
        return (grey / spread.clamp_min(_TINY))[:, self.order]


def net(
    permutation: str,
    dense: bool = False,
    channels: Sequence[int] = (16, 32, 64),
    classes: int = 31,
) -> nn.Module:
    """A CNN behind a hidden permutation.

    What may stand between both has two places: before ``arrange.image``, where all pixels are in dimension 1,
    and after it, where rows and columns are in dimensions 2 and 3.

    Args:
        permutation: see ``permutation``; drawn before any weight, so that nets of one seed have the same.
        dense: whether a linear layer from all pixels to all pixels comes first.
        channels: of its convolutions, each of which is followed by a pooling but for the last.
    """
    arrange = OrderedDict[str, nn.Module](hidden=Hidden(permutation))
    if dense:
        arrange["dense"] = nn.Linear(_PIXELS, _PIXELS)
    arrange["image"] = nn.Unflatten(1, (1, _SIDE, _SIDE))
    layers: list[nn.Module] = []
    ins, side = 1, _SIDE
    for outs in channels:
        layers += [
            nn.Conv2d(ins, outs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        ins, side = outs, side // 2
    return nn.Sequential(
        OrderedDict(
            arrange=nn.Sequential(arrange),
            features=nn.Sequential(*layers),
            flatten=nn.Flatten(),
            classifier=nn.Linear(ins * side**2, classes),
        )
    )


def mlp(permutation: str, width: int = 512, classes: int = 31) -> nn.Module:
    """Two hidden layers, to which the order of pixels means nothing."""
    layers: list[nn.Module] = [Hidden(permutation)]
    for ins in (_PIXELS, width):
        layers += [nn.Linear(ins, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def smoothness(model: nn.Module, inputs: Any, progress: float) -> Tensor:
    """The authors' loss without labels, ``(batch,)``: the total variation of the arranged images, and more
    and more of the entropy of what arranges them.

    The variation is that of images of spread 1. A permutation leaves them so, but means of pixels vary less
    than pixels, and without this the least variation is had by means of pixels from everywhere.
    """
    (images,) = inputs
    arranged = model.arrange(images)[:, 0]
    across, down = arranged[:, :-1, 1:], arranged[:, 1:, :-1]
    corner = arranged[:, :-1, :-1]
    variation = ((across - corner).square() + (down - corner).square() + _TINY).sqrt().mean((1, 2))
    loss = variation / arranged.var((1, 2), correction=0).clamp_min(_LEAST).sqrt()
    soft = relaxed(model)
    return loss + _ENTROPY * progress**0.5 * mean_entropy(soft) if soft else loss


@torch.no_grad()
def nearest(model: nn.Module) -> Tensor:
    """The permutation of permuted pixels, ``(1024,)``, that is nearest to what the model does to them before
    its features."""
    arrange = model.arrange[1:]  # type: ignore[index]
    unit = torch.eye(_PIXELS, device=next(model.parameters()).device)
    matrix = (arrange(unit) - arrange(torch.zeros_like(unit[:1]))).flatten(1).T
    return torch.as_tensor(linear_sum_assignment(matrix.abs().cpu().numpy(), maximize=True)[1])


def evaluate(model: nn.Module, places: dict[str, str]) -> dict[str, float]:
    """The share of neighbours that are neighbours again, see ``nearest``."""
    if not hasattr(model, "arrange"):
        return {}
    truth = model.arrange.hidden.order.cpu()
    return {"neighbours": neighbour_share(nearest(model), truth, (_SIDE, _SIDE))}
