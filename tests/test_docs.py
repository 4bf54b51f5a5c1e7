"""The snippets of docs/transformers.md, one after the other."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM

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
