"""Align-DETR's criterion spelled out: layer by layer, costs between all queries and all objects of the batch.

The slow, obvious form that the one-pass criterion is compared with, in numbers and in time.
"""

import torch
import torch.nn.functional as F
from detrex.layers import box_cxcywh_to_xyxy
from scipy.optimize import linear_sum_assignment

COSTS = dict(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0)


def pairwise_iou_giou(a, b):
    """(N, 4) and (M, 4) xyxy to (N, M) IoU and GIoU."""
    inter_min, inter_max = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    inter = (inter_max - inter_min).clamp(min=0).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    union = area_a[:, None] + area_b - inter
    hull_min, hull_max = torch.minimum(a[:, None, :2], b[:, :2]), torch.maximum(a[:, None, 2:], b[:, 2:])
    hull = (hull_max - hull_min).prod(-1)
    iou = inter / (union + 1e-6)
    return iou, iou - (hull - union) / (hull + 1e-6)


@torch.no_grad()
def match(logits, boxes, targets, k, cost_class, cost_bbox, cost_giou):
    """Pairs of one layer: per image (query, object) indices."""
    batch, num_queries, _ = logits.shape
    score = logits.flatten(0, 1).sigmoid()
    all_boxes = boxes.flatten(0, 1)
    labels = torch.cat([t["labels"] for t in targets])
    gt_boxes = torch.cat([t["boxes"] for t in targets])
    positive = 0.25 * (1 - score) ** 2 * -(score + 1e-8).log()
    negative = 0.75 * score**2 * -(1 - score + 1e-8).log()
    cost = cost_class * (positive - negative)[:, labels]
    cost = cost + cost_bbox * torch.cdist(all_boxes, gt_boxes, p=1)
    cost = cost - cost_giou * pairwise_iou_giou(box_cxcywh_to_xyxy(all_boxes), box_cxcywh_to_xyxy(gt_boxes))[1]
    cost = cost.view(batch, num_queries, -1).cpu()
    pairs = []
    for i, part in enumerate(cost.split([len(t["labels"]) for t in targets], -1)):
        num_objects = part.shape[-1]
        if num_objects == 0:
            pairs.append((torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)))
            continue
        repeats = min(max(num_queries // (2 * num_objects), 1), k)
        query, column = linear_sum_assignment(part[i].repeat(1, repeats))
        pairs.append((torch.as_tensor(query), torch.as_tensor(column % num_objects)))
    return pairs


def ranks(t, owner):
    """Rank of each pair by its quality t, best first, among the pairs of the same owner; equals rank as they come."""
    index = torch.arange(len(t), device=t.device)
    ahead = (t > t[:, None]) | ((t == t[:, None]) & (index < index[:, None]))
    return ((owner == owner[:, None]) & ahead).sum(1)


def pair_targets(kind, t, iou, image, gamma):
    """(P,) target of each pair before rank weights, each loss by its own paper."""
    if kind in ("ia_bce_loss", "align_loss"):
        return t
    if kind == "focal_loss":
        return torch.ones_like(iou)
    if kind == "matchability_aware_loss":
        return iou**gamma
    target = iou.clone()  # quality_focal_loss, varifocal_loss
    if kind == "position_supervised_loss":
        for i in image.unique():
            squares = iou[image == i] ** 2
            if squares.max() > 0:
                target[image == i] = squares * iou[image == i].max() / squares.max()
    return target


def entry_losses(kind, logits, target, is_pair, gamma):
    """Loss of every (query, class) entry; `target` is 0 where there is no pair."""
    s = logits.sigmoid()
    as_background = s**gamma * -F.logsigmoid(-logits)
    bce = -target * F.logsigmoid(logits) - (1 - target) * F.logsigmoid(-logits)
    focal = (target - s).abs() ** gamma * bce
    if kind in ("ia_bce_loss", "matchability_aware_loss"):
        return torch.where(is_pair, bce, as_background)
    if kind in ("align_loss", "quality_focal_loss", "position_supervised_loss"):
        return torch.where(is_pair, focal, as_background)
    if kind == "focal_loss":
        return torch.where(is_pair, 0.25 * focal, 0.75 * as_background)
    assert kind == "varifocal_loss"
    return torch.where(target > 0, target * bce, 0.75 * as_background)


def layer_losses(logits, boxes, targets, pairs, alpha, gamma, tau, kind, ranked=True):
    """Unnormalised class, L1 and GIoU losses of one layer."""
    device = logits.device
    first, owners, labels, gt = 0, [], [], []
    for target, (_, obj) in zip(targets, pairs, strict=True):
        owners.append(first + obj)
        labels.append(target["labels"][obj])
        gt.append(target["boxes"][obj])
        first += len(target["labels"])
    image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(pairs)]).to(device)
    query = torch.cat([query for query, _ in pairs]).to(device)
    owner, labels, gt = torch.cat(owners).to(device), torch.cat(labels), torch.cat(gt)

    # Half precision for what is large only.
    logits, boxes = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits, boxes))
    matched = boxes[image, query]
    iou, giou = (x.diagonal() for x in pairwise_iou_giou(box_cxcywh_to_xyxy(matched), box_cxcywh_to_xyxy(gt)))
    t = (logits[image, query, labels].sigmoid() ** alpha * iou ** (1 - alpha)).detach().clamp(min=0.01)
    w = torch.exp(-ranks(t, owner) / tau) if ranked else torch.ones_like(t)
    loss_bbox = (w[:, None] * (matched - gt).abs()).sum()
    loss_giou = (w * (1 - giou)).sum()

    target = torch.zeros_like(logits)
    is_pair = torch.zeros_like(logits, dtype=torch.bool)
    target[image, query, labels] = w * pair_targets(kind, t, iou.detach(), image, gamma)
    is_pair[image, query, labels] = True
    loss_class = entry_losses(kind, logits, target, is_pair, gamma).sum()
    return loss_class, loss_bbox, loss_giou


def denoising_pairs(targets, groups, single_padding):
    pairs = []
    for t in targets:
        obj = torch.arange(len(t["labels"]))
        query = torch.cat([g * single_padding + obj for g in range(groups)])
        pairs.append((query, obj.repeat(groups)))
    return pairs


def criterion(outputs, targets, dn_metas=None, *, alpha=0.25, gamma=2.0, tau=1.5, k=2, kind="ia_bce_loss", costs=COSTS):
    """All losses of a DINO, by detrex's names."""
    num_boxes = max(1, sum(len(t["labels"]) for t in targets))
    aux = outputs.get("aux_outputs", [])
    layers = [(f"_{i}", layer, k) for i, layer in enumerate(aux)] + [("", outputs, 1)]
    if "enc_outputs" in outputs:
        layers.append(("_enc", outputs["enc_outputs"], k))
    losses = {}

    def add(suffix, values, norm):
        for name, value in zip(("loss_class", "loss_bbox", "loss_giou"), values, strict=True):
            losses[name + suffix] = value / norm

    for suffix, layer, number in layers:
        logits, boxes = layer["pred_logits"], layer["pred_boxes"]
        pairs = match(logits, boxes, targets, number, **costs)
        add(suffix, layer_losses(logits, boxes, targets, pairs, alpha, gamma, tau, kind), num_boxes)
    if dn_metas:
        known = dn_metas["output_known_lbs_bboxes"]
        groups = int(dn_metas["dn_num"])
        pairs = denoising_pairs(targets, groups, int(dn_metas["single_padding"]))
        for suffix, layer in [(f"_dn_{i}", x) for i, x in enumerate(known["aux_outputs"])] + [("_dn", known)]:
            values = layer_losses(
                layer["pred_logits"], layer["pred_boxes"], targets, pairs, alpha, gamma, tau, kind, ranked=False
            )
            add(suffix, values, num_boxes * groups)
    return losses
