"""Fashion-MNIST (Xiao et al. 2017), as Debian's package has it."""

from pathlib import Path

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function

unpack_deb = find_function("fetch.py:unpack_deb", RecipeError, Path(__file__).parent)


def prepare(folder: Path) -> dict[str, Path]:
    """The folder of the four IDX files."""
    package = unpack_deb("dataset-fashion-mnist", folder.with_name("fashion-mnist"))
    return {"images": package / "usr" / "share" / "datasets" / "fashion-mnist"}
