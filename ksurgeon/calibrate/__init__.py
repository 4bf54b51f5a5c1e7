"""Calibration: what the sites of a model take, on data, and where changes of their outputs matter."""

from ksurgeon.calibrate.calibration import Calibration, SiteMoments
from ksurgeon.calibrate.data import Batches, Data, open_data
from ksurgeon.calibrate.harm import Harm, harm_for
from ksurgeon.calibrate.run import calibrate

__all__ = ["Batches", "Calibration", "Data", "Harm", "SiteMoments", "calibrate", "harm_for", "open_data"]
