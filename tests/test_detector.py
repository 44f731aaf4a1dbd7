"""The one inference path: mapping to the image's pixels, batches, settings, devices, modes."""

import copy
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from spotter import Spotter, photo
from torch import nn

import featherface as ff
from featherface import detector as module
from featherface import face_detector
from featherface.config import MEAN_BGR
from featherface.data.demo_scene import make_photo
from featherface.detector import Detector
from featherface.errors import CheckpointError, ConfigError, DataError


def assert_same(first, second):
    assert len(first) == len(second)
    np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-3)
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)
    np.testing.assert_allclose(first.landmarks, second.landmarks, atol=1e-3)


def test_a_face_is_found_where_it_is():
    faces = Detector(Spotter()).detect(photo(50, 70, (3, 2)))
    assert faces.boxes.tolist() == [[20, 12, 36, 28]]  # 16×16 about (28, 20)
    assert faces.landmarks.tolist() == [[[28, 20]] * 5]
    assert faces.boxes.dtype == faces.scores.dtype == faces.landmarks.dtype == np.float32


def test_best_first():
    image = np.maximum(photo(64, 96, (1, 1), value=170), photo(64, 96, (8, 1), value=255))
    image = np.maximum(image, photo(64, 96, (4, 5), value=210))
    faces = Detector(Spotter()).detect(image)
    assert faces.landmarks[:, 0].tolist() == [[68, 12], [36, 44], [12, 12]]
    assert faces.scores[0] > faces.scores[1] > faces.scores[2] > 0.5


def test_boxes_are_clipped_but_landmarks_are_not():
    model = Spotter()
    image = photo(30, 45, (0, 0), (5, 3))
    faces = Detector(model).detect(image)
    boxes = {tuple(box) for box in faces.boxes.tolist()}
    assert boxes == {(0, 0, 12, 12), (36, 20, 45, 30)}
    assert model.shapes == [(1, 3, 32, 64)]


def test_a_face_wholly_in_the_padding_is_dropped():
    class Padding(Spotter):
        def forward(self, images):
            images = images.clone()
            images[..., 48:56, 48:56] = 200  # the network invents a face at (48..56)
            return super().forward(images)

    assert len(Detector(Padding()).detect(photo(64, 64))) == 1
    assert len(Detector(Padding()).detect(photo(33, 33))) == 0


def test_the_network_sees_bgr_minus_mean_and_mean_colour_padding():
    class Look(Spotter):
        def forward(self, images):
            self.seen = images
            return super().forward(images)

    image = np.zeros((3, 5, 3), np.uint8) + np.array((200, 100, 50), np.uint8)
    for source, bgr in ((image, False), (image[..., ::-1], True), (Image.fromarray(image), False)):
        model = Look().eval()  # in train mode, a copy would see them
        Detector(model).detect(source, bgr=bgr)
        assert model.seen.shape == (1, 3, 32, 32) and model.seen.dtype == torch.float32
        pixel = torch.tensor((50.0, 100.0, 200.0)) - torch.tensor(MEAN_BGR)
        torch.testing.assert_close(model.seen[0, :, 2, 4], pixel)
        assert not model.seen[0, :, 3:].any() and not model.seen[0, :, :, 5:].any()


def test_max_side_shrinks_and_maps_back():
    image = np.zeros((128, 256, 3), np.uint8)
    image[32:48, 64:80] = 255  # one cell of the half-size picture
    model = Spotter()
    faces = Detector(model, max_side=128).detect(image)
    assert model.shapes == [(1, 3, 64, 128)]
    assert faces.boxes.tolist() == [[56, 24, 88, 56]]
    assert faces.landmarks[0, 0].tolist() == [72, 40]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), max_size=6), st.integers(0, 99))
def test_batched_equals_single(sizes, seed):
    rng = np.random.default_rng(seed)
    blocks = [rng.integers(0, 2, (-(-h // 8), -(-w // 8), 1), np.uint8) * 255 for h, w in sizes]
    images = [
        np.kron(block, np.ones((8, 8, 3), np.uint8))[:h, :w]
        for block, (h, w) in zip(blocks, sizes, strict=True)
    ]
    detector = Detector(Spotter(), score_threshold=0.1, max_side=64)
    batch = detector.detect_batch(images)
    assert len(batch) == len(images)
    for image, faces in zip(images, batch, strict=True):
        assert_same(faces, detector.detect(image))


def test_batched_equals_single_for_a_real_network():
    """With trained weights: an untrained network's scores tie, and noise would order them."""
    detector = Detector(score_threshold=0.3)
    photos = [make_photo(seed=0, split=1, index=index, size=320) for index in range(3)]
    drawn = [
        cv2.imdecode(np.frombuffer(photo.jpeg, np.uint8), cv2.IMREAD_COLOR) for photo in photos
    ]
    drawn = [cv2.cvtColor(image, cv2.COLOR_BGR2RGB) for image in drawn]
    images = [*drawn, drawn[0][:-3, :-5], drawn[1][::-1]]
    found = detector.detect_batch(images)
    assert sum(len(faces) for faces in found) > 3
    for image, faces in zip(images, found, strict=True):
        assert_same(faces, detector.detect(image))


def test_images_of_one_padded_size_run_together_up_to_the_cap(monkeypatch):
    monkeypatch.setattr(Detector, "batch_pixels", 2 * 64 * 64)
    model = Spotter()
    small, large = photo(60, 50, (1, 1)), photo(130, 33, (2, 2))
    found = Detector(model).detect_batch(iter([small, large, small[:40], small]))
    assert model.shapes == [(1, 3, 160, 64), (2, 3, 64, 64), (1, 3, 64, 64)]
    assert [faces.landmarks[0, 0].tolist() for faces in found] == [[12, 12], [20, 20]] + [
        [12, 12]
    ] * 2


def test_no_images_no_faces_and_one_pixel():
    detector = Detector(Spotter())
    assert detector.detect_batch([]) == []
    for image in (photo(64, 64), np.zeros((1, 1), np.uint8), np.zeros((1, 700), np.uint8)):
        faces = detector.detect(image)
        assert len(faces) == 0 and faces.boxes.shape == (0, 4)
        assert faces.to_dataframe().empty
    assert detector.detect(np.full((1, 1), 255, np.uint8)).boxes.size == 0  # 1/64 of a cell


def test_a_network_keeps_its_modes_and_gradients():
    model = nn.Sequential(Spotter(), nn.Identity())
    model.train()
    model[1].eval()  # as a frozen part would be
    seen = []  # not even during detection: another thread may detect, or train
    model[0].register_forward_hook(lambda part, *_: seen.append((part.training, model[0].training)))
    detector = Detector(model)
    detector.detect(photo(32, 32))
    assert seen == [(False, True)]
    assert [part.training for part in model.modules()] == [True, True, False]
    model(torch.zeros(1, 3, 32, 32)).class_logits.sum().backward()
    with pytest.raises(DataError):
        detector.detect(np.zeros(3, np.uint8))
    assert model.training


def test_threads_share_a_network_in_train_mode():
    model = nn.Sequential(nn.BatchNorm2d(3), Spotter()).train()
    with torch.no_grad():
        model[0].weight.fill_(100)  # in train mode every picture would have its own norm
    picture, detector = photo(64, 64, (1, 1), (5, 3)), Detector(model)
    before = copy.deepcopy(model.state_dict())
    alone = detector.detect(picture)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, [picture] * 40))
    assert len(alone) == 2
    for faces in together:
        assert_same(faces, alone)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model[0].weight.fill_(0)  # the detector sees what training changes
    assert len(detector.detect(picture)) == 0


def test_a_picture_too_large_for_the_memory_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(face_detector, "MOST_PIXELS", 6000)
    with pytest.raises(DataError, match=r"100×90 pixels is too large.*6,000.*max_side"):
        Detector(Spotter()).detect(photo(90, 100))
    assert len(Detector(Spotter(), max_side=80).detect(photo(90, 100))) == 0
    for error, expected, said in (
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), DataError, "not enough"),
        (MemoryError(), DataError, "not enough memory on cpu to search 1 × 64×64"),
        (RuntimeError("shapes do not match"), RuntimeError, "shapes"),
    ):
        model = Spotter()
        model.register_forward_pre_hook(lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(expected, match=said):
            Detector(model).detect(photo(64, 64))


def test_thresholds_are_obeyed():
    image = np.maximum(photo(64, 64, (1, 1), value=170), photo(64, 64, (3, 1), value=255))
    weak, strong = (
        Detector(Spotter(), score_threshold=0.0, iou_threshold=1.0).detect(image).scores[[1, 0]]
    )
    kept = Detector(Spotter(), score_threshold=float(weak + strong) / 2).detect(image)
    assert kept.scores.tolist() == [pytest.approx(strong)]
    near = photo(64, 64, (1, 1), (2, 1))  # neighbours overlap by IoU 1/3
    assert len(Detector(Spotter(), iou_threshold=0.4).detect(near)) == 2
    assert len(Detector(Spotter(), iou_threshold=0.3).detect(near)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"score_threshold": -0.1},
        {"score_threshold": 1.01},
        {"score_threshold": float("nan")},
        {"iou_threshold": 2},
        {"max_side": 0},
        {"max_side": math.nan},
        {"score_threshold": "0.5"},
        {"device": "gpu"},
        {"device": "cuda:99"},
        {"device": ""},
    ],
)
def test_settings_that_cannot_work(options):
    with pytest.raises(ConfigError, match=str(next(iter(options)))) as caught:
        Detector(Spotter(), **options)
    assert "\n" not in str(caught.value)


def test_a_network_moves_only_when_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # auto would mean CUDA
    detector = Detector(Spotter())
    assert detector.device == torch.device("cpu")
    assert len(detector.detect(photo(32, 32, (1, 1)))) == 1
    assert Detector(Spotter(), device=torch.device("cpu")).device == torch.device("cpu")


def test_weights_by_path_and_the_shipped_ones(tmp_path, monkeypatch):
    loaded = []
    stub = SimpleNamespace(load_model=lambda path: loaded.append(path) or Spotter())
    monkeypatch.setitem(sys.modules, "featherface.checkpoint", stub)
    monkeypatch.setattr(module, "SHIPPED_WEIGHTS", tmp_path / "final.pth")
    with pytest.raises(CheckpointError, match=r"final\.pth.*train_v2") as caught:
        Detector()
    assert "\n" not in str(caught.value)
    Detector("some.pth", device="cpu")
    (tmp_path / "final.pth").touch()
    Detector(device="cpu")
    assert loaded == ["some.pth", tmp_path / "final.pth"]


def test_shipped_weights_lie_where_the_readme_says():
    assert module.SHIPPED_WEIGHTS.as_posix().endswith("/weights/v2/FeatherFaceV2_final.pth")
    assert (module.SHIPPED_WEIGHTS.parents[2] / "pyproject.toml").is_file()


def test_repr_says_what_it_is():
    detector = Detector(ff.FeatherFaceV2(), device="cpu", max_side=640)
    assert detector.architecture == "FeatherFaceV2"
    assert repr(detector) == (
        "Detector(FeatherFaceV2, 256,156 parameters, device=cpu, score_threshold=0.5, "
        "iou_threshold=0.4, max_side=640, second_look=True)"
    )
