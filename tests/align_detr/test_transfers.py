"""The host waits for the device once per training step, counted on a simulated device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from align_detr.modeling import AlignDINOCriterion, AlignHDETRCriterion, AlignSetCriterion, MixedMatcher
from align_detr.modeling.losses import CLASSIFICATION_LOSSES

DEVICE = torch.device("meta")  # its name, that is; the values are on the CPU
SHAPE_FROM_VALUES = ("nonzero", "masked_select", "_unique", "unique_", "repeat_interleave.Tensor", "bincount")
VALUE_FOR_PYTHON = ("_local_scalar_dense", "item", "is_nonzero", "equal.default")


class OnDevice(torch.Tensor):
    """A tensor on the simulated device: PyTorch knows its shape, `values` holds its values."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=DEVICE
        )

    def __init__(self, values):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} on the device outside of `Device`")


class Device(TorchDispatchMode):
    """Simulate a device, as strict as a GPU, inside the block.

    Attributes:
        to_host: how many tensors have been copied to the host.
        waits: operators for which the host had to wait in another way: for a value, or for a shape that depends on one.
    """

    def __init__(self):
        super().__init__()
        self.to_host = 0
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        on_device = [isinstance(x, OnDevice) for x in inputs]
        name = str(function).removeprefix("aten.")
        target = kwargs.pop("device", None)
        if name.startswith("_to_copy"):
            self.to_host += on_device[0] and target is not None and target.type == "cpu"
            wrap = on_device[0] if target is None else target == DEVICE
        else:
            strangers = [x for x, placed in zip(inputs, on_device, strict=True) if not placed and x.dim()]
            if any(on_device) and strangers and not name.startswith("copy_"):
                raise RuntimeError(f"{name} of tensors on two devices")
            if name.startswith("copy_") and on_device == [False, True]:
                self.to_host += 1
            wrap = any(on_device) if target is None else target == DEVICE
        by_mask = name.startswith("index") and any(x.dtype == torch.bool for x in inputs[1:])
        if any(on_device) and (by_mask or name.startswith(SHAPE_FROM_VALUES + VALUE_FOR_PYTHON)):
            self.waits.append(name)

        written = self._written(function, args, kwargs)
        unwrapped = tree_map(lambda x: x.values if isinstance(x, OnDevice) else x, (args, kwargs))
        if target is not None:
            unwrapped[1]["device"] = torch.device("cpu") if target == DEVICE else target
        result = function(*unwrapped[0], **unwrapped[1])
        if written is not None:
            return written
        return tree_map(lambda x: OnDevice(x) if wrap and isinstance(x, torch.Tensor) else x, result)

    @staticmethod
    def _written(function, args, kwargs):
        """The argument that an operator in place, or with `out=`, returns."""
        for i, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                return args[i] if i < len(args) else kwargs[argument.name]
        return None


def on_device(tensor):
    return tensor.to(DEVICE).requires_grad_(tensor.is_floating_point())


def layers(batch, queries, classes=5, count=3):
    one = [
        {
            "pred_logits": on_device(torch.randn(batch, queries, classes)),
            "pred_boxes": on_device(torch.rand(batch, queries, 4) * 0.4 + 0.2),
        }
        for _ in range(count)
    ]
    return {**one[-1], "aux_outputs": one[:-1]}


def targets(sizes):
    return [
        {
            "labels": torch.randint(5, (n,)).to(DEVICE),
            "boxes": (torch.rand(n, 4) * 0.4 + 0.2).to(DEVICE),
        }
        for n in sizes
    ]


def dino(sizes):
    known = layers(len(sizes), 2 * 2 * max(sizes))
    outputs = layers(len(sizes), 20) | {"enc_outputs": layers(len(sizes), 20, count=1)}
    metas = {"output_known_lbs_bboxes": known, "dn_num": 2, "single_padding": 2 * max(sizes)}
    return AlignDINOCriterion, (outputs, targets(sizes), metas)


def h_deformable_detr(sizes):
    hybrid = {f"{name}_one2many": value for name, value in layers(len(sizes), 30).items()}
    outputs = layers(len(sizes), 20) | {"enc_outputs": layers(len(sizes), 50, count=1)} | hybrid
    return AlignHDETRCriterion, (outputs, targets(sizes), 3)


def dab_detr(sizes):
    return AlignSetCriterion, (layers(len(sizes), 20), targets(sizes))


@pytest.mark.parametrize("kind", CLASSIFICATION_LOSSES)
@pytest.mark.parametrize("detector", [dino, h_deformable_detr, dab_detr])
def test_one_copy_to_the_host_per_step(detector, kind):
    """One copy matches all layers of all images. Nothing else in the losses, forward or backward, makes the host wait.

    Tensors on the wrong device raise an error.
    """
    torch.manual_seed(0)
    with Device() as device:
        cls, arguments = detector([3, 0, 4])
        criterion = cls(num_classes=5, matcher=MixedMatcher(2, 5, 2), weight_dict={}, loss_class_type=kind)
        losses = criterion(*arguments)
        sum(losses.values()).backward()
        assert device.to_host == 1
        assert device.waits == []
    assert all(isinstance(loss, OnDevice) and loss.values.isfinite() for loss in losses.values())
    gradients = [layer.grad for layer in arguments[0].values() if isinstance(layer, torch.Tensor)]
    assert all(gradient.values.abs().sum() > 0 for gradient in gradients)


def test_the_device_counts():
    """The simulated device counts every way of waiting, and detects a tensor on the wrong device."""
    with Device() as device:
        x = on_device(torch.arange(4.0)).detach()
        assert (x + 1).sum().device == DEVICE
        assert device.to_host == 0 and device.waits == []
        x.cpu(), x.to("cpu"), torch.empty(4).copy_(x)
        assert device.to_host == 3 and device.waits == []
        x.sum().item(), x[x > 1], bool(x[0] > 1), float(x[0]), x.nonzero()
        assert len(device.waits) == 5
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(4)
