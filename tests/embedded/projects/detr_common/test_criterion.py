import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf
from projects.detr_common import box_normalizer, loss_weights, lr_factors


def test_weights_cover_every_supervised_output():
    """Every loss has a weight."""
    weights = loss_weights(1, 5, 2, num_decoder_layers=3, encoder=True, denoising=True)
    suffixes = ["", "_0", "_1", "_enc", "_dn", "_dn_0", "_dn_1"]
    assert weights == {
        f"loss_{name}{suffix}": weight
        for name, weight in (("class", 1), ("bbox", 5), ("giou", 2))
        for suffix in suffixes
    }
    assert loss_weights(num_decoder_layers=1) == {"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def test_an_override_reaches_all_layers():
    """The number of layers and each weight are one override away on the command line."""
    cfg = OmegaConf.create({"layers": 6, "weights": L(loss_weights)(num_decoder_layers="${..layers}")})
    weights = instantiate(LazyConfig.apply_overrides(cfg, ["layers=2", "weights.loss_bbox=3"]).weights)
    assert {k: v for k, v in weights.items() if "bbox" in k} == {"loss_bbox": 3, "loss_bbox_0": 3}


def test_normalizer_counts_objects_and_is_never_zero():
    """The divisor is at least 1, also without objects."""
    assert box_normalizer(5, torch.device("cpu")) == 5
    assert box_normalizer(0, torch.device("cpu")) == 1


def test_learning_rate_factor_is_that_of_the_first_part_in_the_name():
    """The backbone trains at its own rate."""
    factor = lr_factors(backbone=0.1, sampling_offsets=0.5)
    assert [factor(n) for n in ("backbone.res2.0", "transformer.attn.sampling_offsets", "neck")] == [0.1, 0.5, 1.0]
