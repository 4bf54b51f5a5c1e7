"""Small models of transformers in folders, with a tokenizer of a few words beside them."""

import copy

import torch

import ksurgeon
from ksurgeon.rules.schema import Rule

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "road",
    "in",
    "sun",
    "rain",
    "and",
    "or",
    "big",
    "small",
    "old",
    "new",
    "house",
    "tree",
]


UNFITTED = Rule(
    name="unfitted",
    replace=[{"find": "linear", "with": {"structure": "kaleidoscope"}, "start": "orthogonal"}],
)


def sentences(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (count,), generator=generator).tolist()
    chosen = [torch.randint(len(WORDS), (length,), generator=generator).tolist() for length in lengths]
    return [" ".join(WORDS[word] for word in sentence) for sentence in chosen]


def save(kind, folder):
    """Write a tiny model of a kind ("encoder", "causal", "masked", "seq2seq", "classifier") to a folder."""
    import transformers

    torch.manual_seed(0)
    size = len(WORDS) + 5
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "causal":
        ends = {"bos_token_id": 2, "eos_token_id": 3}
        config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=size, **ends)
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "seq2seq":
        small = {"d_model": 64, "d_kv": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        config = transformers.T5Config(vocab_size=size, decoder_start_token_id=0, **small)
        model = transformers.T5ForConditionalGeneration(config)
    else:
        made = {
            "encoder": transformers.BertModel,
            "masked": transformers.BertForMaskedLM,
            "classifier": transformers.BertForSequenceClassification,
        }
        model = made[kind](transformers.BertConfig(vocab_size=size, max_position_embeddings=32, **shape))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def pair(kind, folder):
    """A converted model of a kind, and what it was."""
    import transformers

    loaders = {
        "encoder": transformers.AutoModel,
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "classifier": transformers.AutoModelForSequenceClassification,
    }
    teacher = loaders[kind].from_pretrained(save(kind, folder)).eval()
    student = copy.deepcopy(teacher)
    ids = torch.arange(5, 13).view(2, 4)
    inputs = {"input_ids": ids}
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = ids
    ksurgeon.convert(student, UNFITTED, inputs)
    return student, teacher


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
