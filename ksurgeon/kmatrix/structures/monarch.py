"""Monarch matrices."""

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.structures.fields import share, size
from ksurgeon.kmatrix.structures.registry import register_structure
from ksurgeon.kmatrix.structures.sums import Summable, rank_for
from ksurgeon.patterns.pattern import Pattern, check_chain

__all__ = ["Monarch"]


@register_structure("monarch")
class Monarch(Summable):
    """Two factors of ``blocks`` blocks each: the first's side by side, the second's interleaved.

    Rows of one residue modulo ``blocks`` and columns of one of ``blocks`` groups make up a block of the
    matrix whose rank is ``block_rank``; with b blocks and block rank r it has the parameters of a low rank of
    b·r. Left out, the block rank is what brings the inner size to the smaller side, as in Dao et al.
    ("Monarch: Expressive structured matrices for efficient and accurate training", ICML 2022). ``share`` asks
    for so many parameters, as a fraction of the dense matrix's. Sizes that ``blocks`` does not divide are
    padded.

    Examples:
        >>> ksurgeon.KLinear(768, 3072, structure=ksurgeon.Monarch(4))
        >>> ksurgeon.convert(model, ksurgeon.Monarch(4, share=0.25), targets="mlp", data=loader)
    """

    blocks: int = size(default=4, kw_only=False, least=2)
    block_rank: int | None = size(default=None)
    share: float | None = share(default=None)

    def check(self) -> None:
        if self.block_rank is not None and self.share is not None:
            raise ValueError("give block_rank or share, not both")

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        blocks, rank = self.blocks, self.block_rank
        if blocks > min(in_features, out_features):
            raise StructureError(f"{blocks} blocks are too many for {in_features} → {out_features}")
        columns, rows = -(-in_features // blocks), -(-out_features // blocks)
        if rank is None and self.share is not None:
            sides = blocks**2 * columns, blocks**2 * rows
            rank = rank_for(self.share * in_features * out_features, *sides)
        elif rank is None:
            rank = max(1, round(min(in_features, out_features) / blocks**2))
        if rank > min(columns, rows):
            raise StructureError(
                f"blocks of rank {rank} for {in_features} → {out_features} in {blocks} × {blocks} blocks; "
                f"they can have rank {min(columns, rows)} at most"
            )
        inner = blocks * rank
        return check_chain((Pattern(blocks, inner, columns, 1), Pattern(1, rows, inner, blocks)))

    def __str__(self) -> str:
        how = f" of rank {self.block_rank}" if self.block_rank else ""
        return f"Monarch, {self.blocks} blocks{how}" + (
            f", {self.share:.3g} of the parameters" if self.share else ""
        )
