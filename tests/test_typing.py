"""What a type checker says of calls of the public functions; it reads the annotations that they ship."""

import re
from pathlib import Path

import pytest

GOOD = """
import torch
from torch import nn
import ksurgeon

def is_wide(path: str, module: nn.Module) -> bool:
    return "wide" in path

model = nn.Sequential(nn.Linear(8, 8))
x = torch.ones(1, 8)
low_rank = ksurgeon.LowRank(share=0.5)
both = ksurgeon.Kaleidoscope() + ksurgeon.LowRank(rank=16)
ksurgeon.convert(model, ksurgeon.Monarch(blocks=4), targets=r"re:.*mlp.*", ignore="lm_head", data=x)
ksurgeon.convert(model, {"attn": low_rank, "mlp": both, nn.Linear: ksurgeon.Monarch(4)})
done = ksurgeon.convert(model, "shuffle", x, targets=[nn.Linear, is_wide, "mlp"], examples=4)
changed: nn.Module = ksurgeon.replace_modules(model, done.plan, x, ignore="head")
layer = ksurgeon.KLinear.from_linear(nn.Linear(8, 8), both, data=x)
ksurgeon.KMatrix.from_dense(torch.eye(8), structure=both).T @ x
trained = ksurgeon.distill(model, None, "texts.txt", minutes=4, lr=1e-4)
"""
BAD = {
    "ksurgeon.Monarch(block=4)": 'did you mean "block',
    'ksurgeon.Monarch("four")': "incompatible type",
    "ksurgeon.convert(model, targts='a')": 'Unexpected keyword argument "targts"',
    "ksurgeon.convert(model, 3)": "incompatible type",
    "ksurgeon.replace_modules(model, 'linear', examples='many')": "incompatible type",
    "ksurgeon.distill(model, None, 'texts.txt', minuets=4)": 'Unexpected keyword argument "minuets"',
    "ksurgeon.finetune(model, 'texts.txt', lr='small')": "incompatible type",
    "ksurgeon.distill_gradually(model, model, 'x', seeds=4)": 'Unexpected keyword argument "seeds"',
    "ksurgeon.KMatrix.from_dense(x, widht=2)": 'Unexpected keyword argument "widht"',
    "ksurgeon.KMatrix.from_permutation([1, 0], start='empty')": 'Unexpected keyword argument "start"',
    "ksurgeon.KFrontend.from_feature_extractor(model, symetric=True)": 'keyword argument "symetric"',
}


@pytest.mark.timeout(600)  # mypy reads torch, unless its cache is there
def test_a_type_checker_knows_every_keyword(tmp_path, monkeypatch):
    from mypy import api

    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)  # where its configuration is
    sample = tmp_path / "sample.py"
    sample.write_text(GOOD + "\n".join(BAD) + "\n", encoding="utf-8")
    out, err, _ = api.run([str(sample), "--no-error-summary", "--hide-error-context"])
    assert not err
    first = GOOD.count("\n") + 1
    said: dict[int, str] = {}
    for line in out.splitlines():
        found = re.search(r"sample\.py:(\d+): (?:error|note): (.*)", line)
        assert found, line
        said[int(found[1])] = said.get(int(found[1]), "") + found[2]
    assert min(said) >= first, said
    for number, (call, message) in enumerate(BAD.items(), first):
        assert message in said.get(number, ""), (call, said.get(number))
