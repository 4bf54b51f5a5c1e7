"""Block-sparse matrices: some of the blocks of a dense matrix, and zeros elsewhere."""

import torch
from torch import Tensor, nn

from ksurgeon import Structure, StructuredMatrix, StructureError, register_structure

__all__ = ["BlockSparse", "BlockSparseMatrix"]


@register_structure("block_sparse")
class BlockSparse(Structure):
    """Of the square blocks of a matrix, the share that counts most on the inputs.

    Examples:
        >>> ksurgeon.convert(model, BlockSparse(share=0.25), targets="mlp", data=loader)
    """

    share: float = 0.25
    block: int = 16

    def check(self) -> None:
        if not 0 < self.share <= 1 or self.block < 1:
            raise ValueError(f"share must be above 0 and 1 at most, block at least 1; got {self!r}")

    @classmethod
    def candidates(cls, in_features: int, out_features: int) -> list["BlockSparse"]:
        if in_features % 16 or out_features % 16:
            return []
        return [cls(share=share) for share in (0.75, 0.5, 0.25)]

    def kept(self, in_features: int, out_features: int) -> int:
        """Blocks that a matrix of these sizes keeps, at least 1."""
        if in_features % self.block or out_features % self.block:
            raise StructureError(f"blocks of {self.block} do not divide {in_features} → {out_features}")
        return max(1, round(self.share * (in_features // self.block) * (out_features // self.block)))

    def multiplications(self, in_features: int, out_features: int) -> int:
        return self.kept(in_features, out_features) * self.block**2

    def new_matrix(
        self,
        in_features: int,
        out_features: int,
        *,
        groups: int = 1,
        start: str = "random",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "BlockSparseMatrix":
        if groups > 1:
            raise StructureError(f"a block-sparse matrix has one group, got {groups}")
        if start not in ("random", "empty"):
            raise StructureError(f'start = "{start}" is not known for block-sparse matrices; use "random"')
        return BlockSparseMatrix(in_features, out_features, self, device, dtype)

    def __str__(self) -> str:
        return f"block-sparse, {self.share:.3g} of the {self.block} × {self.block} blocks"


class BlockSparseMatrix(StructuredMatrix):
    """The blocks that are kept, ``(kept, block, block)``, and where they stand."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        structure: BlockSparse,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, structure)
        self.block, kept = structure.block, structure.kept(in_features, out_features)
        blocks = torch.empty(kept, self.block, self.block, device=device, dtype=dtype)
        self.blocks = nn.Parameter(nn.init.normal_(blocks, std=(structure.share * in_features) ** -0.5))
        rows, columns = out_features // self.block, in_features // self.block
        places = torch.randperm(rows * columns, device=device)[:kept].sort().values
        self.register_buffer("rows", places // columns)
        self.register_buffer("columns", places % columns)

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        pieces = x.movedim(dim, -1).unflatten(-1, (-1, self.block))
        products = torch.einsum("...kc,koc->...ko", pieces[..., self.columns, :], self.blocks)
        y = products.new_zeros(*products.shape[:-2], self.out_features // self.block, self.block)
        return y.index_add(-2, self.rows, products).flatten(-2).movedim(-1, dim)

    @torch.no_grad()
    def fit_(
        self,
        weight: Tensor,
        *,
        moment: Tensor | None = None,
        slopes: Tensor | None = None,
        steps: int | None = None,
    ) -> None:
        """Keep the blocks of most energy on the inputs; then least squares for each row of blocks.

        ``slopes`` are left aside: which outputs count more changes no row's own solution.
        """
        size, eye = self.block, torch.eye(self.in_features, dtype=torch.float64, device=weight.device)
        target, moment = weight.double(), eye if moment is None else moment[0].to(eye)
        scaled = target * moment.diagonal().sqrt()
        energy = scaled.unflatten(1, (-1, size)).unflatten(0, (-1, size)).square().sum((1, 3))
        places = energy.flatten().topk(len(self.blocks)).indices.sort().values
        self.rows.copy_(places // energy.shape[1])
        self.columns.copy_(places % energy.shape[1])
        for row in self.rows.unique().tolist():
            mine = (self.rows == row).nonzero()[:, 0]
            inputs = (self.columns[mine, None] * size + torch.arange(size, device=mine.device)).flatten()
            wanted = target[row * size : (row + 1) * size] @ moment[:, inputs]
            among = moment[inputs][:, inputs]
            least = 1e-9 * among.diagonal().mean().clamp_min(1e-30)
            solved = torch.linalg.solve(among + least * eye[: len(inputs), : len(inputs)], wanted.mT).mT
            self.blocks[mine] = solved.unflatten(1, (-1, size)).movedim(1, 0).to(self.blocks.dtype)
