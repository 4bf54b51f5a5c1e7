"""Output heads tied to embeddings, computed in int8 by a copy of the weight."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ksurgeon
from ksurgeon import MatchError, RecordError, WeightsError
from ksurgeon.kernels import cpu, reference_only
from ksurgeon.kmatrix.int8_tied import TiedInt8Linear
from ksurgeon.surgery.record import record_of
from tests.surgery.test_quantize import relative

compiled = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")
transformers = pytest.importorskip("transformers")
IDS = torch.arange(6)[None]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.own = nn.Embedding(50, 24), nn.Linear(24, 24)
        self.head = nn.Linear(24, 50)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.own(self.embedding(ids)))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config).eval()


def test_it_is_asked_for_and_stays_tied() -> None:
    model = Decoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    errors = ksurgeon.quantize(model, tied=True)
    assert list(errors) == ["own", "head"]
    assert all(0 < error < 0.02 for error in errors.values())
    assert type(model.head) is TiedInt8Linear and isinstance(model.head, nn.Linear)
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.state_dict()["head.weight"], before["head.weight"])
    record = record_of(model)
    assert record is not None and record.outcome is not None
    assert record.int8_tied == ["head"]
    assert record.outcome.parts == ["1 layers in int8", "1 tied output heads computed in int8"]
    with pytest.raises(MatchError):
        ksurgeon.quantize(model, tied=True)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(24,), (1, 24), (2, 3, 24), (0, 24), (40, 24)], ids=str)
def test_errors_are_those_of_rounding(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    model, x = Decoder().to(dtype), torch.randn(size).to(dtype)
    with torch.no_grad():
        want = copy.deepcopy(model.head).double()(x.double())
        ksurgeon.quantize(model, ["head"], tied=True)
        for _ in range(2):
            got = model.head(x)
            assert got.dtype is dtype and got.shape == want.shape
            if x.numel():
                bound = 24 * float(model.head.weight.abs().max() * x.abs().max()) * 1.01 / 127
                bound += 8e-3 * float(want.abs().max()) * (dtype is not torch.float32) + 1e-5
                assert float((got.double() - want).abs().max()) <= bound
                assert relative(got.double(), want) < 0.03
                assert not torch.equal(got, nn.functional.linear(x, model.head.weight, model.head.bias))


@compiled
@pytest.mark.parametrize(
    "write",
    [
        lambda layer: layer.weight.mul_(-1),
        lambda layer: layer.weight.data.mul_(-1),
        lambda layer: layer.weight.numpy().__imul__(-1),
        lambda layer: setattr(layer, "weight", nn.Parameter(-layer.weight)),
        lambda layer: setattr(layer.weight, "data", -layer.weight.data),
        lambda layer: setattr(layer.weight, "data", (-layer.weight.data).T.contiguous().T),
        lambda layer: layer.load_state_dict({"weight": -layer.weight, "bias": layer.bias}),
    ],
    ids=["in place", "data", "numpy", "another parameter", "other memory", "transposed", "state dict"],
)
def test_no_weight_is_stale(write: object) -> None:
    model, x = Decoder(), torch.randn(2, 24)
    ksurgeon.quantize(model, ["head"], tied=True)
    with torch.no_grad():
        model.head.bias.zero_()
        before = model.head(x)
        assert torch.equal(model.head(x), before)
        write(model.head)  # type: ignore[operator]
        assert relative(model.head(x), -before) < 0.03


def test_training_compiling_and_what_is_not_finite() -> None:
    model, x = Decoder(), torch.randn(2, 24)
    exact = nn.functional.linear(x, model.head.weight, model.head.bias)
    ksurgeon.quantize(model, ["head"], tied=True)
    assert torch.equal(model.head(x), exact)  # where gradients are wanted
    model(IDS).square().sum().backward()
    assert model.embedding.weight.grad is not None
    with torch.no_grad():
        got = torch.compile(model.head, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(got, exact, atol=1e-5, rtol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.head(x).dtype is torch.bfloat16
        with reference_only():
            assert torch.equal(model.head(x), exact)
        torch.vmap(model.head)(x)
        with pytest.raises(RuntimeError):
            model.head(torch.randn(1, 23))
        x[0, 3] = torch.nan
        assert bool(model.head(x)[0].isnan().all()) and bool(model.head(x)[1].isfinite().all())
        model.embedding.weight[7] = torch.inf
        assert not bool(model.head(x[1:])[0, 7].isfinite())
        assert bool(model.head(x[1:])[0, :7].isfinite().all())


def test_saved_loaded_copied_and_reverted(tmp_path: Path) -> None:
    model = gpt2()
    with torch.no_grad():
        exact = model(IDS).logits
        assert "lm_head" in ksurgeon.quantize(model, tied=True)
        want = model(IDS).logits
        assert relative(want, exact) < 0.05
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert twin.lm_head.weight is twin.transformer.wte.weight
            assert torch.equal(twin(IDS).logits, want)
        ksurgeon.save(model, tmp_path / "ours")
        model.save_pretrained(tmp_path / "theirs")
        for loaded in (
            ksurgeon.load(tmp_path / "ours"),
            transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "theirs").eval(),
        ):
            assert type(loaded.lm_head) is TiedInt8Linear
            assert loaded.lm_head.weight is loaded.transformer.wte.weight
            assert torch.equal(loaded(IDS).logits, want)
            ksurgeon.revert(loaded)
            assert type(loaded.lm_head) is nn.Linear
            assert loaded.lm_head.weight is loaded.transformer.wte.weight
            assert relative(loaded(IDS).logits, want) < 0.05
            assert not record_of(loaded).changes_something
        base = transformers.GPT2Model.from_pretrained(tmp_path / "theirs").eval()
        assert torch.equal(base(IDS).last_hidden_state, model.transformer(IDS).last_hidden_state)


def test_a_head_alone(tmp_path: Path) -> None:
    model = gpt2()
    assert list(ksurgeon.quantize(model, ["lm_head"], tied=True)) == ["lm_head"]
    ksurgeon.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(ksurgeon.load(tmp_path)(IDS).logits, model(IDS).logits)
    file = tmp_path / "ksurgeon.json"
    record = json.loads(file.read_text())
    for wrong in ("nothing", "transformer.wte", ""):
        file.write_text(json.dumps(record | {"int8_tied": [wrong]}))
        with pytest.raises(RecordError):
            ksurgeon.load(tmp_path)


def test_what_is_refused_leaves_the_model_as_it_was() -> None:
    model = Decoder()
    with torch.no_grad():
        model.embedding.weight[0, 0] = torch.nan
    with pytest.raises(WeightsError):
        ksurgeon.quantize(model, tied=True)
    assert type(model.head) is nn.Linear and type(model.own) is nn.Linear
    assert record_of(model) is None
    twins = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    twins[1].weight = twins[0].weight
    with pytest.raises(MatchError):
        ksurgeon.quantize(twins, tied=True)
