"""What a record may ask of a library's builder."""

import pytest
import torch
import transformers as hf
from torch import nn

from ksurgeon.errors import InputError, KsurgeonError, ModelNotFoundError, RecordError
from ksurgeon.models import Source, build
from ksurgeon.models.bounds import bounded
from ksurgeon.models.options import checked_config, checked_options


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
@pytest.mark.parametrize("name", ["checkpoint_path", "weights", "pretrained", "pretrained_cfg", "cache_dir"])
def test_options_that_read_files_are_refused(kind, name, tmp_path):
    torch.save(Touches(tmp_path / "touched"), tmp_path / "x.pt")
    model = {"timm": "test_resnet", "torchvision": "resnet18"}[kind]
    with pytest.raises(InputError):
        build(Source(kind=kind, name=model, options={name: str(tmp_path / "x.pt")}))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["local-dir:/tmp", "hf-hub:a/b", "./x"])
def test_timm_opens_no_folder_and_no_repository(name):
    with pytest.raises(ModelNotFoundError, match="no model"):
        build(Source(kind="timm", name=name))


def test_values_are_numbers_words_and_tables_of_them():
    plain = {"num_classes": 7, "act_layer": "gelu_tanh", "out_indices": [1, -1], "a": {"b": None, "c": 0.5}}
    assert checked_options(plain) == plain
    for value in (10**9, "a/b", "../x", [["/etc"]], {"file": 1}, {"weights_b": 1}, object(), "x" * 100):
        with pytest.raises(InputError):
            checked_options({"option": value})


def test_a_config_names_no_code():
    config = {
        "model_type": "bert",
        "auto_map": {"AutoModel": "evil.M"},
        "attn_implementation": "someone/kernel",
        "text_config": {"auto_map": {}, "_attn_implementation": "sdpa", "id2label": {"0": "n/a"}},
        "rope_theta": 10**9,
        "use_pretrained_backbone": True,
    }
    assert checked_config(config) == {
        "model_type": "bert",
        "text_config": {"_attn_implementation": "sdpa", "id2label": {"0": "n/a"}},
        "rope_theta": 10**9,
        "use_pretrained_backbone": False,
    }
    for wrong in ({"num_hidden_layers": 10**9}, {"model_args": {"checkpoint_path": "x"}}):
        with pytest.raises(InputError):
            checked_config(wrong)


@pytest.mark.parametrize("architecture", ["pipeline", "AutoModel", 5, "os", ["x"]])
def test_only_models_of_transformers_are_built(architecture):
    config = hf.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).to_dict()
    with pytest.raises(KsurgeonError, match="no class"):
        options = {"config": config | {"architectures": [architecture]}}
        build(Source(kind="transformers", name="x", options=options))


@pytest.mark.parametrize("config", [None, 7, {}, {"model_type": ["x"]}])
def test_a_config_without_a_type_is_an_error(config):
    with pytest.raises(ModelNotFoundError, match="no model_type"):
        build(Source(kind="transformers", name="x", options={"config": config}))


def test_building_is_bounded_by_what_the_record_tells():
    with bounded(10**6, 2):
        nn.Linear(1000, 1000)
    for make in (
        lambda: nn.Linear(10**5, 10**5),
        lambda: [nn.Linear(10**4, 10**3) for _ in range(100)],
        lambda: torch.arange(10**12),
        lambda: torch.eye(10**6),
        lambda: [nn.Linear(1, 1) for _ in range(10**6)],
    ):
        with pytest.raises(RecordError, match="makes more than"), bounded(10**3, 10):
            make()


@pytest.mark.parametrize(
    "sizes", [{"hidden_size": 2**20}, {"num_hidden_layers": 2**20}, {"vocab_size": 2**24}]
)
def test_a_record_whose_config_asks_for_more_than_its_model_has_is_refused(sizes):
    config = hf.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).to_dict() | sizes
    source = Source(kind="transformers", name="x", options={"config": config})
    with pytest.raises(KsurgeonError), bounded(10**4, 40):
        build(source)
