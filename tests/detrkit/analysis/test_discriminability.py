"""Co-DETR's IoF-IoB curve: by hand, and of the features that the detectors' encoders really give."""

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from torch.nn import functional as F

from detrkit.analysis import count_places, curve, discriminability, encoder_maps, place_scores, predict_layers
from detrkit.analysis.discriminability import BINS
from detrkit.config.load import get_config

LEFT_HALF = [{"boxes": torch.tensor([[0.25, 0.5, 0.5, 1.0]])}]


def counts_of(scores, targets=LEFT_HALF):
    return count_places(scores, targets)[0]


def test_by_hand():
    """Objects in the left half: perfect, perfectly wrong, no difference, and one place of eight on the wrong side."""
    scores = torch.zeros(1, 4, 4)
    scores[..., :2] = 0.9
    assert discriminability(counts_of(scores)) == 1
    assert discriminability(counts_of(0.95 - scores)) == 0
    assert discriminability(counts_of(torch.full((1, 4, 4), 0.3))) == 0.5
    scores[0, 0, 3] = 1.0
    assert discriminability(counts_of(scores)) == pytest.approx(7 / 8)
    iof, iob = curve(counts_of(scores))
    assert (iof[0], iob[0], iof[-1], iob[-1]) == (0, 0, 1, 1)
    assert iob[1] == 1 / 8 and iof[1] == 0


def test_area_is_the_share_of_pairs():
    """How often a place of an object scores higher than one of the background, half of a draw counted."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1, 12, 10, generator=generator).mul(20).round() / 20
    targets = [{"boxes": torch.tensor([[0.3, 0.4, 0.35, 0.5], [0.5, 0.5, 0.3, 0.3]])}]
    binned = (scores[0] * BINS).long().clamp(max=BINS - 1)
    objects, background = [], []
    for i in range(12):
        for j in range(10):
            x, y = (j + 0.5) / 10, (i + 0.5) / 12
            inside = any(abs(x - b[0]) <= b[2] / 2 and abs(y - b[1]) <= b[3] / 2 for b in targets[0]["boxes"].tolist())
            (objects if inside else background).append(int(binned[i, j]))
    share = np.mean([(a > b) + 0.5 * (a == b) for a in objects for b in background])
    assert discriminability(counts_of(scores, targets)) == pytest.approx(share)


def test_images_without_objects_or_background():
    """Only background, only an object: no figure, and no warning on the way."""
    for boxes in (torch.zeros(0, 4), torch.tensor([[0.5, 0.5, 1.0, 1.0]])):
        assert np.isnan(discriminability(counts_of(torch.rand(1, 4, 4), [{"boxes": boxes}])))


def test_levels_count_alike():
    """Each level as a share of its own greatest length, on one grid, whatever its resolution or scale."""
    fine, coarse = torch.rand(2, 3, 16, 24), torch.rand(2, 3, 4, 6)
    scores = place_scores([fine, 100 * coarse], (64, 96))
    assert scores.shape == (2, 16, 24) and 0 <= scores.min() and scores.max() <= 1
    expected = []
    for level in (fine, coarse):
        length = level.square().sum(1).sqrt()
        length = torch.stack([image / image.max() for image in length])
        expected.append(F.interpolate(length[:, None], (16, 24), mode="bilinear")[:, 0])
    torch.testing.assert_close(scores, sum(expected) / 2)


@pytest.mark.parametrize(
    "config, levels",
    [
        ("baselines/dino_tiny.py", [(8, 12), (4, 6), (2, 3)]),
        ("baselines/dab_detr_tiny.py", None),
    ],
)
def test_maps_are_the_encoders(config, levels):
    """Of deformable encoders, batch first, and of dense ones, sequence first: level by level, place by place."""
    cfg = get_config(config)
    cfg.model.device = cfg.train.device = "cpu"
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    seen = {}
    hook = model.transformer.encoder.register_forward_hook(lambda m, a, tokens: seen.update(tokens=tokens))
    with encoder_maps(model) as maps:
        predict_layers(model, [{"image": torch.rand(3, 64, 96) * 255}] * 2)
    hook.remove()
    sizes = [tuple(level.shape[-2:]) for level in maps]
    assert sizes == (levels or sizes) and len(sizes) == (len(levels) if levels else 1)
    tokens = seen["tokens"] if levels else seen["tokens"].transpose(0, 1)
    assert torch.equal(torch.cat([level.flatten(2) for level in maps], dim=2), tokens.transpose(1, 2))
    assert place_scores(maps, (64, 96)).shape == (2, 16, 24)


def test_what_has_no_encoder_has_no_figure():
    """A model of another kind is called as before."""
    with encoder_maps(torch.nn.Linear(1, 1)) as maps:
        pass
    assert maps == []
