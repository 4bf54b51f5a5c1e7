"""Dense layers that the kernels multiply by in decoding."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ksurgeon
from ksurgeon import MatchError
from ksurgeon.kernels import cpu
from ksurgeon.kmatrix.prepacked import PrepackedLinear
from tests.chains import TOLERANCE


def tied() -> nn.ModuleDict:
    model = nn.ModuleDict({"embedding": nn.Embedding(50, 24), "head": nn.Linear(24, 50, bias=False)})
    model["head"].weight = model["embedding"].weight
    return model


def conv1d(ins: int, outs: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(outs, ins)
    nn.init.normal_(layer.bias)
    return layer.to(dtype)


def drawn(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*size).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(24,), (1, 24), (2, 3, 24), (0, 24), (9, 24)], ids=str)
def test_the_same_to_rounding(dtype: torch.dtype, bias: bool, size: tuple[int, ...]) -> None:
    layer = nn.Linear(24, 50, bias=bias, dtype=dtype)
    x = drawn(*size, dtype=dtype)
    want = layer.double()(x.double())
    layer.to(dtype)
    assert ksurgeon.prepack(nn.ModuleList([layer])) == ("0",)
    for _ in range(2):
        with torch.no_grad():
            got = layer(x)
        assert got.dtype is dtype
        assert got.shape == want.shape
        torch.testing.assert_close(got.double(), want, atol=TOLERANCE[dtype] * 3, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(24,), (1, 24), (2, 3, 24), (0, 24), (9, 24)], ids=str)
def test_the_dense_layer_of_gpt2_is_the_same_to_rounding(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    layer, x = conv1d(24, 50, dtype), drawn(*size, dtype=dtype)
    want = x.double() @ layer.weight.double() + layer.bias.double()
    assert ksurgeon.prepack(nn.ModuleList([layer])) == ("0",)
    for _ in range(2):
        with torch.no_grad():
            got = layer(x)
        assert got.dtype is dtype
        assert got.shape == want.shape
        torch.testing.assert_close(got.double(), want, atol=TOLERANCE[dtype] * 3, rtol=TOLERANCE[dtype])


@pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")
def test_few_rows_of_the_dense_layer_of_gpt2_are_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = conv1d(24, 50)
    ksurgeon.prepack(nn.ModuleList([layer]))
    calls: list[str] = []
    product = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *given: calls.append("torch") or product(*given))
    with torch.no_grad():
        for rows in (1, 8):
            layer(torch.randn(rows, 24))
        layer(torch.randn(24, 2).T)  # Conv1D itself takes contiguous vectors only
        assert not calls
        layer(torch.randn(9, 24))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(torch.randn(1, 24)).dtype is torch.bfloat16
        torch.vmap(layer)(torch.randn(2, 1, 24))
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 24).double())
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 23))
    layer(torch.randn(1, 24)).sum().backward()
    assert layer.weight.grad is not None
    assert len(calls) == 6


WRITES = {
    "in place": lambda layer: layer.weight.mul_(2),
    "data": lambda layer: layer.weight.data.mul_(2),
    "numpy": lambda layer: layer.weight.numpy().__imul__(2),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(2 * layer.weight)),
    "other memory": lambda layer: setattr(layer.weight, "data", 2 * layer.weight.data),
    "transposed": lambda layer: setattr(layer.weight, "data", (2 * layer.weight.data).T.contiguous().T),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_no_weight_of_the_dense_layer_of_gpt2_is_stale(write: object) -> None:
    layer, x = conv1d(24, 24), torch.randn(2, 24)
    ksurgeon.prepack(nn.ModuleList([layer]))
    with torch.no_grad():
        layer.bias.zero_()
        for _ in range(2):
            before = layer(x)
        write(layer)  # type: ignore[operator]
        torch.testing.assert_close(layer(x), 2 * before)


def test_gpt2_is_saved_loaded_compiled_and_turned_back(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.arange(5)[None]
    with torch.no_grad():
        want = model(ids).logits
    paths = [f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert ksurgeon.prepack(model, ["Conv1D"]) == tuple(paths)
    assert ksurgeon.prepack(model) == ("lm_head",)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(ids).logits, want, atol=1e-5, rtol=1e-5)
        layer, x = model.get_submodule(paths[0]), torch.randn(2, 32)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), layer(x), atol=1e-5, rtol=1e-5)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(twin.get_submodule(paths[0])) is type(layer)
            assert torch.equal(twin(ids).logits, model(ids).logits)
        model.save_pretrained(tmp_path)
        loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
        assert type(loaded.get_submodule(paths[0])).__name__ == "Conv1D"
        assert torch.equal(loaded(ids).logits, want)
    assert ksurgeon.prepack(model, undo=True) == (*paths, "lm_head")
    assert type(model.get_submodule(paths[0])).__name__ == "Conv1D"
    with torch.no_grad():
        assert torch.equal(model(ids).logits, want)


@pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")
def test_few_rows_in_inference_are_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(24, 50)
    ksurgeon.prepack(nn.ModuleList([layer]))
    calls: list[str] = []
    linear = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *given: calls.append("torch") or linear(*given))
    with torch.no_grad():
        for rows in (1, 8):
            layer(torch.randn(rows, 24))
        assert not calls
        layer(torch.randn(9, 24))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(torch.randn(1, 24)).dtype is torch.bfloat16
        torch.vmap(layer)(torch.randn(2, 1, 24))
    layer(torch.randn(1, 24)).sum().backward()
    assert calls == ["torch"] * 4
    assert layer.weight.grad is not None


def test_ties_and_state_are_kept() -> None:
    model = tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert ksurgeon.prepack(model) == ("head",)
    assert model["head"].weight is model["embedding"].weight
    assert isinstance(model["head"], nn.Linear)
    with torch.no_grad():
        model["head"](torch.randn(1, 24))
    assert model.state_dict().keys() == before.keys()
    assert len(list(model.parameters())) == 1
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        x = torch.randn(1, 24)
        with torch.no_grad():
            torch.testing.assert_close(twin["head"](x), model["head"](x))
            twin["head"].weight.mul_(2)
            torch.testing.assert_close(twin["head"](x), 2 * model["head"](x))
    assert ksurgeon.prepack(model, undo=True) == ("head",)
    assert type(model["head"]) is nn.Linear


LOADED = {"state dict": lambda layer: layer.load_state_dict({"weight": 2 * layer.weight})}


@pytest.mark.parametrize("write", (WRITES | LOADED).values(), ids=WRITES | LOADED)
def test_no_weight_is_stale(write: object) -> None:
    layer, x = nn.Linear(24, 50, bias=False), torch.randn(2, 24)
    ksurgeon.prepack(nn.ModuleList([layer]))
    with torch.no_grad():
        before = layer(x)
        write(layer)  # type: ignore[operator]
        torch.testing.assert_close(layer(x), 2 * before)


def test_casts_and_compiling() -> None:
    layer, x = nn.Linear(24, 50), torch.randn(2, 24)
    ksurgeon.prepack(nn.ModuleList([layer]))
    with torch.no_grad():
        layer(x)
        want = layer.double()(x.double())
        torch.testing.assert_close(layer.float()(x).double(), want, atol=1e-5, rtol=1e-5)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x).double(), want, atol=1e-5, rtol=1e-5)
        with pytest.raises(RuntimeError, match="dtype"):
            layer(x.double())
        with pytest.raises(RuntimeError, match="shapes"):
            layer(torch.randn(1, 23))


def test_targets() -> None:
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4), "three": Own(4, 4)})
    assert ksurgeon.prepack(model, ["re:t.*"]) == ("two",)
    assert ksurgeon.prepack(model, ["Linear"]) == ("one",)
    assert [type(model[name]) for name in model] == [PrepackedLinear, PrepackedLinear, Own]
    assert ksurgeon.prepack(model) == ()
    with pytest.raises(MatchError, match=r'"four" is no PrepackedLinear.* of this model; there are one, two'):
        ksurgeon.prepack(model, ["one", "four"], undo=True)
    assert type(model["one"]) is PrepackedLinear
