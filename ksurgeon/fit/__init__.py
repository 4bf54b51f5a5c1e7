"""Fitting a K-matrix, or another structure, to a dense matrix."""

from ksurgeon.fit.fitting import OnStep, fit_, fit_all_
from ksurgeon.fit.report import FitReport, low_rank_error, measured_fit_, two_factor_error

__all__ = [
    "FitReport",
    "OnStep",
    "fit_",
    "fit_all_",
    "low_rank_error",
    "measured_fit_",
    "two_factor_error",
]
