"""``python cli.py …`` is ``ksurgeon …``."""

from ksurgeon.cli import main

if __name__ == "__main__":
    main()
