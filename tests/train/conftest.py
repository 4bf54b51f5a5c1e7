"""What the tests of the training share: small students with their teachers, and a listener that keeps all."""

import copy
from functools import cache

import pytest
import torch

import ksurgeon
from ksurgeon.train.log import Listener
from tests import zoo


class Heard(Listener):
    def __init__(self):
        self.steps, self.evaluations, self.notes, self.stages, self.phases = [], [], [], [], []

    def stage(self, name, total):
        self.stages.append(name)

    def step(self, step):
        self.steps.append(step)

    def evaluated(self, evaluation):
        self.evaluations.append(evaluation)

    def judged(self, phase):
        self.phases.append(phase)

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(autouse=True)
def _cache_of_its_own(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def heard():
    return Heard()


@cache
def _pair(name, rule):
    model = getattr(zoo, name)()
    teacher = copy.deepcopy(model).eval()
    ksurgeon.convert(model, rule, zoo.example(name), source=f"tests.zoo:{name}")
    return model.eval(), teacher


def pair(name="mlp", rule="linear"):
    """A converted model of the zoo, and what it was."""
    return copy.deepcopy(_pair(name, rule))


def vectors(count=96, size=64, seed=0):
    return list(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)))


def pictures(count=24, seed=0):
    return list(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))
