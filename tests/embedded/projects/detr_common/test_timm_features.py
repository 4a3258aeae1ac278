"""Any model of timm by its name: feature maps of given strides, and weights as a detector's checkpoint."""

import pytest
import torch
from detectron2.utils.file_io import PathManager
from detrex.modeling.backbone import TimmBackbone
from projects.detr_common import timm_feature_names, timm_feature_shapes, timm_indices

pytestmark = pytest.mark.usefixtures("timm")


@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224"]
)
def test_a_neck_is_built_from_the_name(name):
    """Names, channels and strides are those that the backbone gives: stages are counted in several ways in timm."""
    backbone = TimmBackbone(name, out_indices=timm_indices(name))
    shapes = timm_feature_shapes(name)
    assert list(shapes) == timm_feature_names(name) == list(backbone.output_shape())
    assert [shape.stride for shape in shapes.values()] == [8, 16, 32]
    for key, feature in backbone(torch.zeros(1, 3, 64, 96)).items():
        assert feature.shape == (1, shapes[key].channels, 64 // shapes[key].stride, 96 // shapes[key].stride)


def test_a_model_without_a_stride_is_refused():
    with pytest.raises(ValueError, match="model_name='vit_tiny_patch16_224' has no feature map of stride 8, but of 16"):
        timm_indices("vit_tiny_patch16_224")


def test_an_unknown_model_is_refused_in_one_line():
    with pytest.raises(ValueError, match="model_name='resnet18_typo'") as error:
        timm_indices("resnet18_typo")
    assert "\n" not in str(error.value)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("projects.detr_common.timm_features.get_cache_dir", lambda: str(tmp_path))
    return tmp_path


def test_published_weights_are_a_checkpoint_of_the_backbone(timm, cache, monkeypatch):
    """`train.init_checkpoint=timm://NAME` fills every tensor of the backbone, with frozen norms or not."""
    create_model = timm.create_model
    published = create_model("resnet10t", features_only=True).state_dict()
    calls = []

    def download(*args, pretrained=False, **kwargs):
        model = create_model(*args, **kwargs)
        if pretrained:
            calls.append(args)
            model.load_state_dict(published)
        return model

    monkeypatch.setattr(timm, "create_model", download)
    for _ in range(2):
        path = PathManager.get_local_path("timm://resnet10t")
    assert calls == [("resnet10t",)]
    state = torch.load(path, weights_only=True)["model"]
    backbone = TimmBackbone("resnet10t", out_indices=timm_indices("resnet10t"))
    names = {f"backbone.{name}" for name in backbone.state_dict()}
    assert names <= state.keys()
    assert all(name.startswith("backbone.timm_model.") for name in state)


def test_weights_that_cannot_be_had_are_an_error_in_one_line(timm, cache, monkeypatch):
    def download(*args, **kwargs):
        raise RuntimeError("no network\nand more")

    monkeypatch.setattr(timm, "create_model", download)
    with pytest.raises(
        OSError, match=r"the weights of timm's resnet18 cannot be downloaded \(no network\): give a file"
    ):
        PathManager.get_local_path("timm://resnet18")
    assert not list(cache.rglob("*.pth"))
