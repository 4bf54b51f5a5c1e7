"""The recipe translation: its DynamicConv model, its loss and measures, and a quick run."""

import json
import math
import shutil
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ksurgeon
from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.operate import operate
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.recipes.scratch import opened
from ksurgeon.train.log import Listener
from tests.cli.conftest import run
from tests.near import near

__all__ = ["run"]

RECIPE = load_recipe("translation")


def function(name):
    return find_function(name, RecipeError, RECIPE.folder)


TRANSLATION = function("translation.py:evaluate").__globals__
DYNAMIC = function("translation_dynamic.py:DynamicConvModel").forward.__globals__
WORDS = {
    "das": "the",
    "Haus": "house",
    "ist": "is",
    "blau": "blue",
    "rot": "red",
    "groß": "big",
    "Tür": "door",
}


def sentences(count, seed=0):
    """Pairs of sentences of which each word has one translation."""
    generator = torch.Generator().manual_seed(seed)
    names, found = list(WORDS), []
    for _ in range(count):
        length = int(torch.randint(3, 9, (), generator=generator))
        german = [names[i] for i in torch.randint(len(names), (length,), generator=generator).tolist()]
        found.append((" ".join(german), " ".join(WORDS[word] for word in german)))
    return found


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Small data of the recipe, as ``translation_data.py`` writes them."""
    data = function("translation_data.py:parallel").__globals__
    lines = [
        (split, german, english)
        for split, count, seed in (("train", 200, 0), ("valid", 20, 1), ("test", 20, 2))
        for german, english in sentences(count, seed)
    ]
    place = tmp_path_factory.mktemp("data") / "pairs-libreoffice"
    written = data["_written"](place, lambda left_out: lines, data["_TALKS"], vocabulary=300)
    return {name: str(path) for name, path in written.items()}


def dynamic(places, **options):
    torch.manual_seed(0)
    sizes = {"width": 32, "inner": 64, "encoder_layers": 2, "decoder_layers": 4} | options
    return function("translation.py:dynamic_conv")(places["model"], **sizes).eval()


def random_ids(*shape, seed=0):
    return torch.randint(2, 256, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_tokens_one_by_one_and_all_at_once(places):
    """The same logits, also where the target is longer than every kernel and sources have padding."""
    model = dynamic(places)
    source, target = random_ids(3, 9), random_ids(3, 70, seed=1)
    mask = torch.ones_like(source)
    mask[1, 6:] = mask[2, 2:] = 0
    expected = model(source, mask, target)["logits"]
    encoded, shown = model.encode(source, mask)
    states, found = model.begin(encoded), []
    for at in range(target.shape[1]):
        logits, states = model.step(target[:, at : at + 1], at, states, shown)
        found.append(logits)
    assert near(torch.stack(found, 1), expected)
    assert near(model(source[2:, :2], None, target[2:])["logits"], expected[2:]), "padding changes nothing"


@torch.no_grad()
def test_no_token_knows_those_after_it(places):
    model = dynamic(places)
    source, target = random_ids(1, 9), random_ids(1, 40, seed=1)
    before = model(source, None, target)["logits"]
    target[:, 20] = (target[:, 20] + 1) % 256 + 2
    after = model(source, None, target)["logits"]
    assert near(after[:, :20], before[:, :20])
    assert ((after - before)[:, 20:].abs().amax(-1) > 1e-6).all()


def test_derivatives_reach_every_parameter(places):
    model = dynamic(places).train()
    model(random_ids(2, 40), None, random_ids(2, 40, seed=1))["logits"].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@torch.no_grad()
def test_a_wide_beam_finds_the_most_likely_translation():
    """Against all sequences of a model whose next token depends on the one before."""
    torch.manual_seed(3)
    config = SimpleNamespace(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    logits = 2 * torch.randn(5, 5)
    logits[:, 0] = -math.inf  # padding
    next_token = logits.log_softmax(-1)
    state = DYNAMIC["State"](torch.zeros(16, 1), torch.zeros(16, 1), torch.zeros(16, 1))

    def mean(path):
        return sum(float(next_token[a, b]) for a, b in zip((0, *path), path, strict=False)) / len(path)

    paths = [(*path, 1) for length in range(4) for path in product((2, 3, 4), repeat=length)]
    paths += list(product((2, 3, 4), repeat=4))  # cut
    best = max(paths, key=mean)

    def step(token, at, states):
        assert len(token) == len(states[0].keys)
        return logits[token[:, 0]].clone(), states

    found = DYNAMIC["search"](step, [state], 1, 16, 4, config)
    assert found[0].tolist() == [0, *best]
    greedy = [0]
    while len(greedy) < 5 and greedy[-1] != 1:
        greedy.append(int(logits[greedy[-1]].argmax()))
    one = DYNAMIC["State"](*(torch.zeros(2, 1) for _ in range(3)))
    assert DYNAMIC["search"](step, [one], 2, 1, 4, config).tolist() == [greedy, greedy]


@torch.no_grad()
def test_generation_of_a_batch_is_that_of_each_sentence(places):
    model = dynamic(places)
    source = random_ids(3, 9)
    mask = torch.ones_like(source)
    mask[1, 5:] = mask[2, 3:] = 0
    for beams in (1, 4):
        together = model.generate(source, mask, beams, 12)
        for number, length in enumerate((9, 5, 3)):
            alone = model.generate(source[number : number + 1, :length], None, beams, 12)[0]
            assert together[number, : len(alone)].tolist() == alone.tolist()
            assert not together[number, len(alone) :].any()


def test_the_loss_is_that_of_the_labels(places):
    model = dynamic(places)
    given = torch.tensor([[0, 5, 6, 7], [0, 8, 1, 0], [0, 8, 0, 0], [0, 0, 0, 0]])
    labels = torch.tensor([[5, 6, 7, 1], *[[8, 1, -100, -100]] * 2, [1, -100, -100, -100]])
    assert torch.equal(TRANSLATION["_labels"](given, model.config), labels)
    inputs = {"input_ids": random_ids(4, 5), "decoder_input_ids": given}
    logits = model(**inputs)["logits"]
    expected = F.cross_entropy(logits.transpose(1, 2), labels, label_smoothing=0.1)
    assert near(function("translation.py:smoothed")(model, inputs, 0.5), expected)


class Knows(nn.Module):
    """A model that translates word by word, without an error."""

    def __init__(self, places):
        super().__init__()
        self.config = dynamic(places).config
        self.tokenizer = TRANSLATION["_tokenizer"](self)
        self.parameter = nn.Parameter(torch.zeros(()))
        self.beams = []

    def _targets(self, ids):
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        translated = [" ".join(WORDS[word] for word in text.split()) for text in texts]
        return self.tokenizer(translated, padding=True, return_tensors="pt")["input_ids"]

    def generate(self, input_ids, attention_mask, num_beams, max_new_tokens):
        self.beams.append(num_beams)
        return F.pad(self._targets(input_ids), (1, 0))

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        return {"logits": F.one_hot(self._targets(input_ids), self.config.vocab_size).float()}


def test_measures(places):
    """Of a translator without errors, whatever the order of its batches; of one that gives another's."""
    model = Knows(places)
    told = function("translation.py:evaluate")(model, places)
    perfect = {"bleu", "chrf", "bleu_beam4", "chrf_beam4"}
    assert all(told[name] == pytest.approx(100) for name in perfect) and told["token_accuracy"] == 1
    assert told["bleu_signature"].startswith("nrefs:1|case:mixed") and "nc:6" in told["chrf_signature"]
    assert model.beams == [1, 4]
    targets = model._targets
    model._targets = lambda ids: targets(ids).flip(0)
    told = function("translation.py:evaluate")(model, places)
    assert told["bleu"] < 90 and told["token_accuracy"] < 1


def test_sequences_are_the_teachers(places):
    """In the order of the sentences, and without those of which nothing came."""
    model = Knows(places)
    german = [source for source, _ in TRANSLATION["_pairs"](places["train"])]
    found = function("translation.py:sequences")(places, model)
    assert found == [{"source": s, "target": " ".join(WORDS[word] for word in s.split())} for s in german]
    model.generate = lambda input_ids, **_: torch.zeros_like(input_ids)
    assert function("translation.py:sequences")(places, model) == []


@pytest.mark.parametrize("make", ["marian", "dynamic_conv"])
def test_the_rule_decoder_takes_the_decoder_alone(places, make):
    sizes = {"width": 64, "inner": 128, "encoder_layers": 1, "decoder_layers": 1}
    model = function(f"translation.py:{make}")(places["model"], **sizes)
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    inputs = {"input_ids": random_ids(2, 6), "decoder_input_ids": random_ids(2, 5)}
    replaced = {each.path for each in ksurgeon.convert(model, "decoder", inputs).plan.replacements}
    decoder = {path for path in linear if "decoder." in path}
    assert replaced == decoder and len(replaced) == (10 if make == "marian" else 9)
    tokens = model.eval().generate(inputs["input_ids"], num_beams=2, max_new_tokens=4)
    assert tokens.shape[0] == 2 and tokens.shape[1] <= 5


def test_without_sacrebleu(places, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(RecipeError, match=r"pip install 'ksurgeon\[translation\]'"):
        function("translation.py:evaluate")(Knows(places), places)


def test_a_model_learns_to_translate(places):
    """Words of a small language, and that it ends; a trained model gives what it was taught."""
    torch.manual_seed(0)
    model = dynamic(places, encoder_layers=1, decoder_layers=1, dropout=0.0, weight_dropout=0.0)
    ksurgeon.finetune(
        model,
        places["train"],
        loss=function("translation.py:smoothed"),
        task="seq2seq",
        epochs=30,
        batch=20,
        lr=1e-2,
        held_out=0,
    )
    told = function("translation.py:evaluate")(model, places)
    assert told["token_accuracy"] > 0.9 and told["bleu"] > 60


def test_a_quick_run(run, tmp_path, places, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "ksurgeon" / "recipes" / "translation"
    place.mkdir(parents=True)
    shutil.copytree(Path(places["model"]).parent, place / "pairs-libreoffice")
    command = ("run", "translation", "--quick", "--jobs", 1, "--device", "cpu", "--set", "steps=2")
    ran = run(*command, "--yes")
    assert ran.status == 0, ran.err
    results = json.loads((tmp_path / "runs" / "translation-quick" / "results.json").read_text())
    assert results["quick"] and list(results["variants"]) == list(RECIPE.quick.only)
    done = results["variants"]["distilled"]["seeds"]["0"]
    assert {"bleu", "chrf", "bleu_beam4", "chrf_beam4", "token_accuracy"} <= set(done["after_training"])
    assert done["about"]["bleu_signature"].startswith("nrefs:1")
    assert results["variants"]["distilled"]["parameters"] < results["variants"]["dense"]["parameters"]


def test_arms_of_equal_parameters(places, tmp_path):
    """Low rank has as many as the K-matrices, whatever its ranks are rounded to."""
    counts = {}
    for variant in RECIPE.variants:
        if variant.name in ("dense", "k", "low-rank"):
            source = opened(RECIPE, variant, places, torch.device("cpu"))
            model = operate(RECIPE, variant, source, places, tmp_path, False, Listener())
            counts[variant.name] = sum(p.numel() for p in model.model.decoder.parameters())
    assert counts["low-rank"] == pytest.approx(counts["k"], rel=0.05)
    assert counts["k"] < 0.5 * counts["dense"]
