"""Examples that fit a model."""

import pytest
import torch
import transformers as hf
from torch import nn

from ksurgeon.errors import InputError
from ksurgeon.models import Source, build, example_inputs

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = SMALL | {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PAIR = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
VIT = SMALL | {"image_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: hf.BertModel(hf.BertConfig(**TEXT)), {"input_ids": (1, 16), "attention_mask": (1, 16)}),
        (
            lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
            {"input_ids": (1, 16), "attention_mask": (1, 16), "decoder_input_ids": (1, 16)},
        ),
        (lambda: hf.ViTModel(hf.ViTConfig(**VIT)), {"pixel_values": (1, 3, 32, 32)}),
        (
            lambda: hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VIT)),
            {"input_ids": (1, 16), "attention_mask": (1, 16), "pixel_values": (1, 3, 32, 32)},
        ),
        (lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SMALL)), {"input_values": (1, 16000)}),
        (
            lambda: hf.WhisperModel(hf.WhisperConfig(**PAIR, max_source_positions=50)),
            {"input_features": (1, 80, 100), "decoder_input_ids": (1, 16)},
        ),
        (lambda: hf.ASTModel(hf.ASTConfig(**SMALL, max_length=64)), {"input_values": (1, 64, 128)}),
    ],
)
def test_transformers(make, shapes):
    model = make().eval()
    inputs = example_inputs(model)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == shapes
    with torch.no_grad():
        model(**inputs)


@pytest.mark.parametrize(
    ("source", "input_size", "shape"),
    [
        (Source(kind="timm", name="test_resnet"), None, (1, 3, 160, 160)),
        (Source(kind="timm", name="test_resnet"), 96, (1, 3, 96, 96)),
        (Source(kind="timm", name="test_resnet"), (64, 96), (1, 3, 64, 96)),
        (Source(kind="timm", name="test_resnet", options={"in_chans": 1}), (1, 64, 64), (1, 1, 64, 64)),
        (Source(kind="torchvision", name="shufflenet_v2_x0_5"), None, (1, 3, 224, 224)),
        (Source(kind="torchvision", name="efficientnet_b1"), None, (1, 3, 240, 240)),
        (Source(kind="torchvision", name="r3d_18"), None, (1, 3, 16, 112, 112)),
        (Source(kind="torchvision", name="r3d_18"), 64, (1, 3, 16, 64, 64)),
    ],
)
def test_images(source, input_size, shape):
    (image,) = example_inputs(source, input_size)
    assert image.shape == shape


@pytest.mark.parametrize(
    ("model", "input_size", "shape"),
    [
        (nn.Sequential(nn.Linear(5, 3)), None, (1, 5)),
        (nn.Sequential(nn.ReLU(), nn.Conv1d(4, 2, 3)), 50, (1, 4, 50)),
        (nn.Conv3d(2, 2, 3), None, (1, 2, 16, 112, 112)),
        (nn.ReLU(), (2, 3), (1, 2, 3)),
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), 7, (1, 7)),
    ],
)
def test_the_first_layer_tells(model, input_size, shape):
    (value,) = example_inputs(model, input_size)
    assert value.shape == shape
    model(value)


def test_dtype_seed_and_global_random_state():
    model = nn.Linear(4, 4, dtype=torch.float64)
    before = torch.get_rng_state()
    (first,), (again,), (other,) = (example_inputs(model, seed=seed) for seed in (1, 1, 2))
    assert first.dtype == torch.float64
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_example_of_a_source_runs_in_what_it_builds():
    source = Source(kind="timm", name="test_vit")
    with torch.no_grad():
        assert build(source).eval()(*example_inputs(source)).shape == (1, 1000)


@pytest.mark.parametrize(("model", "size"), [(nn.ReLU(), None), (nn.Linear(2, 2), 0), (nn.Linear(2, 2), ())])
def test_no_example(model, size):
    with pytest.raises(InputError):
        example_inputs(model, size)
