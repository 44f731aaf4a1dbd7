"""A teacher that keeps its answers on disk and does not work the same image out twice.

For runs whose crops come again (`replay_epochs`): on a CPU the teacher is a third of a step. An
answer of V1 at 512×512 takes 344 kB.
"""

import hashlib
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featherface.anchors import make_anchors
from featherface.config import TrainConfig
from featherface.errors import ConfigError
from featherface.structures import Predictions
from featherface.training.folder import answers_folder
from featherface.training.teacher import Answer, Teacher, digest_of

WIDTHS = (4, 2, 10)  # of box deltas, class logits, landmark deltas: the columns of a file


class RememberingTeacher:
    """Answers by `teacher`, or from `folder` what it answered to the same pixels before.

    Answers are rounded to float16, new ones too, so that a run does not depend on which were there;
    the features are left out. Files are named by a digest of the image and the teacher's weights,
    so several processes share a folder, and no other teacher's answers are taken.
    """

    def __init__(self, teacher: Teacher, folder: Path) -> None:
        self.teacher, self.folder = teacher, folder
        self.model = teacher.model
        self.weights = digest_of(self.model).encode()

    def __call__(self, images: Tensor) -> Answer:
        paths = [self._path(image) for image in images]
        answers = [_read(path) for path in paths]
        new = [number for number, answer in enumerate(answers) if answer is None]
        if new:
            fresh = torch.cat(self.teacher(images[new]).predictions, dim=-1)
            for number, answer in zip(new, fresh.half().cpu(), strict=True):
                _write(paths[number], answer.numpy())
                answers[number] = answer
        joined = torch.stack(answers).to(images.device).float()  # type: ignore[arg-type]
        return Answer(Predictions(*joined.split(WIDTHS, dim=-1)), [])

    def _path(self, image: Tensor) -> Path:
        pixels = image.cpu().permute(1, 2, 0).contiguous()  # as it lies in memory: no copy
        digest = hashlib.sha256(self.weights)
        digest.update(pixels.numpy().data)
        return self.folder / f"{digest.hexdigest()}.npy"


def check_room_for_answers(config: TrainConfig, *, photos: int) -> None:
    """ConfigError where the disk has no room for what `replay_epochs` will keep, less what is
    there."""
    folder = answers_folder(config)
    anchors = len(make_anchors(config.image_size, config.image_size))
    needed = config.replay_epochs * photos * anchors * sum(WIDTHS) * torch.half.itemsize
    kept = sum(file.stat().st_size for file in folder.glob("*.npy"))
    free = shutil.disk_usage(config.save_folder).free
    if needed - kept > free:
        raise ConfigError(
            f"--replay-epochs {config.replay_epochs}: the teacher's answers would take "
            f"{needed / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB are free; lower it"
        )


def _read(path: Path) -> Tensor | None:
    """(A, 16), or None where there is no such file or, after a crash, only a part of it."""
    try:
        return torch.from_numpy(np.load(path))
    except (FileNotFoundError, ValueError, EOFError):
        return None


def _write(path: Path, answer: np.ndarray) -> None:
    """In one step, but without waiting for the disk: fsync would take longer than the teacher."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.npy")
    try:
        np.save(temporary, answer)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
