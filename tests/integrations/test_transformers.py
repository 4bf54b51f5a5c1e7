"""Converted models in transformers: saved, loaded, refused, trained, adapted."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    FNetConfig,
    FNetForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetModel,
)

import ksurgeon
from ksurgeon import KLinear, KsurgeonConfig, RecordError, Rule, RuleError, SurgeryError, VersionError
from ksurgeon.integrations import hf_versions
from tests.near import near

IDS = {"input_ids": torch.arange(10, 26)[None]}
RULE = Rule(
    name="quick",
    replace=[
        {
            "find": "linear",
            "ignore": ["re:cls.*", "re:.*lm_head"],
            "with": {"structure": "kaleidoscope"},
            "start": "orthogonal",
        }
    ],
)


@pytest.fixture(autouse=True)
def _quiet():
    transformers.utils.logging.disable_progress_bar()


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 96}
    return BertForMaskedLM(BertConfig(num_attention_heads=4, **sizes)).eval()


def gpt2():
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ids)).eval()


def fnet():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 96}
    return FNetForMaskedLM(FNetConfig(**sizes)).eval()


@pytest.fixture
def folder(tmp_path):
    """A converted BERT that ``save_pretrained`` wrote."""
    model = ksurgeon.replace_modules(bert(), RULE, IDS)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@torch.no_grad()
def logits(model, inputs=IDS):
    return model(**inputs)[0]


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("save", ["ksurgeon", "transformers", "shards"])
@pytest.mark.parametrize("make, rule", [(bert, RULE), (gpt2, RULE), (fnet, "transform")])
def test_either_way_of_saving_loads_either_way(tmp_path, make, rule, save):
    model = ksurgeon.replace_modules(make(), rule, IDS)
    options = {"max_shard_size": "20KB"} if save == "shards" else {}
    if save == "ksurgeon":
        ksurgeon.save(model, tmp_path / "model")
    else:
        model.save_pretrained(tmp_path / "model", **options)
    for loaded in (type(model).from_pretrained(tmp_path / "model"), ksurgeon.load(tmp_path / "model")):
        assert near(logits(loaded), logits(model))
        assert type(loaded).__name__ == type(model).__name__ and not loaded.training
        operations = loaded.config.quantization_config.record.operations
        assert len(operations) == len(model.config.quantization_config.record.operations)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert near(logits(ksurgeon.load(again)), logits(model))


def test_a_converted_model_is_an_ordinary_one(folder):
    model = BertForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not getattr(model, "is_quantized", False) and not hasattr(model, "hf_quantizer")
    assert {p.dtype for p in model.float().half().parameters()} == {torch.float16}


def test_base_and_head_fit_each_other(folder, tmp_path):
    whole = BertForMaskedLM.from_pretrained(folder)
    base = AutoModel.from_pretrained(folder)
    assert near(logits(base), logits(whole.bert))
    headed = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    assert isinstance(headed.bert.encoder.layer[0].attention.self.query, KLinear)
    base.save_pretrained(tmp_path / "base")
    headed = AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    assert near(logits(headed.bert), logits(whole.bert))


def test_revert_leaves_no_trace(folder, tmp_path):
    model = BertForMaskedLM.from_pretrained(folder)
    before = logits(model)
    ksurgeon.revert(model)
    model.save_pretrained(tmp_path / "dense")
    ksurgeon.save(model, tmp_path / "saved")
    for name in ("dense", "saved"):
        config = (tmp_path / name / "config.json").read_text()
        assert "ksurgeon" not in config and "quantization" not in config
    script = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1])\n"
        "assert 'ksurgeon' not in sys.modules\n"
        "torch.save(model(torch.arange(10, 26)[None]).logits, sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "dense", tmp_path / "y.pt"], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt").detach(), before, atol=1e-5, rtol=1e-5)


def test_without_ksurgeon_nothing_loads(folder):
    script = """
import sys, transformers
sys.modules["ksurgeon"] = None  # as where it is not installed
for name in ("AutoModelForMaskedLM", "AutoModel", "BertForMaskedLM"):
    for options in ({}, {"ignore_mismatched_sizes": True}, {"dtype": "bfloat16", "device_map": "cpu"}):
        try:
            getattr(transformers, name).from_pretrained(sys.argv[1], **options)
        except Exception as error:
            assert "pip-install-ksurgeon" in str(error), (name, options, error)
        else:
            raise SystemExit(f"{name} loaded with {options}")
"""
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "first", ["import ksurgeon, transformers", "import transformers.modeling_utils, ksurgeon"]
)
def test_either_order_of_imports(folder, first):
    script = (
        f"import sys\n{first}\n"
        "print(type(transformers.AutoModel.from_pretrained(sys.argv[1]).encoder.layer[0].output.dense).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "KLinear"


@pytest.mark.parametrize("make, rule", [(bert, RULE), (gpt2, RULE), (bert, "linear"), (fnet, "transform")])
def test_a_dense_checkpoint_is_converted_while_it_loads(tmp_path, make, rule):
    model = make()
    model.save_pretrained(tmp_path / "dense")
    cls = type(model)
    config = KsurgeonConfig(rule, seed=3)
    options = {"quantization_config": config, "output_loading_info": True}
    loaded, info = cls.from_pretrained(tmp_path / "dense", **options)
    assert not any(info.values())
    ksurgeon.convert(model, rule, IDS)
    assert shapes(loaded) == shapes(model)
    if rule is not RULE:  # no chance in it
        torch.testing.assert_close(logits(loaded), logits(model))
    mine, other = (m.config.quantization_config.record for m in (loaded, model))
    assert [o.path for o in mine.operations] == [o.path for o in other.operations]
    errors = [[o.weight_error for o in record.operations] for record in (mine, other)]
    assert errors[0] == pytest.approx(errors[1])
    assert mine.outcome.parameters == other.outcome.parameters
    loaded.save_pretrained(tmp_path / "converted")
    assert near(logits(cls.from_pretrained(tmp_path / "converted")), logits(loaded))
    ksurgeon.revert(loaded)
    assert shapes(loaded) == shapes(make())


def test_pointwise_convolutions_are_converted_while_they_load(tmp_path):
    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1], "layer_type": "bottleneck"}
    ResNetModel(ResNetConfig(**sizes)).save_pretrained(tmp_path / "dense")
    model = AutoModel.from_pretrained(tmp_path / "dense", quantization_config=KsurgeonConfig("pointwise"))
    x = {"pixel_values": torch.randn(1, 3, 32, 32)}
    model.save_pretrained(tmp_path / "converted")
    assert near(logits(AutoModel.from_pretrained(tmp_path / "converted"), x), logits(model, x))


def test_the_dense_layer_goes_when_its_matrix_is_fitted(tmp_path, monkeypatch):
    from ksurgeon.integrations.hf_on_load import ConvertOnLoad

    bert().save_pretrained(tmp_path / "dense")
    held = []
    convert = ConvertOnLoad._convert

    def watched(self, model, planned, weight):
        new = convert(self, model, planned, weight)
        held.append(sum(p.numel() for p in model.parameters() if p.device.type != "meta"))
        return new

    monkeypatch.setattr(ConvertOnLoad, "_convert", watched)
    model = BertForMaskedLM.from_pretrained(tmp_path / "dense", quantization_config=KsurgeonConfig(RULE))
    assert max(held) <= sum(p.numel() for p in model.parameters())


def test_the_model_card_tells_what_was_done(folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "bert.encoder.layer.1.output.dense" in card and "BertForMaskedLM.from_pretrained" in card
    assert "| parameters |" in card
    (folder / "README.md").write_text("mine")
    BertForMaskedLM.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"


def test_what_is_pushed_is_whole(folder, tmp_path, monkeypatch):
    from transformers.utils import hub

    pushed = {}

    class Api:
        def create_repo(self, repo_id, **options):
            return type("Repo", (), {"repo_id": repo_id})

        def create_branch(self, **options):
            pass

        def create_commit(self, repo_id, operations, **options):
            pushed.update({o.path_in_repo: Path(o.path_or_fileobj).read_bytes() for o in operations})

    told = "This model card has been automatically generated."
    card = ModelCard.from_template(ModelCardData(), model_description=told)
    for module in (hub, transformers.modeling_utils):
        monkeypatch.setattr(module, "hf_api", Api)
        monkeypatch.setattr(module, "create_and_tag_model_card", lambda *args, **options: card)
    BertForMaskedLM.from_pretrained(folder).push_to_hub("somebody/something")
    assert {"README.md", "config.json", "model.safetensors"} <= pushed.keys()
    assert b"bert.encoder.layer.1.output.dense" in pushed["README.md"]
    assert b"pip-install-ksurgeon" in pushed["config.json"]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True}, {"cache_implementation": "static"}, {"use_cache": False}],
    ids=str,
)
def test_generate(tmp_path, options):
    model = ksurgeon.replace_modules(gpt2(), RULE, IDS)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = IDS["input_ids"].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    told = []
    for each in (model, loaded):
        torch.manual_seed(0)
        told.append(each.generate(ids, attention_mask=mask, max_new_tokens=6, **options))
    assert told[0].shape == (2, 22) and torch.equal(*told)
    alone = model.generate(ids[1:, 5:], max_new_tokens=6, do_sample=False)
    if not options:
        assert torch.equal(told[0][1:, 5:], alone)


def test_trainer_with_gradient_checkpointing_goes_on_from_its_checkpoint(tmp_path):
    examples = [{"input_ids": torch.arange(i, i + 16), "labels": torch.arange(i, i + 16)} for i in range(8)]
    model = ksurgeon.replace_modules(gpt2(), RULE, IDS)
    settings = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 2,
        "save_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = transformers.TrainingArguments(max_steps=2, **settings)
    model.gradient_checkpointing_enable()
    before = model.transformer.h[0].mlp.c_fc.matrix.factors[0].detach().clone()
    transformers.Trainer(model=model, args=arguments, train_dataset=examples).train()
    assert not torch.equal(model.transformer.h[0].mlp.c_fc.matrix.factors[0], before)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert near(logits(loaded), logits(model.eval()))
    arguments = transformers.TrainingArguments(max_steps=3, **settings)
    trainer = transformers.Trainer(model=loaded, args=arguments, train_dataset=examples)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("targets", [["c_attn", "c_fc"], ["lm_head"]])
@pytest.mark.filterwarnings("ignore")
def test_lora(tmp_path, targets):
    model = ksurgeon.replace_modules(gpt2(), RULE, IDS)
    model.save_pretrained(tmp_path / "model")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets))
    adapted.train()(**IDS, labels=IDS["input_ids"]).loss.backward()
    given = {n for n, p in adapted.named_parameters() if p.grad is not None}
    assert given and all("lora_" in name for name in given)
    torch.optim.SGD(adapted.parameters(), lr=10.0).step()
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tmp_path / "adapter"
    )
    expected = logits(adapted.eval())
    torch.testing.assert_close(logits(again.eval()), expected)
    assert not torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")))
    if targets != ["lm_head"]:
        with pytest.raises(SurgeryError, match="revert"):
            again.merge_and_unload()
        ksurgeon.revert(again.get_base_model())
        merged = again.merge_and_unload()
        torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


def edit(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_a_folder_of_a_newer_ksurgeon(folder):
    newer = {"schema": 99, "ksurgeon": "9.9"}
    edit(folder / "config.json", lambda c: c["quantization_config"]["record"].update(newer))
    with pytest.raises(RecordError, match=r"newer ksurgeon \(9\.9\)"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(RecordError, match="newer"):
        ksurgeon.load(folder)


def test_a_folder_of_another_architecture(folder):
    edit(folder / "config.json", lambda c: c.update(num_hidden_layers=1))
    with pytest.raises(RecordError, match=r"bert\.encoder\.layer\.1.*another architecture"):
        BertForMaskedLM.from_pretrained(folder)


def test_a_missing_shard(tmp_path):
    model = ksurgeon.replace_modules(bert(), RULE, IDS)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises((RecordError, OSError), match=shard.name):
        BertForMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(RecordError, match=shard.name):
        ksurgeon.load(tmp_path)


def test_factors_that_are_missing(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "matrix.factors" in name)
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecordError, match="not in the checkpoint"):
        BertForMaskedLM.from_pretrained(folder)


def test_a_transformers_that_is_too_old(folder, monkeypatch):
    monkeypatch.setattr(hf_versions.transformers, "__version__", "5.3.0")
    with pytest.raises(VersionError, match=rf"{hf_versions.OLDEST} or later.*5\.3\.0"):
        BertForMaskedLM.from_pretrained(folder)


def test_a_transformers_that_is_too_old_goes_on_working(tmp_path):
    bert().save_pretrained(tmp_path)
    script = (
        "import sys, warnings, ksurgeon, transformers\n"
        "transformers.__version__ = '4.57.0'\n"
        "sys.modules['ksurgeon.integrations.hf_register'] = None  # cannot be imported there\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    transformers.AutoModel.from_pretrained(sys.argv[1])\n"
        "print(*(w.message for w in caught))"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"transformers>={hf_versions.OLDEST}" in done.stdout and "4.57.0 is installed" in done.stdout


def test_a_rule_that_does_not_exist():
    with pytest.raises(RuleError, match="linaer"):
        KsurgeonConfig("linaer")


def wrapped(model):
    layer = model.bert.encoder.layer[0].intermediate
    layer.dense = torch.nn.Sequential(layer.dense)


def another(model):
    model.cls.predictions.transform.dense = KLinear(32, 32)


@pytest.mark.parametrize("change", [wrapped, another])
def test_what_from_pretrained_could_not_read_is_not_written(tmp_path, change):
    model = ksurgeon.replace_modules(bert(), RULE, IDS)
    change(model)
    with pytest.raises(SurgeryError, match=r"^(bert\.encoder\.layer\.0\.intermediate|cls)"):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_layers_that_were_shared_afterwards(tmp_path):
    model = ksurgeon.replace_modules(bert(), RULE, IDS)
    attention = model.bert.encoder.layer[0].attention.self
    attention.query = attention.key
    expected = model(**IDS).logits
    loaded = ksurgeon.load(ksurgeon.save(model, tmp_path / "model"))
    shared = loaded.bert.encoder.layer[0].attention.self
    assert shared.query is shared.key
    torch.testing.assert_close(loaded(**IDS).logits, expected)
