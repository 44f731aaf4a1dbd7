"""Photos decoded once: the same faces as the loader's, nearly the same pixels, made in one go."""

from dataclasses import replace

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
from featherface.data import cache as places
from featherface.data.annotations import Photo
from featherface.data.augment import FILL_RGB, Colour, Recipe, TrainingTransform
from featherface.data.cache import (
    build_cache,
    choose_place,
    decode_on_device,
    make_batches,
    read_small,
)
from featherface.data.loader import FaceDataset, collate, make_loader
from featherface.data.render import plan_row, sampling_weights
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


class Given:
    """Gives one recipe in place of a drawn one."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, photo, file) -> Recipe:
        return self.recipe


PLAIN = Colour()
RECIPES = {
    "inside, enlarged": Recipe(Window(20, 30, 40, 1), PLAIN, False),
    "inside, shrunk": Recipe(Window(5, 3, 90, 1), PLAIN, False),
    "beyond all sides": Recipe(Window(-30, -40, 260, 1), PLAIN, False),
    "beyond one side, mirrored": Recipe(Window(-35, 10, 77, 1), PLAIN, True),
    "one pixel": Recipe(Window(40, 20, 1, 1), PLAIN, False),
    "colours": Recipe(Window(-10, 3, 101, 1), Colour(1.1, 0.7, 1.3, 0.04), True),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_for_given_parameters_boxes_are_equal_and_pixels_nearly(photos, name, index):
    transform = TrainingTransform(CONFIG)
    transform.draw = Given(RECIPES[name])
    image, target = transform(photos[index])
    kept = build_cache(photos, CONFIG, CPU, progress=False)
    recipe, place, placed = transform.place(photos[index], kept.files[index])
    for mine, theirs in zip(placed, target, strict=True):
        assert torch.equal(mine, theirs)
    row = plan_row(index, kept.files[index], recipe, place)
    (made,) = kept.render(row[None], size=64, device=CPU)
    assert made.dtype == torch.uint8 and made.shape == image.shape
    difference = (made.int() - image.int()).abs()
    assert difference.max() <= (2 if "colours" in name else 1)  # the CPU path rounds twice
    assert difference.float().mean() < 0.6
    fill = torch.tensor(FILL_RGB)[:, None, None]
    outside = (image == fill).all(0)
    assert ((made == fill).all(0) == outside).float().mean() > 0.99
    assert "beyond" not in name or outside.float().mean() > 0.2


def test_a_photo_that_is_kept_shrunk_shows_the_same(photos):
    transform = TrainingTransform(CONFIG)
    transform.draw = Given(Recipe(Window(-20, 10, 130, 1), PLAIN, True))
    image, target = transform(photos[0])
    kept = build_cache(photos, CONFIG.replace(cache_side=100), CPU, progress=False)
    assert kept.rows.shape[2] == 100 and kept.sizes[0].tolist() == [67, 100]
    recipe, place, placed = transform.place(photos[0], kept.files[0])
    (made,) = kept.render(plan_row(0, kept.files[0], recipe, place)[None], size=64, device=CPU)
    assert torch.equal(placed.boxes, target.boxes)
    assert (made.int() - image.int()).abs().float().mean() < 2
    shifted = image.roll(2, -1)
    assert (made.int() - shifted.int()).abs().float().mean() > 2, "the test would see a shift"


def test_shrunk_decoding_of_the_loader_shows_the_same_too(tmp_path):
    photo = landscape(tmp_path / "large.jpg", 801, 602)
    transform = TrainingTransform(CONFIG)
    transform.draw = Given(Recipe(Window(-10, -5, 120, 4), PLAIN, False))  # at a quarter
    image, target = transform(photo)
    kept = build_cache([photo], CONFIG, CPU, progress=False)
    recipe, place, placed = transform.place(photo, kept.files[0])
    (made,) = kept.render(plan_row(0, kept.files[0], recipe, place)[None], size=64, device=CPU)
    assert torch.equal(placed.boxes, target.boxes)
    assert (made.int() - image.int()).abs().float().mean() < 1.5


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
    plain, plain_sampler = make_loader(photos, CONFIG)
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


def test_rendering_in_parts_is_rendering_at_once_without_waiting(photos, monkeypatch):
    kept = build_cache(photos, CONFIG, CPU, progress=False)
    dataset = FaceDataset(photos, CONFIG, kept.files)
    plans = collate([dataset[(0, index)] for index in range(len(photos))]).images
    whole = kept.render(plans, size=64, device=CPU)
    monkeypatch.setattr(cache, "RENDER_BYTES", 1)
    assert torch.equal(kept.render(plans, size=64, device=CPU), whole)
    rendered = cache.render

    def watched(*arguments, **options):
        with no_waiting():
            return rendered(*arguments, **options)

    monkeypatch.setattr(cache, "render", watched)
    kept.render(plans, size=64, device=CPU)


def test_auto_takes_the_first_memory_that_fits(monkeypatch):
    free = {"cuda": 100, "cpu": 1000}
    monkeypatch.setattr(places, "free_bytes", lambda place: free[place.type])
    gpu = torch.device("cuda")
    assert [choose_place("auto", size, gpu) for size in (60, 61, 500, 501)] == [gpu, CPU, CPU, None]
    assert choose_place("ram", 500, gpu) == CPU
    with pytest.raises(ConfigError, match=r"--cache device.*lower --cache-side.*--cache ram"):
        choose_place("device", 61, gpu)


def test_a_cpu_keeps_nothing_unless_it_is_asked_to(photos):
    assert build_cache(photos, CONFIG.replace(cache="auto"), CPU) is None
    assert build_cache(photos, CONFIG.replace(cache="none"), CPU) is None
    kept = build_cache(photos, CONFIG.replace(cache="ram"), CPU, progress=False)
    assert kept.rows.device == CPU and places.free_bytes(CPU) > 2**20


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_photo_is_named_before_training(photos, tmp_path, workers):
    broken = make_photo(tmp_path / "broken.jpg")
    broken.path.write_bytes(broken.path.read_bytes()[:-300])
    for bad in (broken, replace(broken, path=tmp_path / "none.jpg")):
        with pytest.raises(DataError, match=bad.path.name) as caught:
            build_cache([*photos, bad], CONFIG.replace(num_workers=workers), CPU, progress=False)
        assert "\n" not in str(caught.value)


def test_photos_are_kept_whole_and_in_their_place(photos):
    kept = build_cache(photos, CONFIG, CPU, progress=False)
    for index, photo in enumerate(photos):
        pixels = cv2.cvtColor(cv2.imread(str(photo.path)), cv2.COLOR_BGR2RGB)
        assert np.array_equal(kept.picture(index).permute(1, 2, 0).numpy(), pixels)


def test_the_devices_decoder_and_what_it_cannot_read(photos, monkeypatch):
    """torchvision's decoder on the CPU stands in for the device's."""
    files = [open_photo(photo.path) for photo in photos]
    decoded = decode_on_device([file.data for file in files], CPU)
    assert [pixels is None for pixels in decoded] == [not file.is_jpeg for file in files]
    monkeypatch.setattr(cache, "DECODED_TOGETHER", 2)
    for side in (1024, 70):
        pictures = list(cache._by_device(files, side, CPU))
        for file, pixels in zip(files, pictures, strict=True):
            expected = read_small(file, side)
            assert pixels.shape == expected.shape and pixels.dtype == torch.uint8
            assert (pixels.int() - expected.int()).abs().float().mean() < 1.5


def test_headers_tell_what_the_whole_file_tells(photos, tmp_path):
    for photo in photos:
        header, file = open_header(photo.path), open_photo(photo.path)
        assert (header.width, header.height) == (file.width, file.height)
        assert header.is_jpeg == file.is_jpeg and len(header.data) < 4
    (tmp_path / "text.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"text\.jpg"):
        open_header(tmp_path / "text.jpg")


def test_losses_fall_alike_with_and_without_a_cache(tmp_path):
    """Three seeds each: the two paths differ by less than the seeds do."""
    root = prepare(tmp_path)
    curves = {}
    for kind in ("none", "device"):
        for seed in range(3):
            config = tiny_config(root, tmp_path / f"{kind}{seed}").replace(
                cache=kind, seed=seed, epochs=5, lr=4e-3, save_every=100
            )
            engine.train(config, progress=False)
            log = pd.read_csv(tmp_path / f"{kind}{seed}" / "training_log.csv")
            curves.setdefault(kind, []).append(log["loss"])
    plain, made = np.array(curves["none"]), np.array(curves["device"])
    noise = np.ptp(plain, axis=0).mean()
    assert not np.array_equal(plain, made)
    assert np.abs(plain - made).mean() < 0.5 * noise
    assert np.abs(plain.mean(axis=0) - made.mean(axis=0)).mean() < 0.3 * noise
    assert (made[:, -1] < made[:, 0]).all()


def test_a_cached_run_resumes_to_the_same_result(tmp_path):
    config = tiny_config(prepare(tmp_path), tmp_path / "run").replace(cache="ram")
    expected = trained(config)
    assert equal(expected, trained(config, resume=engine.checkpoint_path(config, 1)))
