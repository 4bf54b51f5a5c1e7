"""Small configurations of transformers' types."""

import pytest

from tools.survey.tiny_exceptions import SIZES
from tools.survey.tiny_transformers import NotInstalledError, build, small_config


def test_one_layer_of_each_kind_is_kept():
    config = small_config("qwen3_next", SIZES[0])
    assert config.num_hidden_layers == len(config.layer_types) == 2
    assert set(config.layer_types) == {"linear_attention", "full_attention"}


def test_the_size_of_a_head_is_kept_and_so_are_rotary_sections():
    config = small_config("qwen2_5_vl", SIZES[0]).text_config
    assert (config.hidden_size, config.num_attention_heads) == (256, 2)  # of 128
    vision = small_config("qwen2_5_vl", SIZES[0]).vision_config
    assert vision.depth == 2 and vision.out_hidden_size == config.hidden_size
    assert max(vision.fullatt_block_indexes) < vision.depth


def test_tokens_are_in_the_vocabulary_and_differ():
    config = small_config("qwen2_vl", SIZES[0])
    tokens = [config.image_token_id, config.video_token_id, config.vision_start_token_id]
    assert len(set(tokens)) == 3 and max(tokens) < config.text_config.vocab_size


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("glm4v", "text_config.head_dim", 128),  # the exception is that of glm4v_text
        ("mllama", "vision_config.vision_output_dim", 512),
        ("informer", "prediction_length", 7),
    ],
)
def test_exceptions(name, path, value):
    found = small_config(name, SIZES[0])
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_a_type_whose_library_is_missing_says_so(monkeypatch):
    import transformers.models.dinat.modeling_dinat as dinat

    def missing(*_):
        raise ImportError("DinatModel requires the natten library\nmore")

    monkeypatch.setattr(dinat, "requires_backends", missing)
    with pytest.raises(NotInstalledError, match=r"requires the natten library$"):
        next(build("dinat"))
