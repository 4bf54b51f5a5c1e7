"""Every exception ksurgeon raises on purpose, all under :class:`KsurgeonError`."""

__all__ = [
    "DataError",
    "ExportError",
    "FolderError",
    "InputError",
    "KindError",
    "KsurgeonError",
    "MatchError",
    "ModelNotFoundError",
    "PlanError",
    "RecipeError",
    "RecordError",
    "RuleError",
    "StructureError",
    "SurgeryError",
    "TrainingError",
    "TrainingStopped",
    "VersionError",
    "WeightsError",
]


class KsurgeonError(Exception):
    """Base class. ``exit_status`` is what the command line returns for it."""

    exit_status = 1


class StructureError(KsurgeonError, ValueError):
    """A structure, pattern or chain that cannot be built for the sizes given."""


class KindError(KsurgeonError, ValueError):
    """A kind of site that is not known, or whose name is taken."""


class RuleError(KsurgeonError, ValueError):
    """A rule file or rule that is missing or malformed."""


class PlanError(KsurgeonError, ValueError):
    """A budget that cannot be met or is invalid, or a plan that is malformed or of another model."""


class MatchError(KsurgeonError, ValueError):
    """A rule that matched no site of the model."""

    exit_status = 3


class ModelNotFoundError(KsurgeonError, LookupError):
    """A model name that none of the known sources has."""


class InputError(KsurgeonError, ValueError):
    """Example inputs that the model does not accept."""


class WeightsError(KsurgeonError, ValueError):
    """Weights that are missing, do not fit the architecture, or are not finite."""


class SurgeryError(KsurgeonError, ValueError):
    """An operation that was refused; the model is as it was."""


class RecordError(KsurgeonError, ValueError):
    """A record or tensor file that is damaged or belongs to another architecture."""


class FolderError(KsurgeonError, OSError):
    """A folder that cannot be written: it holds something else, or the disk is full."""


class VersionError(KsurgeonError, ImportError):
    """A library that is installed in a version too old."""


class ExportError(KsurgeonError, RuntimeError):
    """A model that cannot be exported, or whose exported program gives something else."""


class RecipeError(KsurgeonError, ValueError):
    """A recipe that is missing or malformed, or whose own functions failed."""


class DataError(KsurgeonError, ValueError):
    """Training data that is missing, empty, damaged beyond its limit, or of no use to the model."""


class TrainingError(KsurgeonError, RuntimeError):
    """Training that cannot begin or go on; the model holds the last good state."""


class TrainingStopped(KsurgeonError):
    """Training that a signal ended; a checkpoint was written, and ``--resume`` goes on from it."""

    exit_status = 130
