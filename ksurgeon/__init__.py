"""ksurgeon: K-matrices in the place of the linear maps of existing models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ksurgeon.integrations import register_unless_refused

if TYPE_CHECKING:
    from ksurgeon.errors import (
        DataError,
        ExportError,
        FolderError,
        InputError,
        KindError,
        KsurgeonError,
        MatchError,
        ModelNotFoundError,
        PlanError,
        RecipeError,
        RecordError,
        RuleError,
        StructureError,
        SurgeryError,
        TrainingError,
        TrainingStopped,
        VersionError,
        WeightsError,
    )
    from ksurgeon.export import export_model, onnx_library
    from ksurgeon.find import Site, find
    from ksurgeon.frontend import KFrontend
    from ksurgeon.geometry import find_arrangement, neighbour_share
    from ksurgeon.integrations.hf_config import KsurgeonConfig
    from ksurgeon.kernels.backend import Backend
    from ksurgeon.kernels.registry import register_backend
    from ksurgeon.kmatrix.conv import KPointwiseConv
    from ksurgeon.kmatrix.linear import KLinear
    from ksurgeon.kmatrix.matrix import KMatrix
    from ksurgeon.kmatrix.shuffle import KChannelShuffle
    from ksurgeon.kmatrix.structured import StructuredMatrix
    from ksurgeon.kmatrix.structures import (
        Butterfly,
        Chain,
        Dense,
        GroupedKaleidoscope,
        Kaleidoscope,
        LowRank,
        Monarch,
        Structure,
        Sum,
        register_structure,
    )
    from ksurgeon.kmatrix.transform import KTransform
    from ksurgeon.planner import Planning, plan
    from ksurgeon.rules.files import read_plan, write_plan
    from ksurgeon.rules.plan import Plan
    from ksurgeon.rules.schema import Rule
    from ksurgeon.site_kinds import SiteKind, register_site_kind
    from ksurgeon.surgery.conversion import Conversion
    from ksurgeon.surgery.convert import convert, replace_modules
    from ksurgeon.surgery.fold import fold, unfold
    from ksurgeon.surgery.load_dense import load_dense
    from ksurgeon.surgery.prepack import prepack
    from ksurgeon.surgery.quantize import quantize
    from ksurgeon.surgery.revert import revert
    from ksurgeon.surgery.storage import load, save
    from ksurgeon.train.distill import distill, finetune
    from ksurgeon.train.gradual import distill_gradually

_HOMES = {
    "Backend": "kernels.backend",
    "Butterfly": "kmatrix.structures",
    "Chain": "kmatrix.structures",
    "Conversion": "surgery.conversion",
    "DataError": "errors",
    "Dense": "kmatrix.structures",
    "ExportError": "errors",
    "FolderError": "errors",
    "GroupedKaleidoscope": "kmatrix.structures",
    "InputError": "errors",
    "KChannelShuffle": "kmatrix.shuffle",
    "KFrontend": "frontend.frontend",
    "KLinear": "kmatrix.linear",
    "KMatrix": "kmatrix.matrix",
    "KPointwiseConv": "kmatrix.conv",
    "KTransform": "kmatrix.transform",
    "Kaleidoscope": "kmatrix.structures",
    "KindError": "errors",
    "KsurgeonConfig": "integrations.hf_config",
    "KsurgeonError": "errors",
    "LowRank": "kmatrix.structures",
    "MatchError": "errors",
    "ModelNotFoundError": "errors",
    "Monarch": "kmatrix.structures",
    "Plan": "rules.plan",
    "PlanError": "errors",
    "Planning": "planner.search",
    "RecipeError": "errors",
    "RecordError": "errors",
    "Rule": "rules.schema",
    "RuleError": "errors",
    "Site": "find.site",
    "SiteKind": "site_kinds",
    "Structure": "kmatrix.structures",
    "StructureError": "errors",
    "StructuredMatrix": "kmatrix.structured",
    "Sum": "kmatrix.structures",
    "SurgeryError": "errors",
    "TrainingError": "errors",
    "TrainingStopped": "errors",
    "VersionError": "errors",
    "WeightsError": "errors",
    "convert": "surgery.convert",
    "distill": "train.distill",
    "distill_gradually": "train.gradual",
    "export_model": "export",
    "find": "find.finder",
    "find_arrangement": "geometry.arrangement",
    "finetune": "train.distill",
    "fold": "surgery.fold",
    "load": "surgery.storage",
    "load_dense": "surgery.load_dense",
    "neighbour_share": "geometry.arrangement",
    "onnx_library": "export",
    "plan": "planner.search",
    "prepack": "surgery.prepack",
    "quantize": "surgery.quantize",
    "read_plan": "rules.files",
    "register_backend": "kernels.registry",
    "register_site_kind": "site_kinds",
    "register_structure": "kmatrix.structures",
    "replace_modules": "surgery.convert",
    "revert": "surgery.revert",
    "save": "surgery.storage",
    "unfold": "surgery.fold",
    "write_plan": "rules.files",
}

__all__ = [
    "Backend",
    "Butterfly",
    "Chain",
    "Conversion",
    "DataError",
    "Dense",
    "ExportError",
    "FolderError",
    "GroupedKaleidoscope",
    "InputError",
    "KChannelShuffle",
    "KFrontend",
    "KLinear",
    "KMatrix",
    "KPointwiseConv",
    "KTransform",
    "Kaleidoscope",
    "KindError",
    "KsurgeonConfig",
    "KsurgeonError",
    "LowRank",
    "MatchError",
    "ModelNotFoundError",
    "Monarch",
    "Plan",
    "PlanError",
    "Planning",
    "RecipeError",
    "RecordError",
    "Rule",
    "RuleError",
    "Site",
    "SiteKind",
    "Structure",
    "StructureError",
    "StructuredMatrix",
    "Sum",
    "SurgeryError",
    "TrainingError",
    "TrainingStopped",
    "VersionError",
    "WeightsError",
    "convert",
    "distill",
    "distill_gradually",
    "export_model",
    "find",
    "find_arrangement",
    "finetune",
    "fold",
    "load",
    "load_dense",
    "neighbour_share",
    "onnx_library",
    "plan",
    "prepack",
    "quantize",
    "read_plan",
    "register_backend",
    "register_site_kind",
    "register_structure",
    "replace_modules",
    "revert",
    "save",
    "unfold",
    "write_plan",
]


def __getattr__(name: str) -> Any:
    """Names are imported when they are first used, so that ``import ksurgeon`` needs no torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("ksurgeon")
    if name not in _HOMES:
        raise AttributeError(f"module 'ksurgeon' has no attribute {name!r}")
    value = getattr(import_module(f"ksurgeon.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_unless_refused()
