"""Which factors to multiply out beforehand, and how the work of a step is cut up."""

from functools import lru_cache
from typing import NamedTuple

from ksurgeon.patterns.merge import merge_plan
from ksurgeon.patterns.pattern import Pattern

__all__ = ["Tiles", "merge_for", "outer_tiles", "step_tiles", "whole_tiles"]

_LARGEST_RADIX = 128
# Seconds on an H100, from its data sheet. Their ratio decides, which differs little between GPUs.
_SECONDS_PER_BYTE = 1 / 2.5e12
_SECONDS_PER_MULTIPLICATION = {2: 1 / 200e12, 4: 1 / 30e12, 8: 1 / 8e12}

_SMALLEST, _LARGEST = 16, 64  # sides of a product on the tensor cores
# Of a program that takes several blocks, by bytes of an entry: rows, fewest and most outputs, most inputs of
# each block at a time, warps, depth of the pipeline. For half precision what was fastest on an H200.
_GROUPED = {2: (16, 32, 64, 32, 4, 2), 4: (32, 16, 32, 16, 8, 2), 8: (32, 16, 16, 16, 8, 1)}


class Tiles(NamedTuple):
    """How much one program takes: rows, neighbouring blocks, outputs and inputs of a block at a time."""

    rows: int
    group: int
    out: int
    inner: int
    warps: int
    stages: int

    def programs(self, pattern: Pattern, rows: int) -> int:
        """How many programs a step is."""
        a, b, _, d = pattern
        return a * -(-d // self.group) * -(-b // self.out) * -(-rows // self.rows)


def _side(size: int, largest: int = _LARGEST) -> int:
    return min(max(1 << (size - 1).bit_length(), _SMALLEST), largest)


def _largest(itemsize: int) -> int:
    """Largest side of a product; those of complex numbers are four."""
    return _LARGEST // 2 if itemsize == 8 else _LARGEST


_FEWEST = 128  # rows that a program sums over, if there are so many
# Bytes of shared memory that every GPU from capability 8.0 on gives a program. Triton keeps a stage of the
# pipeline there for each operand or not, as its version likes; tiles are cut for the worst.
_SHARED = 99 * 1024


@lru_cache(maxsize=4096)
def merge_for(patterns: tuple[Pattern, ...], itemsize: int) -> tuple[int, ...]:
    """How many neighbouring factors to merge into each step, for the least time on many rows."""
    multiplication = _SECONDS_PER_MULTIPLICATION[itemsize]

    def cost(step: Pattern) -> float:
        moved = (step.in_features + step.out_features) * itemsize
        multiplied = step.a * step.d * max(step.b, _SMALLEST) * max(step.c, _SMALLEST)
        return moved * _SECONDS_PER_BYTE + multiplied * multiplication

    return merge_plan(patterns, _LARGEST_RADIX, cost)


@lru_cache(maxsize=4096)
def step_tiles(pattern: Pattern, rows: int, side_by_side: bool, itemsize: int, wanted: int) -> Tiles:
    """The cut of a step, such that there are ``wanted`` programs if the work allows it.

    Args:
        pattern: of the factor.
        rows: number of vectors, or the next power of two.
        side_by_side: whether the entries of a vector are neighbours in memory. Those of a block with a stride
            are then read in one piece with those of the blocks beside it.
        itemsize: bytes of an entry.
        wanted: a number of programs that keeps the device busy.
    """
    _, b, c, d = pattern
    largest = _largest(itemsize)
    out, most = _side(b, largest), _side(rows, 2 * largest)
    if most == _SMALLEST:
        tiles = Tiles(most, 1, _SMALLEST, _side(c), 2, 2)
    elif side_by_side and d > 1:
        group = min(1 << (d - 1).bit_length(), 8)
        rows_each, narrowest, widest, inner, warps, stages = _GROUPED[itemsize]
        out, inner = min(max(out, narrowest), widest), _side(c, inner)
        at_once = c <= inner
        tiles = Tiles(
            min(most, rows_each), group, out, inner, 8 if at_once else warps, 1 if at_once else stages
        )
    else:
        inner = _side(c, largest if itemsize < 8 else _SMALLEST)
        tiles = Tiles(most, 1, out, inner, 8 if most * out >= 8192 else 4, 2)
    while tiles.programs(pattern, rows) < wanted and tiles.rows > 2 * _SMALLEST:
        tiles = tiles._replace(rows=tiles.rows // 2)
    while tiles.programs(pattern, rows) < wanted and tiles.out > _SMALLEST:
        tiles = tiles._replace(out=tiles.out // 2)
    return tiles


@lru_cache(maxsize=4096)
def outer_tiles(
    pattern: Pattern, rows: int, side_by_side: bool, itemsize: int, wanted: int
) -> tuple[Tiles, int]:
    """The cut of the gradient of a step, and the rows that each program sums over."""
    a, b, c, d = pattern
    largest = _largest(itemsize)
    group = min(1 << (d - 1).bit_length(), largest // 8) if side_by_side else 1
    out = _side(b, largest // 2 if group > 2 and itemsize > 2 else largest)
    inner = _side(c, largest // 2 if group > 2 else largest)
    programs = a * -(-d // group) * -(-b // out) * -(-c // inner)
    shares = max(wanted // programs, 1)
    # A power of two: the kernel is compiled for it.
    each = max(1 << (max(rows // shares, 1).bit_length() - 1), min(_side(rows, _FEWEST), _FEWEST))
    rows_each = _side(each, largest // 2)
    while group * rows_each * (out + inner) * itemsize * 2 > _SHARED and rows_each > _SMALLEST:
        rows_each //= 2
    return Tiles(rows_each, group, out, inner, 8 if group * out * inner >= 8192 else 4, 2), each


# Entries of a padded vector that a thread holds where a chain is applied at once, by bytes of an entry.
_HELD = {2: 64, 4: 16}


@lru_cache(maxsize=4096)
def whole_tiles(widest: int, rows: int, side_by_side: bool, itemsize: int, wanted: int) -> Tiles:
    """The cut of a chain that is applied at once; ``widest`` is the number of entries of a padded vector."""
    held = _HELD[itemsize] if side_by_side else _HELD[itemsize] // 2
    each = min(max(8 * 32 * held // widest, _SMALLEST), _side(rows))
    while -(-rows // each) < wanted and each > _SMALLEST:
        each //= 2
    warps = min(max(each * widest // (32 * held), 4), 16)
    return Tiles(each, 1, widest, widest, warps, 1)
