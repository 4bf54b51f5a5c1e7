"""Over fifty architectures of transformers: convert, save, load in another process, train, revert."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import ksurgeon
from ksurgeon import Rule
from ksurgeon.find.inputs import tensors_of
from ksurgeon.site_kinds import kind_of
from tests.integrations import architectures
from tests.integrations.architectures import NAMES

TOP = Path(__file__).parents[2]
LINEAR = ksurgeon.rules.load.load_rule("linear").replace[0]
RANDOM = {"structure": LINEAR.structure, "start": "orthogonal"}
RULE = Rule(
    name="all",
    replace=[
        {"find": "linear", "ignore": LINEAR.ignore, "where": LINEAR.where, **RANDOM},
        {"find": "pointwise_conv", **RANDOM},
        {"find": "transform", "with": {"structure": "butterfly"}},
    ],
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Every model converted, its folder saved, and what a new process got from that folder."""
    folder = tmp_path_factory.mktemp("models")
    models = {}
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    for name in NAMES:
        model = architectures.build(name)
        dense = {n: t.shape for n, t in model.state_dict().items()}
        (folder / name).mkdir()
        architectures.save_inputs(folder / name, model)
        ksurgeon.convert(model, RULE, architectures.load_inputs(folder / name))
        model.save_pretrained(folder / name)
        models[name] = model, dense
    script = [sys.executable, "-m", "tests.integrations.architectures", str(folder)]
    done = subprocess.run(script, cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, models


def test_there_are_enough():
    assert len(set(NAMES)) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_another_process_gives_the_same(converted, name):
    folder, models = converted
    model, _ = models[name]
    expected = architectures.outputs(model, architectures.load_inputs(folder / name))
    given = load_file(folder / name / "outputs.safetensors")
    assert given.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(given[key], tensor, atol=1e-6, rtol=1e-6, msg=f"{name} {key}")


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_goes_back(converted, name):
    folder, models = converted
    model, dense = models[name]
    inputs = architectures.load_inputs(folder / name)
    factors = [p for m in model.modules() if kind_of(m) is not None for p in m.parameters()]
    before = [factor.detach().clone() for factor in factors]
    outputs = [t for t in tensors_of(model.train()(**inputs)) if t.requires_grad]
    sum(t.float().square().mean() for t in outputs).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert any(not torch.equal(new, old) for new, old in zip(factors, before, strict=True))
    model.zero_grad()
    model.eval()
    with torch.no_grad():
        trained = [t for t in tensors_of(model(**inputs)) if t.is_floating_point()]
        trains_transform = name == "fnet"
        if trains_transform:
            return  # a trained transform has no dense layer to go back to
        ksurgeon.revert(model)
        again = [t for t in tensors_of(model(**inputs)) if t.is_floating_point()]
    assert {n: t.shape for n, t in model.state_dict().items()} == dense
    assert not hasattr(model.config, "quantization_config")
    for new, old in zip(again, trained, strict=True):
        torch.testing.assert_close(new, old, atol=1e-4, rtol=1e-4)
