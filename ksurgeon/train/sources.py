"""Where training examples come from: the reader that calibration uses, too."""

from ksurgeon.calibrate.sources import open_source

__all__ = ["open_source"]
