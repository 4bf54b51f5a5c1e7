"""A kind of site: embedding tables, in whose place a low rank looks rows up."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ksurgeon import LowRank, SiteKind, Structure
from ksurgeon.find import Layer, Site

__all__ = ["Embedding", "LowRankEmbedding"]


class LowRankEmbedding(nn.Module):
    """An embedding whose table is ``left @ right``, ``(rows, rank)`` by ``(rank, features)``."""

    def __init__(self, table: nn.Embedding, rank: int) -> None:
        super().__init__()
        rows, features = table.weight.shape
        like = {"device": table.weight.device, "dtype": table.weight.dtype}
        self.padding_idx = table.padding_idx
        self.left = nn.Parameter(torch.randn(rows, rank, **like) / rank**0.5)
        self.right = nn.Parameter(torch.randn(rank, features, **like))

    @property
    def weight(self) -> Tensor:
        """The table, ``(rows, features)``."""
        return self.left @ self.right

    def forward(self, numbers: Tensor) -> Tensor:
        return F.embedding(numbers, self.left, self.padding_idx) @ self.right


class Embedding(SiteKind):
    """Embedding tables. One whose weight is tied to an output head is left, as the finder sees to."""

    name, title, modules = "embedding", "embedding table", (LowRankEmbedding,)
    structures, starts = ("low_rank",), ("fit", "random")

    def layer(self, module: nn.Module) -> Layer | None:
        if type(module) is not nn.Embedding or module.max_norm is not None:
            return None
        rows, features = module.weight.shape
        return Layer(in_features=rows, out_features=features, multiplications=0)

    def build(self, model: nn.Module, site: Site, structure: Structure, start: str) -> nn.Module:
        rank = structure.patterns(site.in_features, site.out_features)[0].b
        return LowRankEmbedding(model.get_submodule(site.path), rank)

    @torch.no_grad()
    def fit(self, new: nn.Module, model: nn.Module, site: Site, known: object = None) -> float:
        """The least squared error there is (Eckart and Young, 1936)."""
        u, s, v = torch.linalg.svd(model.get_submodule(site.path).weight.double(), full_matrices=False)
        rank = len(new.right)
        new.left.copy_(u[:, :rank] * s[:rank].sqrt())
        new.right.copy_(s[:rank, None].sqrt() * v[:rank])
        return float(s[rank:].norm() / s.norm())

    def candidates(self, site: Site) -> Sequence[Structure]:
        return [LowRank(share=share) for share in (0.5, 0.25, 0.125)]

    def to_dense(self, module: nn.Module, ndim: int) -> nn.Module:
        return nn.Embedding.from_pretrained(
            module.weight.detach(), freeze=False, padding_idx=module.padding_idx
        )
