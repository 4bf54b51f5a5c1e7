"""The formats that ksurgeon reads: of each a sound example, a damaged one, and what reads it."""

import json
import struct
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import ksurgeon
from ksurgeon.errors import KsurgeonError
from ksurgeon.find import Finder
from ksurgeon.kernels.cache import Cache
from ksurgeon.models.companions import copy_companions
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.rules.files import checked_plan, read_plan, write_plan
from ksurgeon.rules.load import builtin_rules, load_rule
from ksurgeon.rules.plan import make_plan
from ksurgeon.train.checkpoint import Checkpoints
from ksurgeon.train.sources import open_source
from tests.fuzz.mutate import as_json, as_toml, plain, text

X = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))


def trap(**_: object) -> None:
    """What a file must not have called."""
    raise SystemExit("a function that a file names was called")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 24, bias=False)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).view(-1, 4, 4).transpose(1, 2).reshape(-1, 16)
        return self.second(x) * self.scale


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def _rule(kind: str, structure: str = "kaleidoscope", start: str = "random") -> ksurgeon.Rule:
    part = {"find": kind, "with": {"structure": structure}, "start": start}
    return ksurgeon.Rule.model_validate({"schema": 1, "name": "r", "replace": [part]})


@dataclass(frozen=True)
class Format:
    """``make`` writes a sound example into a folder, ``damage`` writes it damaged, and ``read`` reads it."""

    make: Callable[[Path], None]
    damage: Callable[[Random, Path], None]
    read: Callable[[Path], object]
    weight: int = 4


def _load_into_a_model(folder: Path) -> None:
    """A load that fails leaves the model as it was."""
    model = net()
    before, state = str(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        ksurgeon.load(folder / "model", model)
    except KsurgeonError:
        assert str(model) == before and model.scale.dtype == torch.float32, "the model was changed"
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items()), "its values were changed"
        raise


def _converted(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        model = net()
        ksurgeon.convert(model, _rule(kind, start="random" if kind == "linear" else "exact"), X)
        ksurgeon.save(model, folder / "model")

    return make


def _of_transformers(folder: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=32, **sizes)).eval()
    ksurgeon.convert(model, _rule("linear"), {"input_ids": torch.arange(8)[None]})
    ksurgeon.save(model, folder / "model")


def _by_save_pretrained(folder: Path) -> None:
    _of_transformers(folder)
    ksurgeon.load(folder / "model").save_pretrained(folder / "model")
    (folder / "model" / "ksurgeon.json").unlink()


def _of_timm(folder: Path) -> None:
    import timm

    model = timm.create_model("test_vit", img_size=32).eval()
    ksurgeon.convert(model, _rule("linear"), torch.randn(1, 3, 32, 32))
    ksurgeon.save(model, folder / "model")


@cache
def _sound(file: Path) -> bytes:
    return file.read_bytes()


def _json(name: str) -> Callable[[Random, Path], None]:
    def damage(random: Random, folder: Path) -> None:
        content = _sound(folder / name)
        if random.random() < 0.8:
            written = as_json(plain(random, json.loads(content)))
        else:
            written = text(random, content)
        (folder / name).write_bytes(written)

    return damage


def _toml(name: str) -> Callable[[Random, Path], None]:
    def damage(random: Random, folder: Path) -> None:
        content = _sound(folder / name)
        if random.random() < 0.8:
            written = as_toml(plain(random, tomllib.loads(content.decode())))
        else:
            written = text(random, content)
        (folder / name).write_bytes(written)

    return damage


def _bytes(*names: str) -> Callable[[Random, Path], None]:
    def damage(random: Random, folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(_sound(folder / name))
        name = random.choice(names)
        (folder / name).write_bytes(text(random, _sound(folder / name)))

    return damage


def _tensors(random: Random, folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    content = _sound(file)
    length = struct.unpack("<Q", content[:8])[0]
    if random.random() < 0.3:
        written = text(random, content)
    else:
        header = as_json(plain(random, json.loads(content[8 : 8 + length])))
        values = content[8 + length :]
        if random.random() < 0.3:
            values = text(random, values)
        written = struct.pack("<Q", len(header)) + header + values
    file.write_bytes(written)


def _sharded(folder: Path) -> None:
    _converted("linear")(folder)
    (folder / "model" / "model.safetensors").rename(folder / "model" / "model-1.safetensors")
    names = load_file(folder / "model" / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))


def _rules(folder: Path) -> None:
    part = {
        "find": "linear",
        "targets": ["re:.*first.*"],
        "ignore": ["second"],
        "where": {"in_features": ">= 2"},
    }
    structures = [
        {"structure": "kaleidoscope", "width": 1, "expansion": 1, "radix": "auto"},
        {"structure": "monarch+low_rank", "blocks": 4, "share": 0.5},
        {"structure": "chain", "factors": [[1, 24, 16, 1], [4, 6, 6, 1]]},
        {"structure": "low_rank", "rank": 2},
    ]
    parts = [part | {"with": structure, "start": "random"} for structure in structures]
    rule = {"schema": 1, "name": "r", "summary": "s", "replace": parts}
    (folder / "rule.toml").write_bytes(as_toml(rule))


@cache
def _sites() -> list:
    return Finder(net(), X).sites


def _read_rule(folder: Path) -> None:
    rule = load_rule(folder / "rule.toml")
    make_plan(_sites(), rule)
    if all(part.start not in ("fit", "orthogonal") for part in rule.replace):
        ksurgeon.convert(net(), rule, X)


def _plans(folder: Path) -> None:
    write_plan(make_plan(_sites(), load_rule("linear")), folder / "plan.toml")


def _recipes(folder: Path) -> None:
    recipe = next(iter(sorted((builtin_rules()["linear"].parents[1] / "recipes").glob("*.toml"))))
    (folder / "recipe.toml").write_bytes(recipe.read_bytes())


def _modules(folder: Path) -> None:
    (folder / "from" / "1_Pooling").mkdir(parents=True)
    (folder / "from" / "1_Pooling" / "config.json").write_text("{}")
    modules = [{"idx": 0, "path": "", "type": "T"}, {"idx": 1, "path": "1_Pooling", "type": "P"}]
    (folder / "from" / "modules.json").write_text(json.dumps(modules))


def _read_modules(folder: Path) -> None:
    target = folder / "to"
    target.mkdir(exist_ok=True)
    before = {path for path in folder.rglob("*") if target not in path.parents}
    copy_companions(str(folder / "from"), target)
    assert {path for path in folder.rglob("*") if target not in path.parents} == before, "written elsewhere"


def _checkpoints(folder: Path) -> None:
    Checkpoints(folder).save(
        1, {"a": torch.zeros(3)}, {"step": 1, "scales": {"a": 1.0}, "history": [{"a": 1}]}
    )


def _kernel_cache(folder: Path) -> None:
    (folder / "cache.json").write_text(json.dumps({"machine": "m", "choices": {"a": [1, 2], "b": {"c": 3}}}))


def _read_cache(folder: Path) -> None:
    kept = Cache("cpu", "m")
    kept.path = folder / "cache.json"
    kept.all()


_DATA = {
    "data.csv": b'text,label\nfirst,1\nsecond sentence,0\n"third, quoted",1\n',
    "data.tsv": b"text\tlabel\nfirst\t1\nsecond sentence\t0\n",
    "data.jsonl": b'{"text": "first", "label": 1}\n{"text": "second", "label": 0}\n',
    "data.txt": b"first\nsecond sentence\n\nthird\n",
    "sound.csv": b"path,label\nnothing.wav,1\nother.wav,0\n",
}


def _data(folder: Path) -> None:
    for name, content in _DATA.items():
        (folder / name).write_bytes(content)


def _read_data(folder: Path) -> None:
    for name in _DATA:
        if (folder / name).read_bytes() != _DATA[name]:
            _read_all(folder / name)


def _pictures(folder: Path) -> None:
    from PIL import Image

    (folder / "images").mkdir()
    for mode, suffix in (("RGB", "png"), ("L", "jpg"), ("I;16", "tif"), ("P", "gif")):
        Image.new(mode, (8, 8)).save(folder / "images" / f"{suffix}.{suffix}")


def _read_all(data: Path) -> None:
    source = open_source(data)
    for number in range(min(source.length, 8)):
        try:
            source.read(number)
        except Exception:  # counted and named by a training
            continue


FORMATS = {
    "record": Format(_converted("linear"), _json("model/ksurgeon.json"), _load_into_a_model, 8),
    "record of a shuffle": Format(
        _converted("channel_shuffle"), _json("model/ksurgeon.json"), _load_into_a_model
    ),
    "record of a library's model": Format(
        _of_transformers, _json("model/ksurgeon.json"), lambda f: ksurgeon.load(f / "model"), 2
    ),
    "record of timm": Format(_of_timm, _json("model/ksurgeon.json"), lambda f: ksurgeon.load(f / "model"), 1),
    "config.json": Format(
        _by_save_pretrained, _json("model/config.json"), lambda f: ksurgeon.load(f / "model"), 2
    ),
    "safetensors": Format(_converted("linear"), _tensors, _load_into_a_model, 6),
    "index of shards": Format(_sharded, _json("model/model.safetensors.index.json"), _load_into_a_model, 2),
    "rule": Format(_rules, _toml("rule.toml"), _read_rule, 8),
    "plan": Format(
        _plans, _toml("plan.toml"), lambda f: checked_plan(read_plan(f / "plan.toml"), _sites()), 6
    ),
    "recipe": Format(_recipes, _toml("recipe.toml"), lambda f: load_recipe(f / "recipe.toml"), 4),
    "modules.json": Format(_modules, _json("from/modules.json"), _read_modules, 2),
    "checkpoint": Format(_checkpoints, _json("step-00000001/state.json"), lambda f: Checkpoints(f).last(), 2),
    "kernel cache": Format(_kernel_cache, _json("cache.json"), _read_cache, 1),
    "tables and texts": Format(_data, _bytes(*_DATA), _read_data, 4),
    "images": Format(
        _pictures,
        _bytes(*(f"images/{s}.{s}" for s in ("png", "jpg", "tif", "gif"))),
        lambda f: _read_all(f / "images"),
    ),
}
