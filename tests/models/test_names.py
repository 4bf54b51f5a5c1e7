"""What a user may write for a model."""

import pytest

from ksurgeon.errors import ModelNotFoundError
from ksurgeon.models import parse


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, file in (
        ("hf", "config.json"),
        ("converted", "ksurgeon.json"),
        ("empty", "x"),
        ("resnet18", "x"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("{}")


@pytest.mark.parametrize(
    ("name", "kind", "rest"),
    [
        ("resnet50", "timm", "resnet50"),
        ("resnet18", "timm", "resnet18"),
        ("resnet50.a1_in1k", "timm", "resnet50.a1_in1k"),
        ("timm:resnet50", "timm", "resnet50"),
        ("shufflenet_v2_x0_5", "torchvision", "shufflenet_v2_x0_5"),
        ("torchvision:resnet50", "torchvision", "resnet50"),
        ("hf:google-bert/bert-base-uncased", "transformers", "google-bert/bert-base-uncased"),
        ("hf", "transformers", "hf"),
        ("./hf", "transformers", "./hf"),
        ("converted/", "ksurgeon", "converted/"),
        ("my.models:net", "function", "my.models:net"),
    ],
)
def test_names(name, kind, rest):
    assert parse(name) == (kind, rest)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet_50", "resnet50"),
        ("shuflenet_v2_x1_0", "torchvision:shufflenet_v2_x1_0"),
        ("torchvision:resnet51", "nearest names are torchvision:resnet50"),
        ("timm:shufflenet_v2_x1_0", "torchvision:shufflenet_v2_x1_0"),
        ("resnet50.nope", 'timm knows "resnet50", but no weights of it with the tag "nope"'),
        ("qqqqqqqq", "no name comes near"),
        ("", 'no model is called ""'),
        ("google/vit", "hf:google/vit"),
        ("empty", 'no model is called "empty"'),
        ("./empty", "neither ksurgeon.json nor config.json"),
        ("hf:", "lacks an ID"),
    ],
)
def test_wrong_names(name, expected):
    with pytest.raises(ModelNotFoundError) as caught:
        parse(name)
    assert expected in str(caught.value)
