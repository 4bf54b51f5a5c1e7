"""Front ends for audio as part of the model: learnable filterbanks that start as known features."""

from ksurgeon.frontend.filters import KFilters
from ksurgeon.frontend.frontend import KFrontend
from ksurgeon.frontend.pipeline import Pipeline
from ksurgeon.frontend.waveform import KWaveform

__all__ = ["KFilters", "KFrontend", "KWaveform", "Pipeline"]
