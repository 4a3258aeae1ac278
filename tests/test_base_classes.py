"""What subclasses of the public base classes may leave out: as much as with detectron2's own, on both platforms."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.utils.events import EventWriter


def refused(*kinds):
    """detectron2 refuses by assertions."""
    return pytest.raises((AssertionError, *kinds))


def test_a_backbone_may_leave_out_output_shape():
    """The base class builds it from three attributes, as published backbones rely on."""

    class Patches(Backbone):
        def __init__(self):
            super().__init__()
            self.project = torch.nn.Conv2d(3, 8, 4, 4)
            self._out_features = ["p2"]
            self._out_feature_channels = {"p2": 8, "p3": 16}
            self._out_feature_strides = {"p2": 4, "p3": 8}

        def forward(self, x):
            return {"p2": self.project(x)}

    backbone = Patches()
    assert backbone.output_shape() == {"p2": ShapeSpec(channels=8, stride=4)}
    assert (backbone.size_divisibility, backbone.padding_constraints) == (0, {})
    assert backbone(torch.zeros(1, 3, 8, 8))["p2"].shape == (1, 8, 2, 2)

    class Empty(Backbone):
        pass

    with pytest.raises(TypeError, match="forward"):
        Empty()


def test_a_block_of_a_backbone_may_leave_out_freeze():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(3, 4, 2)
            self.conv = torch.nn.Conv2d(3, 4, 1, 2)

    block = Block()
    assert block.freeze() is block
    assert not any(parameter.requires_grad for parameter in block.parameters())


class Steps(TrainerBase):
    def run_step(self):
        pass


def test_a_hook_may_leave_out_everything():
    """Also `load_state_dict`, if it keeps nothing; it knows its trainer once it is registered."""

    class Idle(HookBase):
        pass

    hook, trainer = Idle(), Steps()
    assert hook.trainer is None
    trainer.register_hooks([None, hook])
    trainer.train(0, 2)
    assert hook.trainer.iter == 2 and trainer.state_dict()["iteration"] == 2
    trainer.load_state_dict({"iteration": 1, "hooks": {}})


def test_only_hooks_are_registered():
    with refused(TypeError):
        Steps().register_hooks([object()])


def test_of_hooks_with_one_name_the_first_keeps_its_state():
    class Counter(HookBase):
        def __init__(self, start):
            self.count = start

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state_dict):
            self.count = state_dict["count"]

    trainer = Steps()
    trainer.register_hooks([Counter(3), Counter(5)])
    state = trainer.state_dict()
    (kept,) = [value for key, value in state["hooks"].items() if key.endswith("Counter")]
    assert kept == {"count": 3}
    first, second = Counter(0), Counter(0)
    resumed = Steps()
    resumed.register_hooks([first, second])
    resumed.load_state_dict(state)
    assert (first.count, second.count) == (3, 0)


def test_an_evaluator_may_leave_out_everything():
    """One that only looks at what passes has neither `reset` nor results."""

    class Idle(DatasetEvaluator):
        pass

    class Count(DatasetEvaluator):
        images = 0

        def process(self, inputs, outputs):
            self.images += len(inputs)

    loader = [[{"image_id": 1}], [{"image_id": 2}]]
    assert inference_on_dataset(lambda inputs: inputs, loader, Idle()) == {}
    count = Count()
    assert inference_on_dataset(lambda inputs: inputs, loader, [Idle(), count]) == {}
    assert count.images == 2
    assert DatasetEvaluators([]).evaluate() == {}


def test_an_evaluator_need_not_derive_from_the_base_class():
    class Own:
        def reset(self):
            self.seen = 0

        def process(self, inputs, outputs):
            self.seen += len(inputs)

        def evaluate(self):
            return {"own": {"seen": self.seen}}

    assert inference_on_dataset(lambda inputs: inputs, [[1], [2]], Own()) == {"own": {"seen": 2}}


def image():
    return np.zeros((4, 6, 3), np.uint8)


def test_an_augmentation_may_call_its_one_argument_as_it_likes():
    class Flip(T.Augmentation):
        def get_transform(self, img):
            return T.HFlipTransform(img.shape[1])

    aug_input = T.AugInput(image())
    assert isinstance(Flip()(aug_input), T.HFlipTransform)


def test_an_augmentation_may_leave_out_get_transform():
    """If it defines `__call__`, as a list of augmentations does."""

    class Twice(T.Augmentation):
        def __call__(self, aug_input):
            flip = T.HFlipTransform(aug_input.image.shape[1])
            aug_input.transform(flip)
            aug_input.transform(flip)
            return T.TransformList([flip, flip])

    aug_input = T.AugInput(image())
    assert len(T.AugmentationList([Twice()])(aug_input).transforms) in (1, 2)
    with pytest.raises(NotImplementedError):
        T.Augmentation().get_transform(image())


def test_an_augmentation_may_name_its_inputs():
    """`input_args` replaces the names of the arguments; a static method and any number of arguments work with it."""

    class Static(T.Augmentation):
        @staticmethod
        def get_transform(image, boxes):
            return T.CropTransform(*boxes[0].astype(int).tolist())

    class Named(T.Augmentation):
        input_args = ("image", "boxes")

        def get_transform(self, *args):
            assert len(args) == 2
            return T.NoOpTransform()

    class Unnamed(T.Augmentation):
        def get_transform(self, image, *others):
            return T.NoOpTransform()

    def boxed():
        return T.AugInput(image(), boxes=np.array([[1.0, 1.0, 2.0, 2.0]]))

    aug_input = boxed()
    Static()(aug_input)
    assert aug_input.image.shape == (2, 2, 3)
    Named()(boxed())
    with pytest.raises(TypeError):
        Unnamed()(boxed())


def test_an_augmentation_has_the_helpers_that_subclasses_call():
    class Shift(T.Augmentation):
        def __init__(self, low, high, _hidden=1):
            super().__init__()
            self._init(locals())

        def get_transform(self, image):
            assert self.low <= self._rand_range(self.low, self.high) < self.high
            assert 0 <= self._rand_range() < 1 and self._rand_range(size=(2, 3)).shape == (2, 3)
            return T.NoOpTransform()

    shift = Shift(2.0, 3.0)
    assert not hasattr(shift, "_hidden")
    shift(T.AugInput(image()))


def test_what_is_no_transform_is_refused():
    class Wrong(T.Augmentation):
        def get_transform(self, image):
            return image

    with refused(TypeError):
        Wrong()(T.AugInput(image()))


def test_a_transform_defines_images_and_coordinates():
    """Boxes, polygons and segmentations follow from these; either of the two is needed."""

    class Shift(T.Transform):
        def apply_image(self, img):
            return np.roll(img, 1, axis=1)

        def apply_coords(self, coords):
            return coords + [1, 0]

    aug_input = T.AugInput(image(), boxes=np.array([[1.0, 1.0, 2.0, 3.0]]), sem_seg=np.zeros((4, 6), np.uint8))
    aug_input.transform(Shift())
    assert aug_input.boxes.tolist() == [[2.0, 1.0, 3.0, 3.0]] and aug_input.sem_seg.shape == (4, 6)

    class OnlyImages(T.Transform):
        def apply_image(self, img):
            return img

    with pytest.raises(TypeError, match="apply_coords"):
        OnlyImages()


def test_a_writer_may_leave_out_close():
    class Silent(EventWriter):
        def write(self):
            pass

    Silent().close()
    with pytest.raises(NotImplementedError):
        EventWriter().write()
