"""Examples for models of transformers: one type for each way in which a model tells what it takes."""

import pytest
import torch
import transformers as hf
from torch import nn

from ksurgeon.errors import InputError
from ksurgeon.models.inputs import inputs_for
from tools.survey.tiny_transformers import build

SHAPES = {
    # text, and text beside boxes or features
    "gpt2": {"input_ids": (1, 16), "attention_mask": (1, 16)},
    "canine": {"input_ids": (1, 64), "attention_mask": (1, 64)},
    "bros": {"input_ids": (1, 16), "attention_mask": (1, 16), "bbox": (1, 16, 4)},
    "luke": {"entity_ids": (1, 2), "entity_position_ids": (1, 2, 4)},
    "t5": {"input_ids": (1, 16), "decoder_input_ids": (1, 16)},
    # pictures: plain, in pairs, as patches with a grid, with a mask and sizes, one row of patches
    "vilt": {"input_ids": (1, 16), "pixel_values": (1, 3, 32, 32)},
    "lightglue": {"pixel_values": (1, 2, 3, 224, 224)},
    "qwen3_vl_vision": {"hidden_states": (16, 384), "grid_thw": (1, 3)},
    "siglip2": {"pixel_values": (1, 16, 192), "pixel_attention_mask": (1, 16), "spatial_shapes": (1, 2)},
    "gemma4_vision": {"pixel_values": (1, 16, 192), "pixel_position_ids": (1, 16, 2)},
    "vivit": {"pixel_values": (1, 32, 3, 32, 32)},
    # pictures and sounds that stand in a text
    "llava": {"input_ids": (1, 24), "pixel_values": (1, 3, 32, 32)},
    "llava_next": {"input_ids": (1, 44), "pixel_values": (1, 3, 3, 32, 32), "image_sizes": (1, 2)},
    "idefics3": {"pixel_values": (1, 1, 3, 32, 32)},
    "qwen2_5_vl": {"input_ids": (1, 14), "pixel_values": (16, 384), "mm_token_type_ids": (1, 14)},
    "audioflamingo3": {"input_ids": (1, 24), "input_features": (1, 16, 64)},
    "qwen2_audio": {"input_ids": (1, 24), "feature_attention_mask": (1, 64)},
    "qwen2_5_omni_thinker": {"pixel_values": (16, 384), "input_features": (1, 16, 16)},
    # sounds: a waveform, one with channels, features either way round
    "wav2vec2": {"input_values": (1, 16000)},
    "dac": {"input_values": (1, 1, 16000)},
    "whisper": {"input_features": (1, 16, 64), "decoder_input_ids": (1, 16)},
    "wav2vec2-bert": {"input_features": (1, 128, 160)},
    # series, states
    "informer": {"past_values": (1, 21), "future_values": (1, 7)},
    "patchtst": {"past_values": (1, 32, 1)},
    "decision_transformer": {"states": (1, 4, 17), "actions": (1, 4, 4), "timesteps": (1, 4)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_type_runs_on_its_example(name):
    model = next(build(name))
    used: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and "out_proj" not in path:
            module.register_forward_pre_hook(lambda *_, path=path: used.add(path))
    inputs = inputs_for(model)
    shapes = {key: tuple(inputs[key].shape) for key in SHAPES[name]}
    assert shapes == SHAPES[name]
    used.clear()
    with torch.no_grad():
        model(**inputs)
    towers = {path.split(".")[0] for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert {path.split(".")[0] for path in used} >= towers - {"connector"}


def test_learning_the_number_of_placeholders_leaves_the_model_as_it_was():
    model = next(build("qwen2_vl")).train()
    model.visual.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    inputs = inputs_for(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and not model.visual.training and model.language_model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4


def test_plain_text_has_no_special_tokens():
    config = hf.LlamaConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        bos_token_id=12, eos_token_id=15, pad_token_id=14,
    )  # fmt: skip
    ids = inputs_for(hf.LlamaModel(config))["input_ids"]
    assert set(ids[0, :-1].tolist()) <= {10, 11, 13} and ids[0, -1] == 15


class Odd(hf.PreTrainedModel):
    config_class = hf.ViTConfig
    main_input_name = "moods"

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(2, 2)
        self.post_init()

    def forward(self, moods):
        return self.layer(moods)


class Parts(Odd):
    forward = nn.Module.forward


@pytest.mark.parametrize(("cls", "told"), [(Odd, '"moods" of Odd'), (Parts, "Parts has no forward")])
def test_what_is_not_known_is_told(cls, told):
    with pytest.raises(InputError, match=told) as caught:
        inputs_for(cls(hf.ViTConfig()))
    assert "give" in str(caught.value)
