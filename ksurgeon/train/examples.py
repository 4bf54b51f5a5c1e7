"""Training examples: those of the reader that calibration uses, too."""

from ksurgeon.calibrate.examples import Example, Modality, Source
from ksurgeon.calibrate.pictures import open_picture

__all__ = ["Example", "Modality", "Source", "open_picture"]
