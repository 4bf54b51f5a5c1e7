"""The snippets of the pages, one after the other."""

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import BertConfig, BertForMaskedLM

import ksurgeon
from ksurgeon.rules.load import load_rule

PAGE = Path(__file__).parents[1] / "docs" / "transformers.md"


@pytest.mark.filterwarnings("ignore")
def test_the_snippets_run(tmp_path, monkeypatch):
    transformers.utils.logging.disable_progress_bar()
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 64}
    dense = BertForMaskedLM(BertConfig(num_attention_heads=2, **sizes))
    dense.save_pretrained("dense")
    scope = {"ids": torch.arange(10, 26)[None], "state_dict": dense.state_dict()}
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for number, snippet in enumerate(snippets):
        if number:
            scope["model"] = BertForMaskedLM.from_pretrained("converted")
        exec(compile(snippet, str(PAGE), "exec"), scope)
    assert len(snippets) == 8 and scope["errors"] and scope["adapted"]
    assert "ksurgeon" not in (tmp_path / "dense-again" / "config.json").read_text()


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        parts = {"attn": nn.Linear(16, 16), "mlp": nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 16))}
        self.layers = nn.ModuleList(nn.ModuleDict(parts) for _ in range(1))
        self.lm_head = nn.Linear(16, 64)

    def forward(self, x):
        for layer in self.layers:
            x = layer["mlp"](layer["attn"](x))
        return self.lm_head(x)


def test_the_snippets_of_python_run(capsys):
    x = torch.randn(64, 16)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.with_name("python.md").read_text("utf-8"), re.DOTALL)
    scope = {"loader": [x], "linear": nn.Linear(16, 16), "x": x}
    for snippet in snippets:
        torch.manual_seed(0)
        scope["model"] = _Model().eval()
        exec(compile(snippet, "python.md", "exec"), scope)
    assert len(snippets) == 4 and "2 of 4 sites replaced" in capsys.readouterr().out
    assert scope["matrix"].structure == ksurgeon.LowRank(8)


def test_the_snippets_of_extending_run(monkeypatch):
    from ksurgeon.kernels import registry as backends
    from ksurgeon.kmatrix.structures import registry as structures

    monkeypatch.setattr(structures, "_CLASSES", dict(structures._CLASSES))
    monkeypatch.setattr(backends, "REGISTERED", dict(backends.REGISTERED))
    snippets = re.findall(
        r"```python\n(.*?)```", PAGE.with_name("extending.md").read_text("utf-8"), re.DOTALL
    )
    scope = {"loader": [torch.randn(64, 16)], "model": _Model().eval()}
    for snippet in snippets:
        exec(compile(snippet, "extending.md", "exec"), scope)
    assert len(snippets) == 2
    assert scope["model"].layers[0]["mlp"][0].matrix.structure == scope["BlockDiagonal"](blocks=2)
    matrix, x = ksurgeon.KMatrix(16, 24), torch.randn(3, 16, 5)
    y = scope["Einsum"]().apply_chain(x, tuple(matrix.factors), 1, torch.ones(24))
    torch.testing.assert_close(y, matrix.affine(x, 1, torch.ones(24)))


def test_the_snippets_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (PAGE.parents[1] / "README.md").read_text("utf-8")
    whole, parts, audio, geometry = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope = {}
    exec(compile(whole, "README.md", "exec"), scope)
    torch.manual_seed(0)
    dense, x = _Model().eval(), torch.randn(64, 16)
    scope |= {"state_dict": dense.state_dict(), "x": x, "loader": [x], "my_model": _Model().eval()}
    scope["model"] = ksurgeon.replace_modules(copy.deepcopy(dense), "linear", x)
    exec(compile(parts, "README.md", "exec"), scope)
    assert scope["layer"].weight.shape == (3072, 768) and Path("model.onnx").is_file()
    exec(compile(audio, "README.md", "exec"), scope)
    assert scope["features"].shape == (1, 80, 3000)
    pixels = nn.functional.avg_pool2d(torch.randn(400, 1, 38, 38), 7, 1).flatten(1)
    scope["data"] = pixels[:, torch.randperm(1024)]
    exec(compile(geometry, "README.md", "exec"), scope)
    assert scope["layer"].shape == (1024, 1024)


def test_the_rules_of_the_readme_are_rules(tmp_path):
    text = (PAGE.parents[1] / "README.md").read_text("utf-8")
    rule, insertion = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.toml").write_text(f"{rule}\n{insertion}", encoding="utf-8")
    assert len(load_rule(tmp_path / "mine.toml").parts) == 4
