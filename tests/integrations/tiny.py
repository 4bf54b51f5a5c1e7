"""Tiny models with random weights, and a rule that replaces what it can without fitting anything."""

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ksurgeon import Rule

QUICK = {"with": {"structure": "kaleidoscope"}, "start": "orthogonal"}
RULE = Rule(name="quick", replace=[{"find": kind, **QUICK} for kind in ("linear", "pointwise_conv")])
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "matrix", "of", "factors", "is", "fast", "."]


def bert(cls=BertModel):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
    return cls(BertConfig(vocab_size=len(WORDS), num_labels=3, **sizes)).eval()


def gpt2():
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), **sizes, **ids)).eval()


def vit():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)).eval()


def detr():
    """With a backbone of timm, as the published ones have it."""
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in DETR_SIZES.items()}
    backbone = {"use_timm_backbone": True, "backbone": "test_resnet", "use_pretrained_backbone": False}
    config = DetrConfig(d_model=32, num_queries=5, num_labels=3, **sizes, **backbone)
    return DetrForObjectDetection(config).eval()


DETR_SIZES = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}
TEXT = {"input_ids": torch.tensor([[2, 5, 6, 7, 8, 9, 10, 11, 3]])}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)}
SQUARE = {"height": 32, "width": 32}

TASKS = {
    "feature-extraction": (bert, TEXT),
    "text-classification": (lambda: bert(BertForSequenceClassification), TEXT),
    "token-classification": (lambda: bert(BertForTokenClassification), TEXT),
    "fill-mask": (lambda: bert(BertForMaskedLM), TEXT),
    "text-generation": (gpt2, TEXT),
    "image-classification": (vit, PIXELS),
    "object-detection": (detr, PIXELS),
}
"""For every task of ``transformers.pipeline`` a model and inputs for it."""


def build(task):
    torch.manual_seed(0)
    make, inputs = TASKS[task]
    return make(), inputs


def save_companions(task, folder):
    """Tokenizer or processor for the model of a task."""
    if task == "image-classification":
        ViTImageProcessor(size=SQUARE).save_pretrained(folder)
    elif task == "object-detection":
        DetrImageProcessor(size=SQUARE).save_pretrained(folder)
    else:
        BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}).save_pretrained(folder)
