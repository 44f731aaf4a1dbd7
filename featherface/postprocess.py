"""Raw network outputs → faces: score threshold, decoding and non-maximum suppression.

The order is RetinaFace's (arXiv 1905.00641) evaluation: threshold, top-k, decode, NMS, keep.
"""

from torch import Tensor
from torchvision.ops import nms

from featherface.anchors import decode_boxes, decode_landmarks, make_anchors
from featherface.config import KEEP_TOP_K, PRE_NMS_TOP_K
from featherface.structures import Predictions


def postprocess(
    predictions: Predictions,
    height: int,
    width: int,
    *,
    score_threshold: float,
    iou_threshold: float,
    pre_nms: int = PRE_NMS_TOP_K,
    keep: int = KEEP_TOP_K,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Faces of each image: boxes (K, 4) xyxy, scores (K,) descending, landmarks (K, 5, 2).

    height, width: the network input's, padding included; coordinates are its pixels, not clipped.
    A face's score is its softmax probability and must exceed `score_threshold`; of the `pre_nms`
    best, those overlapping a better one by IoU > `iou_threshold` go; at most `keep` stay.
    Results are float32 on the predictions' device.
    """
    anchors = make_anchors(height, width, predictions.class_logits.device)
    scores = predictions.class_logits.float().softmax(dim=-1)[..., 1]  # (B, A, 2) → (B, A)
    faces = []
    for index, image_scores in enumerate(scores):
        candidates = (image_scores > score_threshold).nonzero().squeeze(1)  # (N, 1) → (N,)
        best, order = image_scores[candidates].topk(min(pre_nms, len(candidates)))
        chosen = candidates[order]
        boxes = decode_boxes(predictions.box_deltas[index, chosen].float(), anchors[chosen])
        kept = nms(boxes, best, iou_threshold)[:keep]
        landmarks = decode_landmarks(
            predictions.landmark_deltas[index, chosen[kept]].float(), anchors[chosen[kept]]
        )
        faces.append((boxes[kept], best[kept], landmarks))
    return faces
