"""Loss terms beside their definitions, and what of an output they are for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ksurgeon.errors import TrainingError
from ksurgeon.train.blocks import block_paths, pair_blocks
from ksurgeon.train.losses import (
    cosine_and_square,
    own_loss,
    relative_square,
    softened_divergence,
    task_loss,
)
from ksurgeon.train.outputs import Reader
from tests import zoo


def test_divergence_is_the_softened_one():
    s, t = torch.randn(5, 7), torch.randn(5, 7)
    expected = F.kl_div(F.log_softmax(s / 3, 1), F.softmax(t / 3, 1), reduction="none").sum(1) * 9
    torch.testing.assert_close(softened_divergence(s, t, None, 3.0), expected)
    assert softened_divergence(t, t, None, 3.0).abs().max() < 1e-6


def test_masked_positions_count_for_nothing():
    s, t = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    for loss in (softened_divergence, relative_square):
        changed = s.clone()
        changed[0, 2:] = 100
        torch.testing.assert_close(loss(changed, t, mask), loss(s, t, mask))
        torch.testing.assert_close(loss(s[:1, :2], t[:1, :2]), loss(s, t, mask)[:1])


def test_errors_do_not_depend_on_the_scale():
    s, t = torch.randn(3, 8), torch.randn(3, 8)
    torch.testing.assert_close(relative_square(5 * s, 5 * t), relative_square(s, t))
    expected = 1 - F.cosine_similarity(s, t) + (s - t).square().sum(1) / t.square().sum(1)
    torch.testing.assert_close(cosine_and_square(s, t), expected)


def test_task_losses():
    logits, labels = torch.randn(4, 5, 9), torch.randint(0, 9, (4, 5))
    labels[0, 3:] = -100
    found = task_loss({"logits": logits}, labels, "masked-lm")
    torch.testing.assert_close(found[1], F.cross_entropy(logits[1], labels[1]))
    torch.testing.assert_close(found[0], F.cross_entropy(logits[0, :3], labels[0, :3]))
    shifted = task_loss({"logits": logits}, labels, "causal-lm")
    torch.testing.assert_close(shifted[1], F.cross_entropy(logits[1, :-1], labels[1, 1:]))
    maps, classes = torch.randn(2, 3, 4, 9), torch.randint(0, 9, (2, 3, 4))
    expected = F.cross_entropy(maps.movedim(-1, 1), classes)
    torch.testing.assert_close(task_loss({"logits": maps}, classes, "classification").mean(), expected)
    scores = torch.randn(6, 1)
    expected = (scores[:, 0] - torch.arange(6.0)).square()
    torch.testing.assert_close(task_loss({"outputs": scores}, torch.arange(6.0), "regression"), expected)


def test_a_loss_of_ones_own_is_one_number_for_each_example():
    model, inputs = nn.Linear(3, 2), (torch.randn(5, 3),)
    found = own_loss(lambda m, x, progress: m(*x).square().sum(1) * progress, model, inputs, 5, 0.5)
    torch.testing.assert_close(found, model(*inputs).square().sum(1) / 2)
    mean = own_loss(lambda m, x, _: m(*x).mean(), model, inputs, 5, 0.0)
    torch.testing.assert_close(mean, model(*inputs).mean().expand(5))
    for loss, message in (
        (lambda m, x, _: m(*x), r"gave shape \(5, 2\); return a tensor of shape \(5,\)"),
        (lambda *_: None, "gave NoneType"),
        (lambda m, x, _: m(*x).detach().mean(), "depends on no parameter that is trained"),
    ):
        with pytest.raises(TrainingError, match=message):
            own_loss(loss, model, inputs, 5, 0.0)


HIDDEN = {"last_hidden_state": torch.randn(2, 3, 4), "pooler_output": torch.randn(2, 4)}


@pytest.mark.parametrize(
    ("output", "task", "names"),
    [
        (torch.randn(2, 5), "auto", {"outputs"}),
        (torch.randn(2, 5), "classification", {"logits"}),
        (torch.randn(2, 5), "embedding", {"embedding"}),
        ({"logits": torch.randn(2, 5), "hidden_states": ()}, "auto", {"logits"}),
        ({"logits": torch.randn(2, 1)}, "auto", {"outputs"}),
        (
            {"start_logits": torch.randn(2, 5), "end_logits": torch.randn(2, 5)},
            "auto",
            {"logits.start_logits", "logits.end_logits"},
        ),
        (
            {"logits": torch.randn(2, 9, 5), "pred_boxes": torch.randn(2, 9, 4)},
            "auto",
            {"logits", "outputs.pred_boxes"},
        ),
        (HIDDEN, "auto", {"embedding", "tokens"}),
        ([torch.randn(2, 3, 8, 8), torch.randn(2, 6, 4, 4)], "auto", {"outputs.0", "outputs.1"}),
    ],
)  # fmt: skip
def test_outputs_are_named(output, task, names):
    assert set(Reader(task, nn.Identity())(output, {"inputs": ()})) == names


def test_padding_is_left_out_of_an_embedding():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = {"inputs": {"attention_mask": mask}, "labels": None}
    found = Reader("auto", nn.Identity())(HIDDEN, batch)["embedding"]
    torch.testing.assert_close(found[0], HIDDEN["last_hidden_state"][0, :2].mean(0))
    first = Reader("auto", nn.Identity(), "cls")(HIDDEN, batch)["embedding"]
    assert torch.equal(first, HIDDEN["last_hidden_state"][:, 0])


def test_scores_of_maps_have_their_classes_last():
    maps = torch.randn(2, 9, 4, 5)
    assert Reader("classification", nn.Identity())(maps, {"inputs": ()})["logits"].shape == (2, 4, 5, 9)


def _bert(layers, width):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=50,
    )
    return BertModel(config)


def test_blocks_are_paired_by_depth():
    assert block_paths(zoo.encoder()) == [["encoder.layers.0", "encoder.layers.1"]]
    short, long = _bert(2, 16), _bert(6, 32)
    paired = [("encoder.layer.0", "encoder.layer.2"), ("encoder.layer.1", "encoder.layer.5")]
    assert pair_blocks(short, long) == paired
    assert pair_blocks(zoo.mlp(), zoo.encoder()) == []


def test_hidden_states_of_another_width_are_projected(heard):
    import ksurgeon

    torch.manual_seed(0)
    student, teacher = _bert(2, 16).eval(), _bert(4, 32).eval()
    ids = [{"input_ids": torch.randint(0, 50, (6,))} for _ in range(24)]
    ksurgeon.distill(
        student, teacher, ids, batch=8, steps=6, device="cpu", evaluate=1, layerwise=0, listener=heard,
        weights={"embedding": 0, "tokens": 0}, lr=1e-2,
    )  # fmt: skip
    hidden = [step.terms["hidden"] for step in heard.steps]
    assert len(hidden) == 6 and hidden[-1] < hidden[0]
