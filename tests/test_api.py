"""What ``import ksurgeon`` promises."""

import inspect
import subprocess
import sys

import pytest

import ksurgeon

PROMISED = [
    "Backend",
    "register_backend",
    "export_model",
    "ExportError",
    "find",
    "find_arrangement",
    "neighbour_share",
    "onnx_library",
    "convert",
    "replace_modules",
    "save",
    "load",
    "load_dense",
    "revert",
    "distill",
    "distill_gradually",
    "finetune",
    "DataError",
    "RecipeError",
    "TrainingError",
    "TrainingStopped",
    "KMatrix",
    "KLinear",
    "KPointwiseConv",
    "KFrontend",
    "KTransform",
    "KChannelShuffle",
    "Butterfly",
    "Chain",
    "Dense",
    "GroupedKaleidoscope",
    "Kaleidoscope",
    "LowRank",
    "Monarch",
    "Structure",
    "StructuredMatrix",
    "Sum",
    "register_structure",
    "Rule",
    "Plan",
    "Planning",
    "plan",
    "prepack",
    "quantize",
    "fold",
    "unfold",
    "read_plan",
    "write_plan",
    "PlanError",
    "Site",
    "SiteKind",
    "register_site_kind",
    "KindError",
    "Conversion",
    "KsurgeonConfig",
    "KsurgeonError",
    "MatchError",
    "RuleError",
    "StructureError",
    "SurgeryError",
    "InputError",
    "WeightsError",
    "RecordError",
    "VersionError",
    "FolderError",
    "ModelNotFoundError",
]


def test_public_names():
    assert set(PROMISED) == set(ksurgeon.__all__)
    assert all(getattr(ksurgeon, name).__doc__ for name in PROMISED)
    assert callable(ksurgeon.find)
    with pytest.raises(AttributeError, match="nothing"):
        _ = ksurgeon.nothing


def test_find_is_callable_whatever_was_imported_first():
    script = (
        "import ksurgeon.find.site, torch, ksurgeon\n"
        "assert len(ksurgeon.find(torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.ones(1, 4))) == 1"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_signature_of_klinear():
    parameters = inspect.signature(ksurgeon.KLinear).parameters
    assert list(parameters)[:3] == ["in_features", "out_features", "bias"]
    defaults = {
        name: parameters[name].default for name in ("bias", "width", "expansion", "radix", "device", "dtype")
    }
    assert defaults == {
        "bias": True,
        "width": 1,
        "expansion": 1,
        "radix": "auto",
        "device": None,
        "dtype": None,
    }
    assert parameters["width"].kind is inspect.Parameter.KEYWORD_ONLY


def test_errors_have_one_base():
    errors = [getattr(ksurgeon, name) for name in PROMISED if name.endswith("Error")]
    assert all(issubclass(error, ksurgeon.KsurgeonError) for error in errors)


def test_the_import_is_light():
    script = (
        "import sys, ksurgeon\n"
        "print(sorted({'torch', 'timm', 'transformers', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_layers_import_no_model_library():
    script = (
        "import sys, ksurgeon; ksurgeon.KLinear, ksurgeon.convert, ksurgeon.load\n"
        "heavy = {'timm', 'transformers', 'torchvision', 'matplotlib', 'scipy', 'greenlet'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_layer_needs_little_besides_torch():
    script = (
        "import sys, torch, ksurgeon\n"
        "before = set(sys.modules)\n"
        "layer = ksurgeon.KLinear.from_linear(torch.nn.Linear(8, 8), ksurgeon.Monarch(2))\n"
        "layer(torch.ones(2, 8))\n"
        "print(sorted({n.partition('.')[0] for n in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(eval(done.stdout)) <= {"ksurgeon", "torch", "torchgen", "numpy", "safetensors"}, done.stdout


def test_the_settings_of_a_training_are_its_keywords():
    from ksurgeon.train.options import SettingsOptions
    from ksurgeon.train.settings import Settings, make_settings

    assert list(SettingsOptions.__annotations__) == list(Settings.model_fields)
    with pytest.raises(ksurgeon.TrainingError, match=r"minuets is no setting .* did you mean minutes"):
        make_settings(minuets=4)


def test_one_act_with_one_signature():
    convert, replace = (inspect.signature(f) for f in (ksurgeon.convert, ksurgeon.replace_modules))
    assert convert.parameters == replace.parameters
    assert list(convert.parameters)[:6] == ["model", "what", "example_inputs", "targets", "ignore", "start"]
