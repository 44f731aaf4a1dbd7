"""What each anchor has to learn, and how wrong it is.

assign: SimOTA (YOLOX, arXiv 2107.08430) on decoded predictions, or the published rule (IoU ≥ 0.35 with the anchor, best
forced). Class: quality focal loss (arXiv 2006.04388) on face minus background logit; boxes: GIoU or DIoU; points: smooth-L1
in units of the face's size.
"""
import sys

import torch
from torch.nn import functional as F


from featherface.anchors import decode_boxes, decode_landmarks, make_anchors  # noqa: E402


def pairwise_iou(a, b):
    """(n, 4), (m, 4) → (n, m)"""
    lo = torch.maximum(a[:, None, :2], b[None, :, :2])
    hi = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = (hi - lo).clamp(min=0).prod(2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return inside / (area_a[:, None] + area_b[None] - inside).clamp(min=1e-6)


def paired_iou(a, b, kind):
    """(n, 4) twice → IoU and GIoU or DIoU (n,)"""
    inside = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inside
    iou = inside / union.clamp(min=1e-6)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=1e-6)
    if kind == "giou":
        area = hull.prod(1)
        return iou, iou - (area - union) / area
    centres = ((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2).square().sum(1)
    return iou, iou - centres / hull.square().sum(1)


@torch.no_grad()
def simota(boxes, logit, gt, anchors, stride, top=10):
    """→ face of each anchor (A,), −1 for none; IoU of its predicted box with it."""
    centre = anchors[:, :2]
    gc = (gt[:, :2] + gt[:, 2:]) / 2
    inside = ((centre[None] > gt[:, None, :2]) & (centre[None] < gt[:, None, 2:])).all(2)
    near = ((centre[None] - gc[:, None]).abs() < 1.5 * stride[None, :, None]).all(2)
    candidates = ((inside | near).any(0)).nonzero()[:, 0]
    iou = pairwise_iou(gt, boxes[candidates])
    cost = F.softplus(-logit[candidates])[None] - 3 * torch.log(iou.clamp(min=1e-8)) + 1e5 * ~(inside & near)[:, candidates]
    # an anchor far from the face's size would have to stretch too far: at most three octaves
    size = (gt[:, 2:] - gt[:, :2]).prod(1).sqrt()
    stretch = torch.log2(size[:, None] / anchors[candidates, 2][None]).abs()
    cost = cost + 10 * (stretch - 2).clamp(min=0)
    k = iou.topk(min(top, iou.shape[1]), dim=1).values.sum(1).int().clamp(min=1)
    order = cost.sort(dim=1)
    chosen = torch.zeros_like(cost, dtype=torch.bool)
    chosen.scatter_(1, order.indices, torch.arange(cost.shape[1])[None] < k[:, None])
    best, face = cost.masked_fill(~chosen, 1e9).min(0)
    taken = best < 1e9
    out = torch.full((len(anchors),), -1, dtype=torch.long)
    out[candidates[taken]] = face[taken]
    return out


@torch.no_grad()
def by_iou(gt, anchors_xyxy):
    iou = pairwise_iou(gt, anchors_xyxy)
    best, face = iou.max(0)
    out = torch.where(best >= 0.35, face, torch.full_like(face, -1))
    own, anchor = iou.max(1)
    out[anchor[own >= 0.1]] = torch.arange(len(gt))[own >= 0.1]
    return out


class Loss:
    def __init__(self, assign="simota", box="giou", weights=(1.0, 2.0, 1.0), target="iou"):
        self.assign, self.box, self.weights, self.target = assign, box, weights, target
        self.norm = None

    def __call__(self, out, faces, size):
        deltas, logits, marks = (t.float() for t in out)
        anchors = make_anchors(size, size)
        xyxy = torch.cat((anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2), 1)
        stride = torch.where(anchors[:, 2] < 48, 8.0, torch.where(anchors[:, 2] < 192, 16.0, 32.0))
        logit = logits[..., 1] - logits[..., 0]
        boxes = decode_boxes(deltas, anchors)
        target, weight = torch.zeros_like(logit), torch.ones_like(logit)
        where, gts = [], []
        for b, rows in enumerate(faces):
            rows = torch.from_numpy(rows).float()
            sure, doubt = rows[rows[:, 4] > 0], rows[rows[:, 4] == 0]
            with torch.no_grad():
                own = boxes[b].detach()
                if len(doubt):
                    d = doubt[:, :4]
                    c, half = (d[:, :2] + d[:, 2:]) / 2, ((d[:, 2:] - d[:, :2]) / 2).clamp(min=6)
                    grown = torch.cat((c - half, c + half), 1)
                    off = (pairwise_iou(grown, xyxy).amax(0) >= 0.2) | (pairwise_iou(d, own).amax(0) >= 0.3)
                    weight[b][off] = 0
                if not len(sure):
                    continue
                gt = sure[:, :4]
                if self.assign == "simota":
                    face = simota(own, logit[b].detach(), gt, anchors, stride)
                else:
                    face = by_iou(gt, xyxy)
                if self.assign == "union":  # as the shipped weights were taught, and what SimOTA would choose
                    chosen = simota(own, logit[b].detach(), gt, anchors, stride)
                    face = torch.where(chosen >= 0, chosen, face)
                index = (face >= 0).nonzero()[:, 0]
                weight[b][index] = 1
            where.append(torch.stack((torch.full_like(index, b), index), 1))
            gts.append(torch.cat((sure[face[index]], (face[index] + 1000 * b)[:, None]), 1))
        if where:
            where, gts = torch.cat(where), torch.cat(gts)
            b, i = where.unbind(1)
            gt = gts[:, :4]
            iou, overlap = paired_iou(boxes[b, i], gt, self.box)
            quality = iou.detach().clamp(0, 1)
            if self.target == "best":  # the best anchor of a face learns 1, the others less
                ids = torch.unique(gts[:, -1], return_inverse=True)[1]
                most = torch.zeros(int(ids.max()) + 1).scatter_reduce_(0, ids, quality, "amax")
                quality = quality / most[ids].clamp(min=0.05) * most[ids].sqrt()
            t = quality * gts[:, 4]
            target[b, i] = t.detach()
            box_loss = ((1 - overlap) * gts[:, 4]).sum()
            pts = decode_landmarks(marks[b, i], anchors[i])
            want = gts[:, 5:15].view(-1, 5, 2)
            known = torch.isfinite(want).all(2).all(1) & (want.amax((1, 2)) < size * 1.3) & (want.amin((1, 2)) > -size * 0.3)
            scale = (gt[:, 2:] - gt[:, :2]).prod(1).sqrt().clamp(min=1)[:, None, None]
            error = F.smooth_l1_loss(pts / scale, torch.where(known[:, None, None], want, pts.detach()) / scale, beta=0.04, reduction="none").mean((1, 2))
            # points of a tiny face are a guess of the teacher's
            mark_loss = (error * known * (scale[:, 0, 0] > 12)).sum()
            count = float(gts[:, 4].sum())
        else:
            box_loss = mark_loss = deltas.sum() * 0
            count = 1.0
        p = logit.sigmoid()
        qfl = ((p - target).abs().square() * F.binary_cross_entropy_with_logits(logit, target, reduction="none") * weight).sum()
        # positives as a running mean: batches without faces must not weigh more than others
        self.norm = count if self.norm is None else 0.95 * self.norm + 0.05 * count
        n = max(0.5 * self.norm + 0.5 * count, 1.0)
        parts = (qfl / n, box_loss / n, mark_loss / n)
        total = sum(w * part for w, part in zip(self.weights, parts))
        return total, [float(v.detach()) for v in parts] + [count]
