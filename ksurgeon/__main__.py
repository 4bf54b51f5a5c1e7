"""``python -m ksurgeon`` is ``ksurgeon``."""

from ksurgeon.cli import main

main()
