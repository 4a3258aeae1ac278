"""The set prediction loss."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detrex.modeling import HungarianMatcher, SetCriterion
from detrex.modeling.criterion import SetCriterion as FromSubpackage


def build(num_classes=4, **kwargs) -> SetCriterion:
    costs = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0}
    ce = kwargs.get("loss_class_type") == "ce_loss"
    matcher = HungarianMatcher(**costs, cost_class_type="ce_cost" if ce else "focal_loss_cost")
    return SetCriterion(num_classes, matcher, weight_dict={}, **kwargs)


def random_outputs(batch, queries=9, channels=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "pred_logits": torch.randn(batch, queries, channels, generator=generator).requires_grad_(),
        "pred_boxes": (torch.rand(batch, queries, 4, generator=generator) * 0.4 + 0.1).requires_grad_(),
    }


def random_targets(sizes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(4, (size,), generator=generator),
            "boxes": torch.rand(size, 4, generator=generator) * 0.4 + 0.1,
        }
        for size in sizes
    ]


def leaves(outputs):
    return [
        value.requires_grad_()
        for layer in (outputs, *outputs.get("aux_outputs", []))
        for value in (layer["pred_logits"], layer["pred_boxes"])
    ]


def test_losses_and_gradients_match_recording(golden):
    """Every loss of every layer, and the gradient of their sum by every input."""
    case = golden("set_criterion")
    config = dict(case.config)
    criterion = FromSubpackage(matcher=HungarianMatcher(**config.pop("matcher")), weight_dict={}, **config)
    outputs = case.input["outputs"]
    inputs = leaves(outputs)
    losses = criterion(outputs, case.input["targets"])
    assert set(losses) == set(case.output["losses"])
    for name, value in losses.items():
        torch.testing.assert_close(value, case.output["losses"][name], rtol=5e-4, atol=1e-6)
    gradients = torch.autograd.grad(sum(losses.values()), inputs)
    for ours, theirs in zip(gradients, leaves(case.output["grads"]), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=5e-4, atol=1e-6)


def test_focal_loss_is_its_formula():
    """Compared with the paper's formula, query by query and class by class."""
    criterion, outputs, targets = build(), random_outputs(2), random_targets([2, 3])
    losses, (indices,) = criterion(outputs, targets, return_indices=True)
    total = 0.0
    for b, (queries, objects) in enumerate(indices):
        class_of = dict(zip(queries.tolist(), targets[b]["labels"][objects].tolist(), strict=True))
        for q in range(9):
            for c in range(4):
                p = outputs["pred_logits"][b, q, c].sigmoid().item()
                positive = class_of.get(q) == c
                p_t, alpha_t = (p, 0.25) if positive else (1 - p, 0.75)
                total -= alpha_t * (1 - p_t) ** 2 * torch.log(torch.tensor(p_t)).item()
    assert losses["loss_class"].item() == pytest.approx(total / 5, rel=1e-4)


def test_cross_entropy_weighs_no_object_down():
    """Softmax classifiers: the mean over queries, 'no object' (the last logit) with weight eos_coef."""
    criterion, outputs, targets = (
        build(loss_class_type="ce_loss", eos_coef=0.2),
        random_outputs(2, channels=5),
        random_targets([2, 3]),
    )
    losses, (indices,) = criterion(outputs, targets, return_indices=True)
    total = weights = 0.0
    for b, (queries, objects) in enumerate(indices):
        class_of = dict(zip(queries.tolist(), targets[b]["labels"][objects].tolist(), strict=True))
        log_prob = outputs["pred_logits"][b].log_softmax(-1)
        for q in range(9):
            weight = 1.0 if q in class_of else 0.2
            total -= weight * log_prob[q, class_of.get(q, 4)].item()
            weights += weight
    assert losses["loss_class"].item() == pytest.approx(total / weights, rel=1e-4)


@pytest.mark.parametrize("loss_class_type", ["focal_loss", "ce_loss"])
def test_batch_without_objects(loss_class_type):
    """Without objects the box losses are zero, but pass gradients to every input, else DDP hangs."""
    outputs = random_outputs(2, channels=5 if loss_class_type == "ce_loss" else 4)
    outputs["aux_outputs"] = [random_outputs(2, channels=outputs["pred_logits"].shape[-1], seed=3)]
    losses = build(loss_class_type=loss_class_type)(outputs, random_targets([0, 0]))
    assert losses["loss_bbox"] == losses["loss_giou_0"] == 0
    assert losses["loss_class"] > 0
    gradients = torch.autograd.grad(sum(losses.values()), leaves(outputs))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_saturated_logits(dtype):
    """Losses are float32 and finite, gradients too, for logits of ±80 in half precision."""
    outputs = random_outputs(2)
    outputs["pred_logits"] = (outputs["pred_logits"].detach().sign() * 80).to(dtype).requires_grad_()
    outputs["pred_boxes"] = outputs["pred_boxes"].detach().to(dtype).requires_grad_()
    losses = build()(outputs, random_targets([3, 0]))
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(sum(losses.values()), leaves(outputs)))


def test_losses_are_separate_tensors():
    """Detectors scale losses in place: a loss shares no memory with another one or with a prediction."""
    outputs = random_outputs(1)
    outputs["aux_outputs"] = [random_outputs(1)]
    losses = build()(outputs, random_targets([0]))
    assert len({value.data_ptr() for value in losses.values()}) == len(losses)


def test_get_loss_scores_given_pairs():
    """Subclasses get the losses of the pairs that they pass (denoising queries)."""
    outputs, targets = random_outputs(1), random_targets([2])
    indices = [(torch.tensor([0, 4, 4]), torch.tensor([1, 0, 1]))]
    loss = build().get_loss("boxes", outputs, targets, indices, 2.0)["loss_bbox"]
    expected = (outputs["pred_boxes"][0, [0, 4, 4]] - targets[0]["boxes"][[1, 0, 1]]).abs().sum() / 2
    torch.testing.assert_close(loss, expected)


def test_wrong_options_are_refused():
    """Unknown names of losses are an error."""
    with pytest.raises(ValueError, match="'ce'"):
        build(loss_class_type="ce")
    with pytest.raises(ValueError, match="'masks'"):
        build(losses=["class", "masks"])(random_outputs(1), random_targets([1]))


BATCHES = ([3, 1], [2, 0])  # objects of each image


def gradients_of_part(rank: int, port: int, folder: Path) -> None:
    """Return DDP's mean gradients in a process that gets image `rank` of each batch."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for number, sizes in enumerate(BATCHES):
        outputs = {key: value[rank : rank + 1].detach().requires_grad_() for key, value in random_outputs(2).items()}
        losses = build()(outputs, random_targets(sizes)[rank : rank + 1])
        gradients = torch.autograd.grad(sum(losses.values()), leaves(outputs))
        torch.save([gradient / 2 for gradient in gradients], folder / f"{number}_{rank}.pth")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_share_the_normaliser(tmp_path):
    """Half a batch in each of two processes gives the whole batch's gradients, also if one half has no objects."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    mp.start_processes(gradients_of_part, (port, tmp_path), nprocs=2, start_method="spawn")
    for number, sizes in enumerate(BATCHES):
        outputs = random_outputs(2)
        losses = build()(outputs, random_targets(sizes))
        whole = torch.autograd.grad(sum(losses.values()), leaves(outputs))
        parts = [torch.load(tmp_path / f"{number}_{rank}.pth", weights_only=True) for rank in range(2)]
        for gradient, *halves in zip(whole, *parts, strict=True):
            torch.testing.assert_close(torch.cat(halves), gradient, rtol=1e-5, atol=1e-7)
