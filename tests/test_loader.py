"""Batches depend on (seed, epoch, index) alone; the sampler fills batches and resumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import shared
from tiny_sets import make_photo

from featherface.anchors import make_anchors, match
from featherface.config import TrainConfig
from featherface.data.loader import (
    EpochSampler,
    FaceDataset,
    make_loader,
    worker_count,
)
from featherface.data.widerface import read_split
from featherface.errors import DataError

CONFIG = TrainConfig(image_size=32, batch_size=3, num_workers=0, min_face=1.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    boxes = [(), ((5, 5, 30, 30),), ((5, 5, 30, 30), (40, 10, 60, 40)), ((1, 1, 50, 50),)]
    return [
        make_photo(folder / f"{index}.jpg", boxes=boxes[index % 4], seed=index)
        for index in range(11)
    ]


def flat(batch):
    return [batch.images, *batch.targets]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(flat(first), flat(second), strict=True))


def test_a_sample_depends_on_seed_epoch_and_index_only(photos):
    dataset = FaceDataset(photos, CONFIG)
    image, target = dataset[(2, 1)]
    torch.manual_seed(99)
    torch.rand(5)
    again, target_again = dataset[(2, 1)]
    assert torch.equal(image, again) and torch.equal(target.boxes, target_again.boxes)
    others = [dataset[(3, 1)], dataset[(2, 5)], FaceDataset(photos, CONFIG.replace(seed=1))[(2, 1)]]
    assert all(not torch.equal(image, other) for other, _ in others)


def test_sampling_leaves_the_global_random_state_alone(photos):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    _ = FaceDataset(photos, CONFIG)[(0, 0)]
    assert torch.equal(torch.rand(3), expected)


def test_workers_give_the_same_batches_and_persist_over_epochs(photos):
    alone, sampler = make_loader(FaceDataset(photos, CONFIG))
    shared_work, other_sampler = make_loader(FaceDataset(photos, CONFIG.replace(num_workers=2)))
    seen = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        other_sampler.set_epoch(epoch)
        first, second = list(alone), list(shared_work)
        assert len(first) == len(second) == 3
        assert all(same(a, b) for a, b in zip(first, second, strict=True))
        seen.append(first[0])
    assert not same(*seen)


def test_resuming_in_the_middle_of_an_epoch_gives_the_rest_of_it(photos):
    loader, sampler = make_loader(FaceDataset(photos, CONFIG))
    sampler.set_epoch(4)
    whole = list(loader)
    sampler.set_epoch(4, start=2 * CONFIG.batch_size)
    assert len(loader) == 1
    (rest,) = list(loader)
    assert same(rest, whole[2])


@pytest.mark.parametrize(
    ("count", "batch", "used"), [(11, 3, 9), (12, 3, 12), (2, 3, 2), (1, 9, 1)]
)
def test_batches_are_full_and_never_none(count, batch, used):
    sampler = EpochSampler(count, batch_size=batch, seed=3)
    keys = list(sampler)
    assert len(keys) == len(sampler) == used
    assert len({index for _, index in keys}) == used
    sampler.set_epoch(1)
    assert {epoch for epoch, _ in sampler} == {1}


def test_each_epoch_has_its_own_order():
    sampler = EpochSampler(50, batch_size=5, seed=0)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append([index for _, index in sampler])
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != list(range(50))
    sampler.set_epoch(0, start=500)
    assert len(sampler) == 0 and list(sampler) == []


def test_padding_faces_have_no_weight_no_area_and_no_landmarks(photos):
    dataset = FaceDataset(photos, CONFIG)
    samples = [dataset[(0, index)] for index in range(4)]
    batch = dataset.collate(samples)
    assert batch.images.shape == (4, 3, 32, 32) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    most = max(len(target.boxes) for _, target in samples)
    assert batch.targets.boxes.shape == (4, most, 4)
    assert batch.targets.labelled.tolist() == [True] * 4
    for row, (image, target) in enumerate(samples):
        faces = len(target.boxes)
        assert torch.equal(batch.images[row], image)
        for padded, part in zip(batch.targets[:-1], target[:-1], strict=True):
            assert torch.equal(padded[row, :faces], part) and padded.dtype == part.dtype
            assert not padded[row, faces:].any()


def test_a_batch_without_any_face_can_be_matched(photos):
    faceless = [photo for photo in photos if not len(photo.boxes)]
    loader, _ = make_loader(FaceDataset(faceless, CONFIG))
    (batch,) = list(loader)
    assert batch.targets.boxes.shape == (3, 0, 4)
    assert batch.targets.landmarks.shape == (3, 0, 5, 2)
    assert not match(batch.targets, make_anchors(32, 32)).positive.any()


@pytest.mark.parametrize("workers", [0, 1])
def test_unlabelled_photos_stay_unlabelled_and_without_faces(photos, workers):
    mixed = [*photos[1:3], replace(photos[2], labelled=False), photos[0]]
    image, target = FaceDataset(mixed, CONFIG)[(0, 2)]
    assert image.shape == (3, 32, 32) and target.boxes.shape == (0, 4)
    assert target.labelled.shape == () and not target.labelled
    assert FaceDataset(mixed, CONFIG)[(0, 3)][1].labelled, "known to hold no face"
    config = CONFIG.replace(batch_size=4, num_workers=workers)
    loader, sampler = make_loader(FaceDataset(mixed, config))
    order = [index for _, index in sampler]
    (batch,) = list(loader)
    labelled = batch.targets.labelled
    assert labelled.shape == (4,) and labelled.dtype == torch.bool
    assert labelled.tolist() == [index != 2 for index in order]
    assert not batch.targets.weight[~labelled].any()
    assert batch.targets.to("cpu").labelled.equal(labelled)


def test_no_photos_and_broken_photos_are_errors(photos, tmp_path):
    with pytest.raises(DataError, match="no photos"):
        make_loader(FaceDataset([], CONFIG))
    broken = make_photo(tmp_path / "broken.jpg")
    broken.path.write_bytes(broken.path.read_bytes()[:500])
    for workers in (0, 1):
        loader, _ = make_loader(FaceDataset([broken], CONFIG.replace(num_workers=workers)))
        with pytest.raises(DataError, match=r"broken\.jpg") as caught:
            list(loader)
        message = str(caught.value)
        del caught  # it refers to this frame, which holds the loader: a cycle that ends slowly
        assert "\n" not in message, "no traceback of the worker in the message"


def test_worker_count(monkeypatch):
    assert worker_count(0) == 0 and worker_count(3) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert worker_count(-1) == 8
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert worker_count(-1) == 1


def test_real_photos_make_sane_batches():
    photos = read_split(shared("widerface"), limit=16)
    config = TrainConfig(image_size=320, batch_size=8, num_workers=0)
    loader, _ = make_loader(FaceDataset(photos, config))
    for batch in loader:
        boxes, weight = batch.targets.boxes, batch.targets.weight
        real = boxes[weight > 0]
        assert torch.isfinite(real).all() and (real >= 0).all() and (real <= 320).all()
        assert ((real[:, 2:] - real[:, :2]) > 0).all()
        assert len(real) > 0
        assert 20 < batch.images.float().mean() < 235
        spread = np.array([image.float().std().item() for image in batch.images])
        assert (spread > 1).all()
