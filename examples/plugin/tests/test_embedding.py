import torch
from torch import nn

import ksurgeon

RULE = {"name": "tables", "replace": [{"find": "embedding", "with": {"structure": "low_rank", "rank": 6}}]}
X = torch.arange(14).view(2, 7)


class Tagger(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(60, 24, padding_idx=0)
        self.body, self.head = nn.Linear(24, 24), nn.Linear(24, 60, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x):
        return self.head(torch.relu(self.body(self.tokens(x))))


def tagger(tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Tagger(tied).eval()


def test_tables_are_found():
    sites = {site.path: site for site in ksurgeon.find(tagger(), X)}
    assert sites["tokens"].kind == "embedding" and sites["tokens"].parameters == 60 * 24
    tied = {site.path: site for site in ksurgeon.find(tagger(tied=True), X)}
    assert tied["tokens"].reason is not None


def test_convert_save_load_and_revert(tmp_path):
    model = tagger()
    table = model.tokens.weight.detach().clone()
    conversion = ksurgeon.convert(model, ksurgeon.Rule.model_validate(RULE), X)
    fitted = conversion.model.tokens.weight.detach()
    s = torch.linalg.svdvals(table)
    torch.testing.assert_close((fitted - table).norm(), s[6:].norm())
    expected = conversion.model(X)
    ksurgeon.save(conversion.model, tmp_path / "saved")
    loaded = ksurgeon.load(tmp_path / "saved", model=tagger())
    torch.testing.assert_close(loaded(X), expected)
    dense = ksurgeon.revert(loaded)
    assert type(dense.tokens) is nn.Embedding and dense.tokens.padding_idx == 0
    torch.testing.assert_close(dense(X), expected, rtol=1e-4, atol=1e-5)


def test_the_planner_has_it():
    planned = ksurgeon.plan(tagger(), "params=0.5", [X + n for n in range(20)])
    assert "embedding" in {decision.kind for decision in planned.plan.replacements}


def test_the_row_of_padding_gets_no_gradient():
    model = ksurgeon.replace_modules(tagger(), ksurgeon.Rule.model_validate(RULE), X)
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    assert not model.tokens.left.grad.any()
