"""Opening models, with and without a network, and telling where they came from."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers as hf
from safetensors.torch import save_file
from torch import nn

import ksurgeon
from ksurgeon.errors import InputError, ModelNotFoundError, RecordError, WeightsError
from ksurgeon.models import Source, build, infer_source, open_model
from ksurgeon.recipes.run import run_recipe
from ksurgeon.recipes.schema import Recipe
from tests.near import near

BERT = hf.BertConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)
SHUFFLENET = "shufflenet_v2_x0_5"


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def bert_folder(tmp_path):
    model = hf.BertForMaskedLM(BERT)
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert", model


@pytest.mark.parametrize("name", ["test_resnet", f"torchvision:{SHUFFLENET}"])
def test_auto_without_network_gives_random_weights_and_says_so(offline, name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    opened = open_model(name, seed=7)
    assert len(offline) == 1, "asked once, no retries"
    assert opened.source.weights == "random" and not opened.model.training
    assert opened.notes == [opened.source.weights_note]
    assert "RANDOM (seed 7)" in opened.notes[0] and "cannot be reached" in opened.notes[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert same(opened.model, open_model(name, weights="random", seed=7).model)
    assert not same(opened.model, open_model(name, weights="random", seed=8).model)


def test_random_weights_ask_no_network_and_need_no_note(offline):
    opened = open_model("test_resnet", weights="random")
    assert offline == [] and opened.notes == [] and opened.source.weights_note is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_resnet", "cannot be reached"),
        (f"torchvision:{SHUFFLENET}", "cannot be reached"),
        ("efficientvit_m0", "efficientvit_m0"),
    ],
)
def test_pretrained_without_network_is_an_error(offline, name, expected):
    with pytest.raises(WeightsError, match=expected):
        open_model(name, weights="pretrained")
    assert len(offline) == 1


def test_a_hub_id_without_network_is_an_error(offline):
    with pytest.raises(ModelNotFoundError, match="hub cannot be reached"):
        open_model("hf:google-bert/bert-base-uncased")
    assert len(offline) == 1


def test_cached_torchvision_weights_need_no_network(offline, tmp_path):
    trained = torchvision.models.get_model(SHUFFLENET)
    url = torchvision.models.get_model_weights(SHUFFLENET).DEFAULT.url
    cache = tmp_path / "torch" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(trained.state_dict(), cache / Path(url).name)
    opened = open_model(f"torchvision:{SHUFFLENET}")
    assert opened.source.weights == "pretrained" and opened.notes == [] and offline == []
    assert same(opened.model, trained)


def test_cached_timm_weights_need_no_network(offline, tmp_path):
    trained = timm.create_model("test_resnet")
    repository = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    cache = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0123")
    (cache / "snapshots" / "0123").mkdir(parents=True)
    save_file(trained.state_dict(), cache / "snapshots" / "0123" / "model.safetensors")
    opened = open_model("test_resnet", weights="pretrained")
    assert opened.source.weights == "pretrained" and offline == []
    assert same(opened.model, trained)


def test_damaged_cached_weights_fall_back_or_fail(offline, tmp_path):
    url = torchvision.models.get_model_weights(SHUFFLENET).DEFAULT.url
    cache = tmp_path / "torch" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / Path(url).name).write_bytes(b"damaged")
    assert "RANDOM" in open_model(f"torchvision:{SHUFFLENET}").notes[0]
    with pytest.raises(WeightsError):
        open_model(f"torchvision:{SHUFFLENET}", weights="pretrained")


def test_a_transformers_folder(offline, bert_folder):
    folder, trained = bert_folder
    opened = open_model(str(folder))
    assert type(opened.model) is hf.BertForMaskedLM and same(opened.model, trained)
    assert opened.source.kind == "transformers" and opened.source.weights == "pretrained"
    assert opened.source.options["config"]["architectures"] == ["BertForMaskedLM"]
    with torch.no_grad():
        assert opened.model(**opened.example_inputs).logits.shape == (1, 16, 64)
    assert offline == []


def test_a_transformers_folder_without_weights(offline, bert_folder):
    folder, _ = bert_folder
    (folder / "model.safetensors").unlink()
    assert "RANDOM" in open_model(str(folder)).notes[0]
    with pytest.raises(WeightsError):
        open_model(str(folder), weights="pretrained")


def test_a_transformers_folder_whose_weights_lack_the_head_is_told(offline, bert_folder):
    folder, trained = bert_folder
    trained.bert.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    (note,) = open_model(str(folder)).notes
    assert "are RANDOM: cls.predictions" in note


@pytest.mark.parametrize(
    "config", ["{}", "{", '{"model_type": "no-such"}', '{"model_type": "bert", "architectures": ["NoSuch"]}']
)
def test_a_folder_with_a_strange_config(offline, tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelNotFoundError):
        open_model(f"{tmp_path}/")


def test_weights_from_a_file(offline, tmp_path):
    trained = timm.create_model("test_resnet")
    file = tmp_path / "w.safetensors"
    save_file(trained.state_dict(), file)
    opened = open_model("test_resnet", weights=str(file))
    assert same(opened.model, trained) and opened.source.weights == str(file) and offline == []
    with pytest.raises(WeightsError, match="does not fit VisionTransformer"):
        open_model("test_vit", weights=str(file))


@pytest.mark.parametrize("weights", ["x.pt", "imagenet", ""])
def test_weights_of_no_known_kind(weights):
    with pytest.raises(WeightsError, match=r"FILE\.safetensors"):
        open_model("test_resnet", weights=weights)


FUNCTIONS = """
import torch
def net(n=4, bias=True): return torch.nn.Sequential(torch.nn.Linear(n, n, bias=bias))
def raises(): raise ValueError("no luck")
def three(): return 3
constant = 3
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "functions_for_test.py").write_text(FUNCTIONS)
    (tmp_path / "broken_for_test.py").write_text("import no_such_module_at_all")
    monkeypatch.chdir(tmp_path)


def test_a_function(functions):
    opened = open_model("functions_for_test:net", options={"n": 6, "bias": False}, seed=1)
    assert opened.source == Source(
        kind="function", name="functions_for_test:net", options={"n": 6, "bias": False}, weights="given"
    )
    assert opened.example_inputs[0].shape == (1, 6) and opened.model[0].bias is None
    again = open_model("functions_for_test:net", options={"n": 6, "bias": False}, seed=1)
    assert same(opened.model, again.model)
    assert same(build(opened.source), build(opened.source))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("functions_for_test:nope", 'has no function "nope"'),
        ("functions_for_test:constant", 'has no function "constant"'),
        ("functions_for_test:raises", "ValueError: no luck"),
        ("functions_for_test:three", "returned int; expected a torch.nn.Module"),
        ("broken_for_test:net", "No module named 'no_such_module_at_all'"),
        ("not_there_for_test:net", "No module named 'not_there_for_test'"),
    ],
)
def test_functions_that_give_no_model(functions, name, expected):
    with pytest.raises(ModelNotFoundError, match=expected):
        open_model(name)


def test_a_function_has_no_pretrained_weights(functions):
    with pytest.raises(WeightsError, match="is a function"):
        open_model("functions_for_test:net", weights="pretrained")


def test_options_the_builder_does_not_take(offline):
    with pytest.raises(InputError, match="no_such_option"):
        open_model("test_resnet", options={"no_such_option": 1})


@pytest.mark.parametrize(
    ("make", "kind", "name", "options"),
    [
        (lambda: timm.create_model("test_resnet"), "timm", "test_resnet.r160_in1k", {}),
        (
            lambda: timm.create_model("test_resnet", num_classes=5, in_chans=1),
            "timm",
            "test_resnet.r160_in1k",
            {"num_classes": 5, "in_chans": 1},
        ),
        (
            lambda: timm.create_model("test_vit", img_size=64),
            "timm",
            "test_vit.r160_in1k",
            {"img_size": [64, 64]},
        ),
        (lambda: torchvision.models.shufflenet_v2_x1_5(), "torchvision", "shufflenet_v2_x1_5", {}),
        (
            lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=9),
            "torchvision",
            SHUFFLENET,
            {"num_classes": 9},
        ),
    ],
)
def test_a_source_is_inferred_and_builds_the_same(make, kind, name, options):
    model = make()
    source = infer_source(model)
    assert (source.kind, source.name, source.options) == (kind, name, options)
    assert str(build(source)) == str(model)
    assert Source.model_validate_json(source.model_dump_json()) == source


def test_a_transformers_source_is_inferred():
    model = hf.BertForSequenceClassification(BERT)
    source = Source.model_validate_json(infer_source(model).model_dump_json())
    rebuilt = build(source)
    assert type(rebuilt) is type(model) and str(rebuilt) == str(model)


def _changed():
    model = torchvision.models.shufflenet_v2_x0_5()
    model.fc = nn.Sequential(nn.Dropout(), model.fc)
    return model


def _activation():
    model = timm.create_model("test_resnet")
    model.act1 = nn.Tanh()
    return model


class Own(hf.BertForMaskedLM):
    pass


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2), _changed, _activation, lambda: Own(BERT)])
def test_no_source_is_better_than_a_wrong_one(make):
    assert infer_source(make()) is None


def test_a_converted_folder_is_no_architecture(tmp_path):
    (tmp_path / "ksurgeon.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match=r"ksurgeon\.load"):
        open_model(str(tmp_path))


@pytest.fixture
def remote_folder(tmp_path):
    """A model whose code lies beside its weights."""
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "modeling_two.py").write_text(
        "import torch\n"
        "from transformers import PreTrainedConfig, PreTrainedModel\n"
        "class TwoConfig(PreTrainedConfig):\n"
        "    model_type = 'two_of_a_kind'\n"
        "class TwoModel(PreTrainedModel):\n"
        "    config_class, main_input_name = TwoConfig, 'input_values'\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.layer, self.head = torch.nn.Linear(16, 16), torch.nn.Linear(16, 3)\n"
        "        self.post_init()\n"
        "    def forward(self, input_values):\n"
        "        return self.head(self.layer(input_values).relu())\n"
    )
    config = {
        "model_type": "two_of_a_kind",
        "architectures": ["TwoModel"],
        "auto_map": {"AutoConfig": "modeling_two.TwoConfig", "AutoModel": "modeling_two.TwoModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        "layer.weight": torch.randn(16, 16),
        "layer.bias": torch.randn(16),
        "head.weight": torch.randn(3, 16),
        "head.bias": torch.randn(3),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, tensors


def test_code_in_a_repository_runs_only_by_leave(offline, remote_folder, tmp_path):
    folder, tensors = remote_folder
    with pytest.raises(ModelNotFoundError, match="--trust-remote-code"):
        open_model(str(folder))
    opened = open_model(str(folder), options={"trust_remote_code": True}, input_size=16)
    assert all(torch.equal(opened.model.state_dict()[name], tensor) for name, tensor in tensors.items())
    x = torch.randn(2, 16)
    ksurgeon.convert(opened.model, "linear", x, source=opened.source)
    ksurgeon.save(opened.model, tmp_path / "converted", files_from=folder)
    assert not list((tmp_path / "converted").glob("*.py"))
    with pytest.raises(RecordError, match="trust_remote_code=True"):
        ksurgeon.load(tmp_path / "converted")
    loaded = ksurgeon.load(tmp_path / "converted", trust_remote_code=True)
    assert near(loaded(x), opened.model(x))


def test_code_in_a_repository_that_a_recipe_opens_runs_only_by_leave(offline, remote_folder, tmp_path):
    model, variants = {"name": str(remote_folder[0]), "input_size": 16}, [{"name": "untouched"}]
    recipe = Recipe.model_validate({"schema": 1, "name": "two", "model": model, "variants": variants})
    with pytest.raises(ModelNotFoundError, match="--trust-remote-code"):
        run_recipe(recipe, tmp_path / "run")
    assert run_recipe(recipe, tmp_path / "run", trust_remote_code=True)["dense"]["parameters"] == 323
