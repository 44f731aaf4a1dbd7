"""Face detection with PyTorch: the inference path of notebook, scripts and evaluation."""

import copy
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from featherface.anchors import decode_boxes, decode_landmarks, make_anchors
from featherface.config import (
    DISPLAY_SCORE,
    KEEP_TOP_K,
    MEAN_BGR,
    NMS_IOU,
    PRE_NMS_TOP_K,
)
from featherface.distributed import pick_device
from featherface.errors import CheckpointError
from featherface.face_detector import Arrays, FaceDetector
from featherface.files import shipped_file
from featherface.images import network_input
from featherface.onnx_detector import OnnxDetector
from featherface.runtimes import OPENERS, RuntimeDetector
from featherface.structures import Predictions

SHIPPED_WEIGHTS = shipped_file("weights/v2/FeatherFaceV2_final.pth")


def normalise(images: Tensor) -> Tensor:
    """Convert RGB uint8 (B, 3, H, W) to BGR float32 minus the mean, on the same device."""
    return images.flip(1) - _mean(images.device)  # one pass: no float copy in between


@lru_cache
@torch.inference_mode(False)  # a cached inference tensor could not be used in training later
def _mean(device: torch.device) -> Tensor:
    """(3, 1, 1). Cached: copying it to a GPU for each batch would make the host wait."""
    return torch.tensor(MEAN_BGR, device=device).view(3, 1, 1)


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
    """Decode predictions and apply NMS, for each image.

    Returns boxes (K, 4) xyxy, scores (K,) descending and landmarks (K, 5, 2) for each image, as
    float32 on the predictions' device, in pixels of the network input, not clipped.
    height, width: of the network input, padding included. A face's score is its softmax probability
    and must exceed `score_threshold`; of the `pre_nms` best faces, those that overlap a better one
    by IoU > `iou_threshold` are removed; at most `keep` remain.
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


class Detector(FaceDetector):
    """Finds faces with V1 or V2.

    weights: the path of a checkpoint; a network, such as one in training; or None for the shipped
        V2. A given network stays as it is: if it is in train mode, a copy in eval mode runs, which
        shares its weights. Several threads may use one detector.
    device: auto (CUDA if available, else CPU; a given network stays where it is), cpu, cuda,
        cuda:1, mps.
    score_threshold: faces must score more, 0..1.  iou_threshold: of NMS, 0..1.
    max_side: larger images are shrunk to this long side first, pixels; None: never.
    second_look: see images of more than 640 pixels again at long side 640, to find large faces; its
        time is (640 / long side)² of the first look's, see FaceDetector.
    Raises CheckpointError for weights and ConfigError for invalid settings.
    """

    batch_pixels = 16 * 640 * 640

    def __init__(
        self,
        weights: str | os.PathLike | nn.Module | None = None,
        device: str | torch.device = "auto",
        score_threshold: float = DISPLAY_SCORE,
        iou_threshold: float = NMS_IOU,
        max_side: int | None = None,
        *,
        second_look: bool = True,
    ) -> None:
        super().__init__(score_threshold, iou_threshold, max_side, second_look)
        self.model: nn.Module
        if isinstance(weights, nn.Module):
            from featherface.checkpoint import check_finite

            check_finite(weights.state_dict(), type(weights).__name__)
            self.model = weights if device == "auto" else weights.to(pick_device(str(device)))
        else:
            self.model = _load(weights).to(pick_device(str(device)))
        first = next(self.model.parameters(), None)
        self.device = pick_device(str(device)) if first is None else first.device

    @property
    def architecture(self) -> str:
        return type(self.model).__name__

    def _facts(self) -> str:
        return (
            f"{self.architecture}, {sum(p.numel() for p in self.model.parameters()):,} parameters"
        )

    def _run(self, pictures: list[np.ndarray], size: tuple[int, int]) -> list[Arrays]:
        batch = torch.from_numpy(network_input(pictures, *size))
        training = any(module.training for module in self.model.modules())
        model = _in_eval_mode(self.model) if training else self.model
        with torch.inference_mode():
            faces = postprocess(
                model(batch.to(self.device)),
                *size,
                score_threshold=self.score_threshold,
                iou_threshold=self.iou_threshold,
            )
        return [
            (boxes.cpu().numpy(), scores.cpu().numpy(), landmarks.cpu().numpy())
            for boxes, scores, landmarks in faces
        ]


def _load(weights: str | os.PathLike | None) -> nn.Module:
    from featherface.checkpoint import load_model

    if weights is None and not SHIPPED_WEIGHTS.is_file():
        raise CheckpointError(
            f"the shipped weights are not at {SHIPPED_WEIGHTS}: name other weights (weights=… in "
            "Python, --weights in a script), or train them with scripts/train_v2.py"
        )
    return load_model(SHIPPED_WEIGHTS if weights is None else weights)


def _in_eval_mode(module: nn.Module) -> nn.Module:
    """Copy a network in eval mode. The copy has the same tensors, and takes 3 ms for V1 or V2.

    Other threads that detect with the network, or train it, would notice a switch of its mode.
    """
    twin = copy.copy(module)
    twin.training = False
    twin._modules = {name: part and _in_eval_mode(part) for name, part in module._modules.items()}
    return twin


def open_detector(
    weights: str | os.PathLike | None = None,
    device: str = "auto",
    *,
    score_threshold: float = DISPLAY_SCORE,
    iou_threshold: float = NMS_IOU,
    max_side: int | None = None,
    second_look: bool = True,
) -> FaceDetector:
    """Open an .onnx file with OnnxDetector, a checkpoint with Detector. None: the shipped V2.

    .xml, .param, .tflite and .pt2 files are opened with RuntimeDetector.
    """
    suffix = "" if weights is None else Path(weights).suffix.lower()
    kind: Any = OnnxDetector if suffix == ".onnx" else Detector
    if suffix in OPENERS:
        kind = RuntimeDetector
    return kind(weights, device, score_threshold, iou_threshold, max_side, second_look=second_look)
