"""Fitting a K-matrix, or another structure, to a dense matrix."""

from ksurgeon.kmatrix.fit.fitting import OnStep, fit_, fit_all_

__all__ = ["OnStep", "fit_", "fit_all_"]
