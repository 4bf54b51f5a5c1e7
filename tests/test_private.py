"""PyTorch's private names are used through one file."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRIVATE = re.compile(
    r"\btorch(\.\w+)*\._[a-zA-Z]|^\s*from torch[\w.]* import .*\b_[a-z]|\bforward_ad\._", re.MULTILINE
)


def test_only_one_file_uses_private_names_of_torch():
    files = [file for folder in ("ksurgeon", "tools") for file in (ROOT / folder).rglob("*.py")]
    found = {
        file.relative_to(ROOT).as_posix(): [match[0] for match in PRIVATE.finditer(file.read_text("utf-8"))]
        for file in files
    }
    used = {name for name, names in found.items() if names}
    assert used == {
        "ksurgeon/torch_private.py",
        "ksurgeon/find/patching.py",  # the name of a logger
    }
