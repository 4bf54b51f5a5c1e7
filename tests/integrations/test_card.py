"""What a model card says about loading runs."""

import pytest

from ksurgeon.integrations.card import model_card
from ksurgeon.models.source import Source
from ksurgeon.surgery.record import Record, record_of
from tests import zoo

CONFIG = {"architectures": ["TwoModel"], "auto_map": {"AutoModel": "modeling_two.TwoModel"}}


def card_of(source):
    record = Record.begin(zoo.mlp())
    record.source = source
    return model_card(record)


@pytest.mark.parametrize(
    "source, told",
    [
        (None, 'load("FOLDER", model=the_architecture)'),
        (Source(kind="timm", name="resnet18"), 'load("FOLDER")'),
        (Source(kind="function", name="own:model"), 'load("FOLDER", trust_remote_code=True)'),
        (
            Source(kind="transformers", name="two", options={"config": CONFIG, "trust_remote_code": True}),
            'load("FOLDER", trust_remote_code=True)',
        ),
    ],
)
def test_how_it_is_loaded(source, told):
    card = card_of(source)
    assert told in card and "from_pretrained" not in card


def test_the_function_that_it_tells_of_loads_it(tmp_path):
    import ksurgeon

    model = zoo.mlp().eval()
    ksurgeon.convert(model, "linear", zoo.example("mlp"), source="tests.zoo:mlp")
    ksurgeon.save(model, tmp_path / "FOLDER")
    record = record_of(model)
    assert record is not None
    code = (
        model_card(record).split("```python\n")[1].split("```")[0].replace("FOLDER", str(tmp_path / "FOLDER"))
    )
    scope = {}
    exec(code, scope)
    assert type(scope["model"]) is type(model)
