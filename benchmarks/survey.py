"""Which linear maps are found in whole libraries: ``python -m benchmarks.survey --json FILE``.

The same as ``ksurgeon survey``, which has the options.
"""

import sys

from ksurgeon.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "survey")
    main()
