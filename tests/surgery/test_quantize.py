"""Linear layers in int8: quantized, saved, loaded, reverted, and part of a conversion."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import FolderError, KLinear, MatchError, RecordError, SurgeryError, WeightsError
from ksurgeon.kmatrix.int8 import Int8Matrix
from ksurgeon.surgery.record import record_of
from ksurgeon.surgery.sizes import count_bytes, count_parameters

RULE = ksurgeon.Rule.model_validate(
    {
        "name": "half",
        "replace": [
            {
                "find": "linear",
                "targets": ["1"],
                "with": {"structure": "low_rank", "share": 0.5},
                "start": "fit",
            }
        ],
    }
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 48, bias=False), nn.ReLU(), nn.Linear(48, 8)).eval()


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_dense_layers_and_k_layers() -> None:
    model, x = network(), torch.randn(5, 32)
    ksurgeon.convert(model, RULE, x)
    with torch.no_grad():
        before, sizes = model(x), (count_parameters(model), count_bytes(model))
        errors = ksurgeon.quantize(model)
        assert list(errors) == ["0", "1", "3"]
        assert all(0 < error < 0.03 for error in errors.values())
        assert relative(model(x), before) < 0.05
    assert all(isinstance(model[k], KLinear) and isinstance(model[k].matrix, Int8Matrix) for k in (0, 1, 3))
    assert count_parameters(model) == sizes[0]
    assert count_bytes(model) < 0.4 * sizes[1]
    record = record_of(model)
    assert record is not None and record.outcome is not None
    assert record.outcome.parts[-1] == "3 layers in int8"
    assert record.outcome.parameters == (32 * 48 + 48 + 48 * 48 + 48 * 8 + 8, sizes[0])
    assert all(operation.int8 for operation in record.operations)
    with pytest.raises(MatchError):
        ksurgeon.quantize(model)


def test_targets_and_ignore() -> None:
    model = network()
    with pytest.warns(UserWarning, match="the target 'nothing' is no layer"):
        assert list(ksurgeon.quantize(model, ["re:[01]", "nothing"], ["1"])) == ["0"]
    assert list(ksurgeon.quantize(model, ignore=["3"])) == ["1"]
    assert [type(layer).__name__ for layer in model] == ["KLinear", "KLinear", "ReLU", "Linear"]


def test_a_target_that_is_no_expression() -> None:
    for given in ({"targets": ["re:("]}, {"ignore": "re:("}):
        model = network()
        with pytest.raises(ksurgeon.RuleError, match=r"quantize: 're:\(': not a regular expression"):
            ksurgeon.quantize(model, **given)
        assert type(model[0]) is nn.Linear


def test_saved_loaded_and_reverted(tmp_path: Path) -> None:
    model, x = network(), torch.randn(5, 32)
    ksurgeon.convert(model, RULE, x)
    ksurgeon.quantize(model)
    with torch.no_grad():
        want = model(x)
        ksurgeon.save(model, tmp_path / "saved")
        loaded = ksurgeon.load(tmp_path / "saved", network())
        assert torch.equal(loaded(x), want)
        assert torch.equal(loaded[0].matrix.factors.values_0, model[0].matrix.factors.values_0)
        dense = [loaded[k].weight.detach().clone() for k in (0, 1, 3)]
        ksurgeon.revert(loaded)
        assert [type(layer) for layer in loaded] == [nn.Linear, nn.Linear, nn.ReLU, nn.Linear]
        for layer, weight in zip((loaded[0], loaded[1], loaded[3]), dense, strict=True):
            torch.testing.assert_close(layer.weight, weight)
        assert relative(loaded(x), want) < 0.05


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    model = network()
    ksurgeon.quantize(model)
    ksurgeon.save(model, tmp_path / "saved")
    file = tmp_path / "saved" / "ksurgeon.json"
    record = json.loads(file.read_text())
    for chains in ([[[1, 48, 33, 1]]], [[[1, 10**6, 10**6, 1]]], [[[1, 48, 32, 1]]] * 3, [[]]):
        record["operations"][0]["int8"] = chains
        file.write_text(json.dumps(record))
        fresh = network()
        with pytest.raises((RecordError, ksurgeon.StructureError)):
            ksurgeon.load(tmp_path / "saved", fresh)
        assert type(fresh[0]) is nn.Linear
    with pytest.raises(FolderError):
        ksurgeon.save(model, tmp_path)


def test_part_of_a_conversion_and_undone_with_it() -> None:
    model, x = network(), torch.randn(5, 32)
    with torch.no_grad():
        before = model(x)
    conversion = ksurgeon.convert(model, RULE, x, weights="int8")
    outcome = conversion.record.outcome
    assert outcome is not None and outcome.bytes is not None
    assert outcome.bytes[1] < 0.4 * outcome.bytes[0]
    assert conversion.output_change is not None and conversion.output_change > 0
    assert [bool(o.int8) for o in conversion.record.operations] == [True] * 3
    with conversion.undone(), torch.no_grad():
        assert [type(layer) for layer in model] == [nn.Linear, nn.Linear, nn.ReLU, nn.Linear]
        assert torch.equal(model(x), before)
    assert isinstance(model[3].matrix, Int8Matrix)


def test_what_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), torch.randn(5, 32)
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan
    with pytest.raises(WeightsError):
        ksurgeon.quantize(model)
    with pytest.raises(WeightsError):
        ksurgeon.convert(model, RULE, x, weights="int8")
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear, nn.ReLU, nn.Linear]
    assert record_of(model) is None
    with pytest.raises(SurgeryError, match='weights is "int8" or None'):
        ksurgeon.convert(model, RULE, x, weights="int4")  # type: ignore[arg-type]
    with pytest.raises(MatchError):
        ksurgeon.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, groups=4)))


def test_tied_weights_stay_dense() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(50, 24), "head": nn.Linear(24, 50, bias=False)})
    model["head"].weight = model["embedding"].weight
    model["own"] = nn.Linear(24, 24)
    assert list(ksurgeon.quantize(model)) == ["own"]
    assert model["head"].weight is model["embedding"].weight


def test_what_is_beside_is_trained_and_dense_weights_are_not_loaded() -> None:
    model, x = network(), torch.randn(5, 32)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ksurgeon.quantize(model, ignore=["3"])
    model(x).square().sum().backward()
    assert model[3].weight.grad is not None
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "0.bias",
        "3.weight",
        "3.bias",
    ]
    with pytest.raises(SurgeryError, match="is quantized"):
        ksurgeon.load_dense(model, dense)


def test_what_reads_its_weight_ties_it_or_is_too_wide_stays() -> None:
    attention = nn.MultiheadAttention(16, 2)
    with pytest.raises(MatchError):
        ksurgeon.quantize(attention)
    tied = nn.Sequential(KLinear(24, 24), nn.ReLU(), KLinear(24, 24))
    tied[2].matrix.factors[0] = tied[0].matrix.factors[0]
    with pytest.raises(MatchError):
        ksurgeon.quantize(tied)
    shared = nn.Sequential(KLinear(24, 24), nn.ReLU(), KLinear(24, 24))
    shared[2].matrix = shared[0].matrix
    assert list(ksurgeon.quantize(shared)) == ["0", "2"]
    assert shared[2].matrix is shared[0].matrix
    with pytest.raises(MatchError):
        ksurgeon.quantize(nn.Sequential(KLinear(16, 16, dtype=torch.complex64)))
    wide = nn.Sequential(nn.Linear(70_000, 1), nn.Linear(1, 1))
    assert list(ksurgeon.quantize(wide)) == ["1"]


def test_errors_of_numbers_of_any_size_and_the_record() -> None:
    for size in (1e30, 1e-30):
        model = network()
        with torch.no_grad():
            model[1].weight.mul_(size)
        assert 0 < ksurgeon.quantize(model, "1")["1"] < 0.02
    model = nn.Sequential(nn.Linear(32, 32))
    conversion = ksurgeon.convert(model, "linear", torch.randn(2, 32), weights="int8")
    assert conversion.record.operations[0].parameters_after == count_parameters(model)
    assert conversion.results[0].structure.endswith(", int8")
    more = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    ksurgeon.quantize(more, "0")
    ksurgeon.quantize(more)
    record = record_of(more)
    assert record is not None and record.outcome is not None
    assert record.outcome.parts == ["2 layers in int8"]


def test_reverted_layers_are_frozen_as_they_were() -> None:
    model = network()
    model[0].requires_grad_(False)
    ksurgeon.quantize(model)
    ksurgeon.revert(model)
    assert [model[k].weight.requires_grad for k in (0, 1, 3)] == [False, True, True]


def test_a_student_with_layers_in_int8_is_distilled() -> None:
    torch.manual_seed(0)
    teacher, student = network(), network()
    ksurgeon.convert(student, RULE, torch.randn(2, 32))
    ksurgeon.quantize(student, ["1"])
    data = [{"input": torch.randn(8, 32)} for _ in range(8)]
    ksurgeon.distill(student, teacher, data, steps=3)
    assert isinstance(student[1].matrix, Int8Matrix)


def test_the_dense_layers_of_gpt2(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16)
    model, ids = transformers.GPT2LMHeadModel(config).eval(), torch.arange(5)[None]
    exact = model.transformer.h[0].mlp.c_fc.double()(torch.eye(32, dtype=torch.float64))
    model.float()
    assert list(ksurgeon.quantize(model, ["Conv1D"])) == [
        f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    with torch.no_grad():
        want = model(ids).logits
        assert relative(model.transformer.h[0].mlp.c_fc(torch.eye(32)).double(), exact) < 0.02
        ksurgeon.save(model, tmp_path)
        assert torch.equal(ksurgeon.load(tmp_path)(ids).logits, want)
        ksurgeon.revert(model)
        assert type(model.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"
        assert relative(model(ids).logits, want) < 0.05


def test_in_channels_last() -> None:
    """Which gives int8 factors, too, other strides."""
    model, x = nn.Sequential(KLinear(32, 48), nn.Linear(48, 20)), torch.randn(3, 32)
    ksurgeon.quantize(model)
    with torch.no_grad():
        want = model(x)
        assert torch.equal(model.to(memory_format=torch.channels_last)(x), want)


def test_transformers_save_and_load_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    model = transformers.BertModel(config).eval()
    ids = {"input_ids": torch.arange(12).view(2, 6)}
    ksurgeon.quantize(model)
    with torch.no_grad():
        want = model(**ids).last_hidden_state
        model.save_pretrained(tmp_path)
        for dtype in (torch.float32, torch.bfloat16):
            again = transformers.AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
            got = again(**ids).last_hidden_state.float()
            assert relative(got, want) < (1e-6 if dtype is torch.float32 else 0.05)
