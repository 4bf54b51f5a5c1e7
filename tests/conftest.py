"""Tests do not depend on what was measured on a machine, nor leave anything in its caches."""

import os

os.environ["KSURGEON_TUNE"] = "0"
