"""Every kind of picture is read upright as RGB, or named in a one-line error."""

import cv2
import numpy as np
import pytest
from PIL import Image

from featherface.config import MEAN_BGR
from featherface.errors import DataError
from featherface.images import fit_long_side, network_input, padded_size, read_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def corner_photo():
    """Grey 40×24 with a red block at the top left: shows order of channels and of axes."""
    pixels = np.full((24, 40, 3), 128, np.uint8)
    pixels[:12, :16] = RED
    return pixels


def is_red(pixel):
    return pixel[0] > 200 and pixel[1] < 60 and pixel[2] < 60


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
def test_file_path_and_pil_image_give_the_same_rgb(tmp_path, corner_photo, suffix):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(corner_photo).save(path)
    image = read_image(path)
    assert image.shape == (24, 40, 3) and image.dtype == np.uint8
    assert is_red(image[4, 4]) and not is_red(image[20, 30])
    np.testing.assert_array_equal(image, read_image(str(path)))
    np.testing.assert_array_equal(image, read_image(Image.open(path)))


def test_plain_jpeg_has_the_pixels_of_pillow(tmp_path):
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 255, (9, 7, 3), np.uint8), (75, 61))
    Image.fromarray(smooth).save(tmp_path / "photo.jpg", quality=80)
    expected = np.asarray(Image.open(tmp_path / "photo.jpg"))
    # two builds of libjpeg may round differently by one
    difference = np.abs(read_image(tmp_path / "photo.jpg").astype(int) - expected)
    assert difference.max() <= 1


def test_arrays_of_every_shape():
    rgb = np.zeros((2, 3, 3), np.uint8) + np.array((10, 20, 30), np.uint8)
    np.testing.assert_array_equal(read_image(rgb), rgb)
    np.testing.assert_array_equal(read_image(rgb, bgr=True), rgb[..., ::-1])
    grey = np.array([[0, 7], [8, 255]], np.uint8)
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(read_image(array), np.stack([grey] * 3, axis=2))
    opaque = np.dstack((rgb, np.full((2, 3), 255, np.uint8)))
    np.testing.assert_array_equal(read_image(opaque), rgb)
    np.testing.assert_array_equal(read_image(opaque, bgr=True), rgb[..., ::-1])
    assert read_image(np.full((1, 1), 9, np.uint8)).tolist() == [[[9, 9, 9]]]
    assert read_image(rgb[:, ::-1]).flags.c_contiguous


def test_what_is_transparent_shows_white(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0] = (*RED, 255)
    assert read_image(pixels)[:, 0].tolist() == [[255, 0, 0], [255, 255, 255]]
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "alpha.png")[:, 0].tolist() == [[255, 0, 0], [255, 255, 255]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=1)
    assert read_image(tmp_path / "palette.png")[0].tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LA"])
def test_modes_of_pil_images(mode):
    white = Image.new("RGB", (4, 3), (255, 255, 255)).convert("L" if mode == "LA" else mode)
    image = read_image(white.convert(mode))
    assert image.shape == (3, 4, 3) and image.min() >= 254


def test_cmyk_jpeg_keeps_its_colour(tmp_path, corner_photo):
    Image.fromarray(corner_photo).convert("CMYK").save(tmp_path / "print.jpg")
    image = read_image(tmp_path / "print.jpg")
    assert is_red(image[4, 4]) and abs(int(image[20, 30, 0]) - 128) < 10


def test_sixteen_bits_are_scaled(tmp_path):
    grey = np.array([[0, 200, 32896, 65535]], np.uint16)
    assert cv2.imwrite(str(tmp_path / "grey.png"), grey)
    assert read_image(tmp_path / "grey.png")[0, :, 1].tolist() == [0, 1, 128, 255]
    grey[0, 1] = 257  # Pillow takes the upper byte of colour
    color = np.dstack((grey, grey * 0, grey * 0))  # BGR: blue only
    assert cv2.imwrite(str(tmp_path / "color.png"), color)
    image = read_image(tmp_path / "color.png")
    assert image[0, :, 2].tolist() == [0, 1, 128, 255] and image[..., :2].max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_rotation_is_undone(tmp_path, corner_photo, orientation, suffix):
    stored = {  # how a camera stores the upright picture under each orientation
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](corner_photo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    for image in (read_image(path), read_image(Image.open(path))):
        assert image.shape == (24, 40, 3)
        assert is_red(image[4, 4]) and not is_red(image[20, 30])


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 10), color) for color in (RED, GREEN)]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert is_red(read_image(path)[5, 10])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((0, 4), np.uint8), "empty"),
        (3, "int"),
        (None, "NoneType"),
        (Image.new("F", (2, 2)), "F-mode"),
        (Image.new("I", (2, 2), 70000), "I-mode"),
        (Image.new("RGB", (0, 2)), "empty"),
    ],
)
def test_what_is_no_picture_says_so_in_one_line(array, words):
    with pytest.raises(DataError, match=words) as caught:
        read_image(array)
    assert "\n" not in str(caught.value)


def damage(path, kind, photo):
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":  # a truncated file of that format
        Image.fromarray(photo).save(path, format=kind)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("kind", ["text", "empty", "folder", "missing", "jpeg", "png", "tiff"])
def test_bad_files_are_named_in_one_line(tmp_path, kind):
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / "bad.jpg"
    damage(path, kind, photo)
    with pytest.raises(DataError, match=r"bad\.jpg") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_a_data_error(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(DataError, match="8,000 pixels"):
        read_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # large, but no bomb: no warning either
    assert read_image(tmp_path / "bomb.png").shape == (100, 100, 3)


def test_fit_long_side_never_enlarges():
    wide = np.zeros((30, 60, 3), np.uint8)
    assert fit_long_side(wide, None) is wide
    assert fit_long_side(wide, 60) is wide
    assert fit_long_side(wide, 1000) is wide
    assert fit_long_side(wide, 20).shape == (10, 20, 3)
    assert fit_long_side(np.zeros((1, 500, 3), np.uint8), 10).shape == (1, 10, 3)


def test_network_input_is_bgr_minus_mean_padded_with_the_mean():
    assert padded_size(1, 33) == (32, 64) and padded_size(64, 32) == (64, 32)
    image = np.zeros((2, 3, 3), np.uint8) + np.array((200, 100, 50), np.uint8)
    batch = network_input([image, image[:1]], 32, 64)
    assert batch.shape == (2, 3, 32, 64) and batch.dtype == np.float32
    expected = np.array((50, 100, 200)) - MEAN_BGR
    np.testing.assert_array_equal(batch[0, :, 1, 2], expected)
    assert not batch[0, :, 2:].any() and not batch[0, :, :, 3:].any()
    assert not batch[1, :, 1:].any()


def test_network_input_is_what_training_feeds():
    import torch

    from featherface.detector import normalise

    image = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    expected = normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
    np.testing.assert_array_equal(network_input([image], 32, 64), expected.numpy())


def test_a_truncated_jpeg_never_reaches_cv2(tmp_path, monkeypatch):
    """OpenCV 4 fills what is missing with grey and says nothing."""
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: np.full_like(photo, 128))
    damage(tmp_path / "half.jpg", "jpeg", photo)
    with pytest.raises(DataError, match=r"half\.jpg is truncated"):
        read_image(tmp_path / "half.jpg")
