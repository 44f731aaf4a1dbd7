"""Photos decoded once: the loader's faces, nearly its pixels; one copy for a machine's processes.

Threads stand in for the processes of a machine.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import equal, prepare, tiny_config, trained
from tiny_sets import make_photo
from torch.nn import functional as F
from waiting import no_waiting

from featherface.config import TrainConfig
from featherface.data import cache
from featherface.data.annotations import Photo
from featherface.data.augment import FILL_RGB, Colour, Plan, make_image, place_faces
from featherface.data.cache import (
    SHARED_FOLDER,
    PlanDataset,
    allocate,
    build_cache,
    free_bytes,
    make_batches,
)
from featherface.data.loader import FaceDataset, make_loader
from featherface.data.render import plan_row, sampling_weights
from featherface.distributed import ALONE, Machine
from featherface.errors import ConfigError, DataError
from featherface.images import Window, open_header, open_photo
from featherface.training import engine

CPU = torch.device("cpu")
CONFIG = TrainConfig(image_size=64, batch_size=3, num_workers=0, min_face=1.0, cache="device")
BOXES = ((20, 12, 60, 50), (110, 60, 130, 100))


def landscape(path, width, height, boxes=BOXES):
    """A photo with smooth colours, so that every place looks different and resampling is tame."""
    photo = make_photo(path, width=width, height=height, boxes=boxes)
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [40 * np.sin(k * x + 3 * y) + 40 * np.cos((5 - k) * y) + 128 for k in (2, 3, 4)]
    cv2.imwrite(str(path), np.stack(waves, axis=-1).round().astype(np.uint8))
    return photo


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Photo]:
    folder = tmp_path_factory.mktemp("photos")
    sizes = ((180, 120), (96, 150), (161, 97), (140, 140), (90, 61))
    kinds = ("png", "jpg", "jpg", "png", "png")
    made = [
        landscape(folder / f"{index}.{kind}", *size)
        for index, (size, kind) in enumerate(zip(sizes, kinds, strict=True))
    ]
    return [*made, replace(made[1], labelled=False)]


def batches(photos, **changes):
    config = CONFIG.replace(**changes)
    return make_batches(photos, config, CPU, build_cache(photos, config, CPU, progress=False))


@pytest.fixture(scope="module")
def kept(photos):
    return build_cache(photos, CONFIG, CPU, progress=False)


def rendered(kept, index, plan):
    (image,) = kept.render(plan_row(index, plan)[None], size=plan.size, device=CPU)
    return image


def windows(width, height):
    """Windows that show at least a pixel of a photo."""
    return st.builds(
        lambda side, x, y: Window(
            round(x * (width + side - 2)) - side + 1, round(y * (height + side - 2)) - side + 1,
            side, 1,
        ),
        st.integers(1, 260), st.floats(0, 1), st.floats(0, 1),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([0, 1, 2]), st.booleans(), st.booleans())
def test_a_plan_gives_the_same_image_on_both_paths(photos, kept, data, index, flip, plain):
    """Pixels from the file and from the cache; the header alone places the faces."""
    file = open_photo(photos[index].path)
    window = data.draw(windows(file.width, file.height))
    colour = Colour() if plain else Colour(1.1, 0.7, 1.3, 0.04)
    plan = Plan(file, window, 64, colour, flip)
    image, made = make_image(plan), rendered(kept, index, plan._replace(file=kept.files[index]))
    assert made.dtype == torch.uint8 and made.shape == image.shape
    difference = (made.int() - image.int()).abs()
    assert difference.max() <= (1 if plain else 2)  # the CPU path rounds twice
    # a few pixels enlarged: one that is rounded the other way fills the image
    assert window.side < 8 or difference.float().mean() < 0.6
    fill = torch.tensor(FILL_RGB)[:, None, None]
    outside = (image == fill).all(0)
    assert ((made == fill).all(0) == outside).float().mean() > 0.99
    faces = [
        place_faces(photos[index], plan._replace(file=each), min_face=1.0)
        for each in (file, kept.files[index])
    ]
    assert all(torch.equal(*parts) for parts in zip(*faces, strict=True))


@pytest.mark.parametrize(
    ("size", "window", "side", "most"),
    [
        ((180, 120), Window(-20, 10, 130, 1), 100, 2),  # kept shrunk
        ((801, 602), Window(-10, -5, 120, 4), 1024, 1.5),  # decoded at a quarter by the loader
    ],
)
def test_shrunk_photos_show_the_same(tmp_path, size, window, side, most):
    photo = landscape(tmp_path / "a.jpg", *size)
    kept = build_cache([photo], CONFIG.replace(cache_side=side), CPU, progress=False)
    assert kept.rows.shape[2] == min(side, size[0])
    plan = Plan(open_photo(photo.path), window, 64, flip=True)
    image, made = make_image(plan).int(), rendered(kept, 0, plan).int()
    assert (made - image).abs().float().mean() < most
    assert (made - image.roll(2, -1)).abs().float().mean() > most, "the test would see a shift"


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 60), st.integers(0, 20), st.integers(0, 20), st.integers(0)
)
def test_the_weights_are_those_of_an_antialiased_resize(length, size, before, after, seed):
    picture = torch.rand(1, 1, 1, length, generator=torch.Generator().manual_seed(seed % 2**31))
    expected = F.interpolate(picture, (1, size), mode="bilinear", antialias=True)[0, 0, 0]
    weight = sampling_weights(
        torch.tensor([[float(before), before + length]]),
        torch.tensor([[float(after), after + size]]),
        torch.tensor([float(before + length + 9)]),
        size=after + size + 3,
        first=torch.tensor([0.0]),
        taps=before + length + 9,
    )[0]
    padded = F.pad(picture[0, 0, 0], (before, 9), value=100.0)  # must not leak in
    found = weight @ padded
    torch.testing.assert_close(found[after : after + size], expected, atol=2e-4, rtol=0)
    assert (found[:after] == 0).all() and (found[after + size :] == 0).all()


def test_batches_have_the_loaders_faces_and_nearly_its_pixels(photos):
    plain, plain_sampler = make_loader(FaceDataset(photos, CONFIG))
    made, sampler = batches(photos)
    assert len(made) == len(plain) == 2
    for epoch in range(2):
        plain_sampler.set_epoch(epoch)
        sampler.set_epoch(epoch)
        for one, other in zip(plain, made, strict=True):
            for mine, theirs in zip(one.targets, other.targets, strict=True):
                assert torch.equal(mine, theirs)
            assert other.images.dtype == torch.uint8 and other.images.shape == one.images.shape
            assert other.images.is_contiguous(memory_format=torch.channels_last)
            difference = (one.images.int() - other.images.int()).abs().float()
            assert difference.mean() < 1.5 and difference.max() < 40


def test_batches_depend_on_seed_epoch_and_index_and_resume(photos):
    made, sampler = batches(photos)
    workers, other = batches(photos, num_workers=2)
    for each in (sampler, other):
        each.set_epoch(3)
    first, second = list(made), list(workers)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.targets[0], two.targets[0])
    sampler.set_epoch(3, start=3)
    (rest,) = list(made)
    assert torch.equal(rest.images, first[1].images)
    sampler.set_epoch(4)
    assert not torch.equal(next(iter(made)).images, first[0].images)


def test_rendering_in_parts_is_rendering_at_once_without_waiting(photos, kept, monkeypatch):
    dataset = PlanDataset(photos, CONFIG, kept.files)
    plans = torch.stack([dataset[(0, index)][0] for index in range(len(photos))])
    whole = kept.render(plans, size=64, device=CPU)
    monkeypatch.setattr(cache, "RENDER_BYTES", 1)
    assert torch.equal(kept.render(plans, size=64, device=CPU), whole)
    render = cache.render

    def watched(*arguments, **options):
        with no_waiting():
            return render(*arguments, **options)

    monkeypatch.setattr(cache, "render", watched)
    kept.render(plans, size=64, device=CPU)


def kept_in(size, cache="auto", device="meta", machine=ALONE):
    """The device's type and the number of users of allocated memory; "meta" stands for a GPU."""
    found = allocate(size, cache, torch.device(device), machine)
    return found and (found[0].device.type, found[1])


@pytest.fixture
def little_memory(monkeypatch):
    free = {"meta": 100, "cpu": 1000}
    monkeypatch.setattr(cache, "free_bytes", lambda memory: free[memory.type])


def test_auto_takes_the_first_memory_that_fits(little_memory):
    chosen = [kept_in(size) for size in (60, 61, 500, 501)]
    assert chosen == [("meta", 1), ("cpu", 1), ("cpu", 1), None]
    assert kept_in(500, "ram") == ("cpu", 1)
    with pytest.raises(ConfigError, match=r"--cache device.*lower --cache-side.*--cache ram"):
        kept_in(61, "device")


def test_a_cpu_keeps_nothing_unless_it_is_asked_to(photos):
    assert build_cache(photos, CONFIG.replace(cache="auto"), CPU) is None
    assert build_cache(photos, CONFIG.replace(cache="none"), CPU) is None
    kept = build_cache(photos, CONFIG.replace(cache="ram"), CPU, progress=False)
    assert kept.rows.device == CPU and free_bytes(CPU) > 2**20


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_photo_is_named_before_training(photos, tmp_path, workers):
    broken = make_photo(tmp_path / "broken.jpg")
    broken.path.write_bytes(broken.path.read_bytes()[:-300])
    for bad in (broken, replace(broken, path=tmp_path / "none.jpg")):
        with pytest.raises(DataError, match=bad.path.name) as caught:
            build_cache([*photos, bad], CONFIG.replace(num_workers=workers), CPU, progress=False)
        assert "\n" not in str(caught.value)


def test_photos_are_kept_whole_and_in_order(photos, kept):
    for index, photo in enumerate(photos):
        pixels = cv2.cvtColor(cv2.imread(str(photo.path)), cv2.COLOR_BGR2RGB)
        assert np.array_equal(kept.pixels(index).permute(0, 2, 1).numpy(), pixels)


def test_headers_tell_what_the_whole_file_tells(photos, tmp_path):
    for photo in photos:
        header, file = open_header(photo.path), open_photo(photo.path)
        assert (header.width, header.height) == (file.width, file.height)
        assert header.is_jpeg == file.is_jpeg and len(header.data) < 4
    (tmp_path / "text.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"text\.jpg"):
        open_header(tmp_path / "text.jpg")


def test_losses_fall_alike_with_and_without_a_cache(tmp_path):
    """The two paths differ by less than two seeds do."""
    root = prepare(tmp_path)
    curves = []
    for number, (kind, seed) in enumerate((("none", 0), ("device", 0), ("none", 1))):
        config = tiny_config(root, tmp_path / f"{number}")
        config = config.replace(cache=kind, seed=seed, epochs=3, lr=4e-3, save_every=100)
        engine.train(config, progress=False)
        curves.append(pd.read_csv(tmp_path / f"{number}" / "training_log.csv")["loss"].to_numpy())
    plain, made, other = curves
    assert not np.array_equal(plain, made)
    assert np.abs(plain - made).mean() < 0.5 * np.abs(plain - other).mean()
    assert made[-1] < made[0]


def test_a_cached_run_resumes_to_the_same_result(tmp_path):
    config = tiny_config(prepare(tmp_path), tmp_path / "run").replace(cache="ram")
    expected = trained(config)
    assert equal(expected, trained(config, resume=engine.checkpoint_path(config, 1)))


# One cache for the processes of a machine ------------------------------------------------

NAME = "of-this-test"
SHARED = TrainConfig(image_size=64, num_workers=0, cache="ram")
needs_folder = pytest.mark.skipif(
    not SHARED_FOLDER.is_dir(), reason=f"this system has no {SHARED_FOLDER}"
)


def together(function, ranks=((0, 2), (1, 2))):
    """Results of a function of Machine, one per process: its rank on its machine, of how many."""
    count = len(ranks)
    flags, barrier = [False] * count, threading.Barrier(count, timeout=30)

    def any_of(number):
        def agree(flag):
            flags[number] = bool(flag)
            barrier.wait()
            found = any(flags)
            barrier.wait()
            return found

        return agree

    def call(number):
        try:
            name = f"{NAME}-{ranks[number][1]}"
            return function(Machine(*ranks[number], any_of(number), name))
        except Exception:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert not SHARED_FOLDER.is_dir() or not list(SHARED_FOLDER.glob(f"featherface-{NAME}*"))


def built(photos, machine):
    return build_cache(photos, SHARED, CPU, progress=False, machine=machine)


@needs_folder
def test_each_process_decodes_its_part_and_sees_all(photos, monkeypatch):
    decoded, small_picture = [], cache.small_picture

    def watched(file, *others):
        decoded.append(file.path)
        return small_picture(file, *others)

    alone = build_cache(photos, SHARED, CPU, progress=False)
    monkeypatch.setattr(cache, "small_picture", watched)
    first, second = together(partial(built, photos))
    assert sorted(decoded) == sorted(photo.path for photo in photos)
    for kept in (first, second):
        assert str(kept).endswith("shared by 2 processes")
        for index in range(len(photos)):
            assert torch.equal(kept.pixels(index), alone.pixels(index))
    first.rows[0, 0, 0] = 255 - first.rows[0, 0, 0]
    assert torch.equal(first.rows, second.rows), "one memory"


@pytest.mark.parametrize("folder", ["", "missing"])
def test_without_room_to_share_each_keeps_its_own(photos, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(cache, "SHARED_FOLDER", tmp_path / folder)
    if not folder:
        full = SimpleNamespace(free=4096)
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: full)
    first, second = together(partial(built, photos))
    assert "shared" not in str(first)
    for index in range(len(photos)):
        assert torch.equal(first.pixels(index), second.pixels(index))
    first.rows[0, 0, 0] = 255 - first.rows[0, 0, 0]
    assert not torch.equal(first.rows, second.rows)


@needs_folder
def test_machines_with_other_numbers_of_processes_wait_for_each_other(photos):
    kept = together(partial(built, photos), ranks=((0, 1), (0, 2), (1, 2)))
    assert [each.users for each in kept] == [1, 2, 2]
    for index in range(len(photos)):
        assert torch.equal(kept[0].pixels(index), kept[1].pixels(index))


@needs_folder
def test_memory_that_the_system_refuses_is_private(photos, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", refuse)
    kept = together(partial(built, photos))
    assert [each.users for each in kept] == [1, 1]
    for index in range(len(photos)):
        assert torch.equal(kept[0].pixels(index), kept[1].pixels(index))


@needs_folder
def test_a_photo_that_one_process_cannot_read_ends_all(photos, tmp_path):
    broken = make_photo(tmp_path / "broken.png")
    broken.path.write_bytes(broken.path.read_bytes()[:-300])

    def message(machine):
        with pytest.raises(DataError) as caught:
            built([broken, *photos], machine)
        return str(caught.value)

    own, others = together(message)
    assert "broken.png" in own and "another process" in others


def test_processes_decide_alike(little_memory):
    elsewhere_full = Machine(0, 2, lambda flag: True)
    assert kept_in(10, machine=elsewhere_full) is None
    with pytest.raises(ConfigError, match=r"--cache ram.*or less in another process"):
        kept_in(10, "ram", machine=elsewhere_full)


@needs_folder
def test_what_is_shared_counts_once(little_memory, monkeypatch):
    def both(size):
        return together(lambda machine: kept_in(size, "ram", machine=machine))

    assert both(500) == [("cpu", 2)] * 2
    monkeypatch.setattr(cache, "SHARED_SHARE", 0)
    assert both(250) == [("cpu", 1)] * 2
    with pytest.raises(ConfigError, match="the photos take"):
        kept_in(251, "ram", machine=Machine(0, 2))
