"""The repeated blocks of two models, and which of them do the same work."""

from torch import nn

__all__ = ["block_paths", "pair_blocks"]

_SMALL = 0.05  # share of the parameters below which a row of blocks is not looked at


def block_paths(model: nn.Module) -> list[list[str]]:
    """Paths of rows of blocks: children of one list or sequence, of the same class and with children."""
    total = sum(p.numel() for p in model.parameters())
    rows: list[list[str]] = []

    def walk(module: nn.Module, path: str) -> None:
        children = [(f"{path}.{name}".lstrip("."), child) for name, child in module.named_children()]
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1:
            alike = len({type(child) for _, child in children}) == 1
            if alike and any(True for _ in children[0][1].children()):
                if sum(p.numel() for p in module.parameters()) >= _SMALL * total:
                    rows.append([place for place, _ in children])
                return
        for place, child in children:
            walk(child, place)

    walk(model, "")
    return rows


def pair_blocks(student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """Blocks of the student, each with the teacher's block that ends at the same share of its row.

    Rows with the same parent belong together; of models that have none such, the longest rows.
    """
    mine, its = block_paths(student), block_paths(teacher)
    by_parent = {_parent(row): row for row in its}
    rows = [(row, by_parent[_parent(row)]) for row in mine if _parent(row) in by_parent]
    if not rows and mine and its:
        rows = [(max(mine, key=len), max(its, key=len))]
    return [
        (path, other[round((number + 1) * len(other) / len(row)) - 1])
        for row, other in rows
        for number, path in enumerate(row)
        if round((number + 1) * len(other) / len(row)) >= 1
    ]


def _parent(row: list[str]) -> str:
    return row[0].rpartition(".")[0]
