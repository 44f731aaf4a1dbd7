"""Threshold, top-k, decoding and NMS against a plain reference and chosen outputs."""

import numpy as np
import torch
from torchvision.ops import box_iou

from featherface.anchors import decode_boxes, decode_landmarks, make_anchors
from featherface.detector import postprocess
from featherface.structures import Predictions


def random_predictions(batch=2, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    anchors = len(make_anchors(size, size))
    return Predictions(
        torch.randn(batch, anchors, 4, generator=generator),
        torch.randn(batch, anchors, 2, generator=generator) * 3,
        torch.randn(batch, anchors, 10, generator=generator),
    )


def empty_predictions(size=64, batch=1):
    count = len(make_anchors(size, size))
    logits = torch.tensor((9.0, -9.0)).expand(batch, count, 2).clone()
    return Predictions(torch.zeros(batch, count, 4), logits, torch.zeros(batch, count, 10))


def reference(predictions, index, size, *, score_threshold, iou_threshold, pre_nms, keep):
    """The same by a loop over boxes."""
    anchors = make_anchors(size, size)
    scores = predictions.class_logits[index].softmax(-1)[:, 1]
    boxes = decode_boxes(predictions.box_deltas[index], anchors)
    points = decode_landmarks(predictions.landmark_deltas[index], anchors)
    chosen = []
    for candidate in scores.argsort(descending=True)[:pre_nms].tolist():
        if scores[candidate] <= score_threshold or len(chosen) == keep:
            break
        overlaps = [box_iou(boxes[None, candidate], boxes[None, other]).item() for other in chosen]
        if all(overlap <= iou_threshold for overlap in overlaps):
            chosen.append(candidate)
    return boxes[chosen], scores[chosen], points[chosen]


def test_equals_a_plain_loop():
    predictions = random_predictions()
    for options in (
        dict(score_threshold=0.02, iou_threshold=0.4, pre_nms=5000, keep=750),
        dict(score_threshold=0.6, iou_threshold=0.1, pre_nms=60, keep=750),
        dict(score_threshold=0.5, iou_threshold=0.4, pre_nms=5000, keep=7),
    ):
        found = postprocess(predictions, 64, 64, **options)
        assert len(found) == 2
        for index, faces in enumerate(found):
            expected = reference(predictions, index, 64, **options)
            assert len(expected[1]) > 3
            for got, wanted in zip(faces, expected, strict=True):
                torch.testing.assert_close(got, wanted)


def test_no_face_and_not_a_number():
    predictions = empty_predictions(batch=2)
    predictions.class_logits[1] = torch.nan
    for boxes, scores, landmarks in postprocess(
        predictions, 64, 64, score_threshold=0.0 + 1e-3, iou_threshold=0.4
    ):
        assert boxes.shape == (0, 4) and scores.shape == (0,) and landmarks.shape == (0, 5, 2)


def test_the_threshold_itself_is_not_enough():
    predictions = empty_predictions()
    predictions.class_logits[0, 7] = 0.0  # a score of exactly one half
    for threshold, count in ((0.5, 0), (float(np.nextafter(0.5, 0, dtype=np.float32)), 1)):
        ((_, scores, _),) = postprocess(
            predictions, 64, 64, score_threshold=threshold, iou_threshold=0.4
        )
        assert len(scores) == count


def test_half_precision_outputs_are_decoded_in_float32():
    predictions = Predictions(*(part.bfloat16() for part in random_predictions()))
    (boxes, scores, landmarks), _ = postprocess(
        predictions, 64, 64, score_threshold=0.5, iou_threshold=0.4
    )
    assert {boxes.dtype, scores.dtype, landmarks.dtype} == {torch.float32}


def test_anchors_made_under_inference_mode_still_serve_training():
    size = 96  # a size that no other test has put into the cache
    with torch.inference_mode():
        postprocess(empty_predictions(size), size, size, score_threshold=0.5, iou_threshold=0.4)
    deltas = torch.zeros(len(make_anchors(size, size)), 4, requires_grad=True)
    decode_boxes(deltas, make_anchors(size, size)).sum().backward()
    assert deltas.grad is not None
