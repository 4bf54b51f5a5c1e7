"""The decoding loop gives what transformers gives, in every runtime; and where its time goes adds up."""

import pytest
import torch
from torch import nn

import ksurgeon
from benchmarks import ctranslate, profiled, runtimes, translation
from benchmarks.decoding import Source, Step, greedy, greedy_dynamic
from tests.near import near

TINY = {"width": 32, "inner": 64, "encoder_layers": 2, "decoder_layers": 2}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(translation.MODELS, "tiny", TINY)
    monkeypatch.setattr(translation, "_WORDS", 100)
    monkeypatch.setattr(translation, "_TOKENS", 9)
    translation._folder.cache_clear()
    yield
    translation._folder.cache_clear()


def model_and_inputs(kind, batch=3):
    """With larger weights, so that tokens differ, and no end; a source has padding."""
    model = translation.built("tiny", kind)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not model.lm_head:
                module.weight.normal_(std=0.5, generator=generator)
            elif isinstance(module, ksurgeon.KLinear):
                module.matrix.factors[0].mul_(3)
        model.final_logits_bias[:, :2] = -1e4
    inputs = translation._inputs(batch)
    inputs["attention_mask"][1, 5:] = 0
    return model, inputs


def own(model, inputs, source=None, step=None):
    given = source or Source(model), step or Step(model), model.config, inputs, 9, torch.float32
    return greedy(*given)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["dense", "converted", "converted with head"])
def test_the_step_gives_what_the_whole_model_gives(tiny, kind):
    """Logits after every token of some target."""
    model, inputs = model_and_inputs(kind)
    target = torch.randint(2, 100, (3, 9), generator=torch.Generator().manual_seed(2))
    keys, values = Source(model)(**inputs)
    step, past, found = Step(model), torch.zeros(2, 2, 3, 4, 9, 8), []
    for at in range(9):
        given = target[:, at : at + 1], torch.tensor([at]), inputs["attention_mask"]
        logits, past = step(*given, keys, values, past)
        found.append(logits)
    expected = model(**inputs, decoder_input_ids=target).logits[..., 2:]
    assert near(torch.stack(found, 1)[..., 2:], expected)
    others = {name: tensor.flip(0) for name, tensor in inputs.items()}
    other = model(**others, decoder_input_ids=target).logits[..., 2:]
    assert (other - expected)[0].abs().max() > 1e-2 * expected.abs().max(), "the source has an influence"


def test_tokens_are_those_of_transformers(tiny):
    model, inputs = model_and_inputs("dense")
    expected = model.generate(**inputs, max_new_tokens=9, min_new_tokens=9, do_sample=False)[:, 1:]
    found = own(model, inputs)
    assert len(set(map(tuple, found.tolist()))) > 1, "sentences have translations of their own"
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("kernels", [False, True])
def test_the_step_in_onnx_runtime(tiny, kernels):
    pytest.importorskip("onnxruntime")
    model, inputs = model_and_inputs("converted" if kernels else "dense")
    inputs = {name: tensor[:2] for name, tensor in inputs.items()}
    source = Source(model)
    with torch.inference_mode():
        keys, values = (part.clone() for part in source(*inputs.values()))
    asked = {
        "token": inputs["input_ids"][:, :1],
        "position": torch.tensor([1]),
        "mask": inputs["attention_mask"],
        "keys": keys,
        "values": values,
        "past": torch.zeros(2, 2, 2, 4, 9, 8),
    }
    step = runtimes.run_named(Step(model), asked, "float32", 1, kernels)
    assert own(model, inputs, step=step).tolist() == own(model, inputs).tolist()


def test_ctranslate2_gives_the_same(tiny):
    ctranslate2 = pytest.importorskip("ctranslate2")
    model, inputs = model_and_inputs("dense")
    inputs["attention_mask"][:] = 1
    translator = ctranslate2.Translator(str(ctranslate.written(model)), device="cpu")
    texts = [[str(token) for token in row] for row in inputs["input_ids"].tolist()]
    lengths = {"min_decoding_length": 9, "max_decoding_length": 9}
    found = translator.translate_batch(texts, beam_size=1, **lengths)
    ours = model.generate(**inputs, max_new_tokens=9, min_new_tokens=9, do_sample=False)[:, 1:]
    assert [[int(token) for token in one.hypotheses[0]] for one in found] == ours.tolist()


@pytest.mark.parametrize(
    "way",
    [
        "converted, generate bfloat16",
        "converted, step int8",
        "converted, prepacked bfloat16",
        "converted, ONNX int8",
        "converted with head, step float32",
        "converted with head, step int8",
        "dense, ONNX int8",
        "dense, step float32",
        "dense, shallower float32",
        "dense, narrower float32",
    ],
)
def test_candidates_translate(tiny, way):
    with torch.inference_mode():
        found = translation.opened(f"tiny: {way}")(2, 1)()
    assert found.shape == (2, 10 if "generate" in way else 9)


@pytest.mark.parametrize("kind", ["dense", "converted"])
def test_dynamic_convolutions_translate(tiny, monkeypatch, kind):
    """The loop gives what the recipe's own search does."""
    monkeypatch.setitem(translation.MODELS, "DynamicConv tiny", TINY)
    model = translation.built("DynamicConv tiny", kind)
    inputs = translation._inputs(3)
    found = greedy_dynamic(model, inputs, 9)
    sure = model(**inputs, decoder_input_ids=torch.cat([torch.zeros_like(found[:, :1]), found[:, :-1]], 1))
    assert found.tolist() == sure["logits"].argmax(-1).tolist()
    with torch.inference_mode():
        again = translation.opened(f"DynamicConv tiny: {kind}, step float32")(3, 1)()
    assert again.tolist() == found.tolist()


def test_candidates_of_models():
    assert not any("head" in way for way in translation._ways("DynamicConv 512", None))
    assert translation._ways("translate 256", ["torch-int8"]) == ["dense, torch-int8 float32"]


def test_less_is_less(tiny):
    counts = {
        name: sum(p.numel() for p in translation.built("tiny", "dense", **changes).parameters())
        for name, changes in {
            "dense": {},
            "shallower": {"decoder_layers": 1},
            "narrower": {"decoder_inner": 8},
        }.items()
    }
    assert counts["shallower"] < counts["dense"] and counts["narrower"] < counts["dense"]


def test_parts_add_up(tiny):
    kinds = {kind: translation.built("tiny", kind) for kind in ("converted", "dense")}
    rows = profiled.profile_rows("tiny", kinds, translation._inputs(2), 9, 0.0)
    assert [row["case"] for row in rows] == [
        "decoder's linear layers",
        "encoder",
        "output head",
        "everything else",
        "all",
    ]
    times = profiled.times_of(kinds["dense"], translation._inputs(2), 9)
    assert min(times.values()) > 0
    assert sum(taken for part, taken in times.items() if part != "all") == pytest.approx(times["all"])
    assert not any(module._forward_hooks for module in kinds["dense"].modules()), "no clock stays"


def test_what_is_wanted_of_which_row():
    times = {
        f"tiny: {way}": {"median": median, "low": median, "high": median, "best": median}
        for way, median in (
            ("converted with head, step float32", 1.0),
            ("dense, step float32", 3.0),
            ("dense, CTranslate2 int8", 0.5),
        )
    }
    (row,) = translation._rows("tiny", (1, 1), times)
    assert row["wanted"] == {"dense, step float32": 2.5}
    assert row["ratios"] == {"dense, step float32": 3.0, "dense, CTranslate2 int8": 0.5}
    (row,) = translation._rows("tiny", (1, 2), times)
    assert row["wanted"] == {}
