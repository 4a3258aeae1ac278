import pytest
import torch
from detrex.utils import inverse_sigmoid
from projects.dino.modeling.criterion import denoising_pairs
from projects.dino.modeling.denoising import denoising_attention_mask, denoising_queries
from torch import nn

pytestmark = pytest.mark.engine("functions of the engine; in detrex denoising is a method of its detector")


def targets(*counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(7, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.2 + 0.4,
        }
        for n in counts
    ]


def draw(truth, number=10, label_noise=0.0, box_noise=0.0):
    torch.manual_seed(0)
    embedding = nn.Embedding(7, 7)
    nn.init.eye_(embedding.weight)  # content is the one-hot label
    return denoising_queries(truth, embedding, 7, number, label_noise, box_noise)


def test_layout_is_groups_of_positives_then_negatives():
    """The criterion finds object j of group g by its position; compare with a loop."""
    truth = targets(2, 0, 3)
    queries = draw(truth)
    assert (queries.groups, queries.group_size) == (3, 6)
    for image, target in enumerate(truth):
        for group in range(3):
            for half in range(2):
                for j in range(3):
                    place = group * 6 + half * 3 + j
                    content, box = queries.content[image, place], queries.boxes[image, place]
                    if j < len(target["labels"]):
                        assert content.argmax() == target["labels"][j]
                        torch.testing.assert_close(box, inverse_sigmoid(target["boxes"][j]))
                    else:
                        assert content.eq(0).all() and box.eq(0).all()


def test_positive_and_negative_boxes_are_apart():
    """Contrastive noise: corners of positives move by less than the scale in half sides, of negatives by more."""
    truth = targets(4, 4)
    scale = 0.4
    queries = draw(truth, number=400, box_noise=scale)
    noisy = queries.boxes.sigmoid().unflatten(1, (queries.groups, 2, 4))
    clean = torch.stack([target["boxes"] for target in truth])[:, None, None]
    corners = [torch.cat([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], -1) for b in (noisy, clean)]
    moved = (corners[0] - corners[1]).abs() / (clean[..., 2:].repeat(1, 1, 1, 1, 2) / 2)
    assert moved[:, :, 0].max() <= scale + 1e-3 and moved[:, :, 0].min() < 0.02
    assert moved[:, :, 1].min() >= scale - 1e-3 and scale * 1.9 < moved[:, :, 1].max() <= scale * 2 + 1e-3


def test_half_of_the_label_noise_is_redrawn():
    """A noise of 0.5 replaces a quarter of the labels; some get their old class."""
    truth = targets(5, 5)
    queries = draw(truth, number=5000, label_noise=0.5)
    labels = torch.stack([target["labels"] for target in truth])[:, None, None]
    changed = (queries.content.argmax(-1).unflatten(1, (queries.groups, 2, 5)) != labels).float().mean()
    assert abs(changed - 0.25 * 6 / 7) < 0.02


def test_crowded_images_still_get_one_group():
    """With more objects than denoising queries there is one group."""
    assert draw(targets(30), number=10).groups == 1


def test_nothing_to_denoise():
    """No denoising queries without objects, without images, or with `number=0`."""
    assert draw(targets(0, 0)) is None
    assert draw(targets(3), number=0) is None


def test_queries_see_their_group_and_the_matching_queries_only():
    """Matching queries must not attend to denoising queries, which contain the ground truth."""
    mask = denoising_attention_mask(groups=3, group_size=4, num_queries=5, device="cpu")
    for query in range(17):
        for key in range(17):
            same_group = query < 12 and query // 4 == key // 4
            assert mask[query, key].item() is not (key >= 12 or same_group)


def test_pairs_are_the_positives_of_every_group():
    """Negatives have no object."""
    queries, objects = denoising_pairs(objects=2, groups=3, group_size=6, device="cpu")
    assert list(zip(queries.tolist(), objects.tolist(), strict=True)) == [
        (0, 0), (1, 1), (6, 0), (7, 1), (12, 0), (13, 1)
    ]  # fmt: skip
