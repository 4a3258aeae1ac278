"""Auxiliary heads: losses against loops over anchors, gradients, and difficult images."""

import pytest
import torch
import torch.nn.functional as F

from co_detr.heads import ATSSHead, Candidates, FasterRCNNHead, PaddedGroundTruth, Pyramid
from co_detr.heads.atss import centerness_of
from co_detr.heads.faster_rcnn import ProposalNetwork
from co_detr.modeling.queries import draw_queries
from co_detr.ops import BACKGROUND, IGNORED, apply_deltas, box_deltas, pairwise_iou

STRIDES = [8, 16, 32]
EXTENT = torch.tensor([[64.0, 48.0], [40.0, 64.0]])
DELTAS = (10.0, 10.0, 5.0, 5.0)


def head_of(kind, embed_dim=32):
    torch.manual_seed(0)
    if kind == "atss":
        return ATSSHead(embed_dim, 3, STRIDES, anchor_scale=4.0)
    proposals = ProposalNetwork(embed_dim, anchor_scale=2.0, num_before=60, num_after=40, num_samples=64)
    return FasterRCNNHead(embed_dim, 3, proposals, hidden_dim=16, num_samples=32)


def pyramid(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 32, 64 // s, 64 // s, generator=generator).to(dtype).requires_grad_() for s in STRIDES]
    return Pyramid(maps, STRIDES, EXTENT)


def objects_of(*boxes_by_image):
    targets = []
    for boxes, extent in zip(boxes_by_image, EXTENT, strict=True):
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        centered = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
        labels = torch.arange(len(corners)) % 3
        targets.append({"labels": labels, "boxes": centered / extent.repeat(2)})
    return PaddedGroundTruth.from_targets(targets, EXTENT)


SOME = objects_of([[4, 6, 40, 40], [20, 10, 50, 46], [2, 2, 14, 12]], [[5, 20, 39, 60]])


def giou_of(one, other):
    (inter_w, inter_h) = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    inter = max(inter_w, 0) * max(inter_h, 0)
    area = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    union = sum(area) - inter
    (hull_w, hull_h) = (max(one[i + 2], other[i + 2]) - min(one[i], other[i]) for i in (0, 1))
    return inter / union - (hull_w * hull_h - union) / (hull_w * hull_h)


@torch.no_grad()
def test_atss_losses_are_the_loops():
    """Focal loss, GIoU weighted by centerness, and centerness loss equal a loop over anchors and classes."""
    head, objects = head_of("atss"), SOME
    for pred in (head.class_pred, head.box_pred, head.centerness_pred):
        torch.nn.init.normal_(pred.weight, std=0.05)
    features = pyramid()
    losses, (anchors, assigned, _) = head(features, objects)
    logits, deltas, centers = head.predict(features.maps)
    focal, giou, center, amount, positives = 0.0, 0.0, 0.0, 0.0, 0
    for i in range(2):
        for a in range(len(anchors)):
            index = int(assigned[i, a])
            if index == IGNORED:
                continue
            label = int(objects.labels[i, index]) if index >= 0 else None
            for c in range(3):
                s = logits[i, a, c].sigmoid()
                focal += -0.25 * (1 - s) ** 2 * s.log() if c == label else -0.75 * s**2 * (1 - s).log()
            if index < 0:
                continue
            positives += 1
            truth = objects.boxes[i, index].tolist()
            x, y = ((anchors[a, j] + anchors[a, j + 2]).item() / 2 for j in (0, 1))
            near, far = sorted([x - truth[0], truth[2] - x]), sorted([y - truth[1], truth[3] - y])
            ideal = (near[0] / near[1] * far[0] / far[1]) ** 0.5
            giou += ideal * (1 - giou_of(apply_deltas(anchors[a], deltas[i, a], DELTAS).tolist(), truth))
            center += F.binary_cross_entropy(centers[i, a].sigmoid(), torch.tensor(ideal))
            amount += ideal
    assert positives > 5
    expected = {"class": focal / positives, "giou": 2 * giou / max(1, amount), "centerness": center / positives}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(float(value), rel=5e-4), name


def test_proposal_losses_are_the_loops():
    """BCE over the sampled anchors, L1 over the deltas of the positives."""
    network, objects = head_of("faster_rcnn").proposals, SOME
    torch.manual_seed(0)
    anchors = torch.tensor([[0.0, 0, 30, 30], [10, 10, 50, 50], [20, 0, 40, 40], [4, 4, 60, 40], [0, 10, 30, 60]])
    logits, deltas = torch.randn(2, 5), torch.randn(2, 5, 4)
    assigned = torch.tensor([[0, 1, BACKGROUND, IGNORED, BACKGROUND], [BACKGROUND, IGNORED, IGNORED, IGNORED, 0]])
    sampled = torch.tensor([[1, 0, 4], [4, 0, -1]])
    losses = network.losses(logits, deltas, anchors, assigned, sampled, objects)
    bce, distance = 0.0, 0.0
    for i, a in ((0, 1), (0, 0), (0, 4), (1, 4), (1, 0)):
        index = int(assigned[i, a])
        bce += F.binary_cross_entropy(logits[i, a].sigmoid(), torch.tensor(float(index >= 0)))
        if index >= 0:
            distance += (deltas[i, a] - box_deltas(anchors[a], objects.boxes[i, index])).abs().sum()
    assert losses["rpn_class"].item() == pytest.approx(float(bce) / 5, rel=1e-5)
    assert float(losses["rpn_bbox"]) == pytest.approx(float(distance) / 5, rel=1e-5)


def test_second_stages_losses_are_the_loops():
    """Cross-entropy with background last, GIoU of the box of the object's own class."""
    head, objects = head_of("faster_rcnn"), SOME
    torch.manual_seed(0)
    boxes = torch.tensor([[2.0, 4, 38, 42], [22, 8, 52, 44], [0, 0, 9, 9]]).expand(2, -1, -1)
    assigned = torch.tensor([[0, 1, BACKGROUND], [0, IGNORED, BACKGROUND]])
    logits, deltas = torch.randn(2, 3, 4), torch.randn(2, 3, 3, 4)
    losses = head.losses(logits, deltas, boxes, assigned, objects)
    entropy, giou = 0.0, 0.0
    for i, place in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2)):
        index = int(assigned[i, place])
        label = int(objects.labels[i, index]) if index >= 0 else 3
        entropy -= logits[i, place].log_softmax(0)[label]
        if index >= 0:
            refined = apply_deltas(boxes[i, place], deltas[i, place, label], DELTAS)
            giou += 1 - giou_of(refined.tolist(), objects.boxes[i, index].tolist())
    assert float(losses["class"]) == pytest.approx(float(entropy) / 5, rel=1e-5)
    assert float(losses["giou"]) == pytest.approx(10 * giou / 5, rel=1e-4)


def test_proposals_are_inside_their_image_and_apart():
    """Proposals lie inside the image, best first; within a level no IoU is above 0.7."""
    head = head_of("faster_rcnn")
    _, proposals, valid = head.proposals(pyramid(), SOME)
    assert valid.any(1).all()
    for boxes, keep, extent in zip(proposals, valid, EXTENT, strict=True):
        assert (boxes >= 0).all() and (boxes[:, 2:] <= extent).all()
        assert (boxes[keep, 2:] > boxes[keep, :2]).all()
        assert not boxes[~keep].any()


def test_objects_are_among_the_proposals():
    """The second stage gets positives even if the first finds none."""
    head = head_of("faster_rcnn")
    boxes, assigned = head.sample(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool), SOME)
    assert (assigned >= 0).sum(1).tolist() == [3, 1]
    image, place = (assigned >= 0).nonzero(as_tuple=True)
    assert torch.equal(boxes[image, place], SOME.boxes[image, assigned[image, place]])


CROWD = [[i % 8 * 7, i // 8 * 6, i % 8 * 7 + 9, i // 8 * 6 + 8] for i in range(60)]
SITUATIONS = {
    "some": SOME,
    "no objects": objects_of([], []),
    "one empty image": objects_of([[4, 6, 40, 40]], []),
    "too small": objects_of([[1, 1, 1.5, 1.5]], [[3, 3, 3, 3]]),
    "a crowd": objects_of(CROWD, CROWD),
    "at the border": objects_of([[0, 0, 64, 48], [60, 40, 64, 48]], [[0, 0, 5, 64], [39, 63, 40, 64]]),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("kind", ["atss", "faster_rcnn"])
def test_hard_images(kind, situation):
    """Losses are finite, every parameter and map gets a gradient, at least nine positive queries lie in the image."""
    head, features, objects = head_of(kind), pyramid(), SITUATIONS[situation]
    losses, candidates = head(features, objects)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert all(level.grad is not None and level.grad.isfinite().all() for level in features.maps)
    assert any(level.grad.any() for level in features.maps)
    queries = draw_queries(candidates, EXTENT, most=20, least=9)
    assert 9 <= queries.boxes.shape[1] <= 20 and queries.boxes.isfinite().all()
    assert ((queries.boxes >= 0) & (queries.boxes <= 1)).all()
    target = (candidates.assigned >= 0).sum(1).clamp(max=20)
    assert torch.equal((queries.assigned >= 0).sum(1), target)
    assert situation != "no objects" or not target.any()


@pytest.mark.parametrize("kind", ["atss", "faster_rcnn"])
def test_half_precision(kind):
    """Under autocast: losses are float32 and close to the float32 run, gradients are finite."""
    features = pyramid()
    torch.manual_seed(0)
    expected, _ = head_of(kind)(features, SOME)
    torch.manual_seed(0)
    head = head_of(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = head(features, SOME)
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert float(sum(losses.values())) == pytest.approx(float(sum(expected.values())), rel=0.05)


def test_positive_queries_are_drawn():
    """Too many positives are sampled at random; negatives fill up, and ignored boxes only when negatives run out."""
    boxes = torch.rand(2, 40, 4).cumsum(-1)
    assigned = torch.full((2, 40), IGNORED)
    assigned[0, :12], assigned[0, 12:20] = 1, BACKGROUND
    assigned[1, :3], assigned[1, 3:8] = 0, BACKGROUND
    torch.manual_seed(0)
    queries = draw_queries(Candidates(boxes, assigned), torch.ones(2, 2), most=10, least=9)
    assert (queries.assigned == 1).sum() == 10
    assert torch.bincount(queries.assigned[1] + 2).tolist() == [2, 5, 3]
    again = draw_queries(Candidates(boxes, assigned), torch.ones(2, 2), most=10, least=9)
    assert not torch.equal(again.boxes[0], queries.boxes[0])
    few = draw_queries(Candidates(boxes, torch.full((2, 40), BACKGROUND)), torch.ones(2, 2), most=10, least=9)
    assert few.boxes.shape == (2, 9, 4)


def test_centerness():
    """1 at the centre, 0 at a border, FCOS's formula in between."""
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 3)
    points = torch.tensor([[5.0, 5.0], [10.0, 5.0], [2.0, 5.0]])
    torch.testing.assert_close(centerness_of(points, boxes), torch.tensor([1.0, 0.0, 0.5]))


def test_proposals_overlap_little():
    """Suppression runs within each level: no two proposals of a level have an IoU above 0.7."""
    network = head_of("faster_rcnn").proposals
    torch.manual_seed(0)
    corner = torch.rand(60, 2) * 20
    level = torch.cat([corner, corner + 20], dim=1)
    proposals, valid = network.proposals(torch.randn(1, 60), torch.zeros(1, 60, 4), [level], EXTENT[:1])
    kept = proposals[0][valid[0]]
    iou = pairwise_iou(kept, kept).fill_diagonal_(0)
    assert 1 < len(kept) < 40 and iou.max() <= 0.7
