"""docs/demo in headless Chromium: the faces of OnnxDetector, use without a network, errors."""

import functools
import http.server
import json
import re
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image
from torchvision.ops import box_iou

from featherface import Detections, OnnxDetector
from featherface.images import read_image

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = playwright.expect

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/demo/dist"
SAMPLE = ROOT / "docs/astronaut.jpg"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which is not installed"),
    pytest.mark.skipif(not PAGE.is_dir(), reason="needs docs/demo/dist, made by `make browser`"),
]  # fmt: skip


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(_Files, directory=PAGE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A browser whose camera shows SAMPLE."""
    film = tmp_path_factory.mktemp("camera") / "film.y4m"
    frame = cv2.cvtColor(cv2.imread(str(SAMPLE)), cv2.COLOR_BGR2YUV_I420).tobytes()
    film.write_bytes(b"YUV4MPEG2 W512 H512 F10:1 Ip A1:1 C420jpeg\n" + b"FRAME\n" + frame)
    camera = ["use-fake-ui-for-media-stream", "use-fake-device-for-media-stream"]
    flags = [f"--{name}" for name in (*camera, f"use-file-for-fake-video-capture={film}")]
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address):
    """The loaded page, with nothing kept from earlier visits."""
    page = chromium.new_page(base_url=address)
    page.goto("/")
    expect(page.locator("#choose")).to_be_enabled(timeout=60_000)
    yield page
    page.context.close()


def choose(page, path):
    """Give the page a file; return its faces."""
    page.set_input_files("#file", path)
    expect(page.locator("#status")).to_contain_text(path.name, timeout=60_000)
    return shown_faces(page)


def shown_faces(page):
    with page.expect_download() as download:
        page.click("#save-faces")
    faces = json.loads(download.value.path().read_text())
    points = [list(face["landmarks"].values()) for face in faces]
    return Detections(
        boxes=np.array([face["box"] for face in faces], np.float32).reshape(-1, 4),
        scores=np.array([face["score"] for face in faces], np.float32),
        landmarks=np.array(points, np.float32).reshape(-1, 5, 2),
    )


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    overlap = box_iou(torch.tensor(found.boxes), torch.tensor(expected.boxes))
    most, partner = overlap.max(dim=1)
    order = partner.numpy()
    assert len(set(order)) == len(expected) and most.min() >= 0.99, most
    np.testing.assert_allclose(found.scores, expected.scores[order], atol=0.02)
    np.testing.assert_allclose(found.landmarks, expected.landmarks[order], atol=1)


def five_photos(folder):
    """Real photographs with faces where they exist, else versions of the one that ships."""
    real = SHARED / "faces/labelled/images"
    if real.is_dir():
        return [SAMPLE, *(real / f"a0{number}.jpg" for number in ("000", "080", "120", "160"))]
    photo = Image.open(SAMPLE)
    sides = {"wide": (480, 300), "tall": (200, 512), "small": (222, 221), "odd": (509, 387)}
    for name, side in sides.items():
        photo.crop((100, 0, 400, 300)).resize(side).save(folder / f"{name}.jpg", quality=95)
    return [SAMPLE, *(folder / f"{name}.jpg" for name in sides)]


def test_faces_of_photographs_are_those_of_the_detector(page, tmp_path):
    detector = OnnxDetector(threads=1)
    for path in five_photos(tmp_path):
        assert_same(choose(page, path), detector.detect(path))
        status = page.inner_text("#status")
        assert re.fullmatch(r"\d+ faces? in \d+ ms · \S+, \d+ × \d+ pixels", status), status


def test_large_faces_of_large_pictures_are_those_of_the_detector(page, tmp_path):
    pixels = read_image(SAMPLE)
    picture = np.full((1000, 1500, 3), 128, np.uint8)  # a face of 470 pixels, and one of 100
    picture[:, :900] = cv2.resize(pixels[10:230, 120:318], (900, 1000))
    picture[200:712, 950:1462] = pixels
    path = tmp_path / "large.png"
    Image.fromarray(picture).save(path)
    expected = OnnxDetector(threads=1).detect(path)
    assert len(expected) == 2
    assert_same(choose(page, path), expected)


def test_settings_reach_the_detector(page):
    choose(page, SAMPLE)
    page.select_option("#side", "320")
    page.fill("#score", "0.1")
    expect(page.locator("#status")).to_contain_text("pixels")
    expected = OnnxDetector(threads=1, max_side=320, score_threshold=0.1).detect(SAMPLE)
    assert_same(shown_faces(page), expected)


def test_rotation_and_transparency_are_those_of_the_detector(page, tmp_path):
    pixels = read_image(SAMPLE)
    turned, clear = tmp_path / "turned.jpg", tmp_path / "clear.png"
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be shown a quarter turn clockwise
    Image.fromarray(np.rot90(pixels)).save(turned, exif=orientation, quality=95)
    opacity = np.full((*pixels.shape[:2], 1), 200, np.uint8)
    Image.fromarray(np.concatenate((pixels, opacity), axis=2)).save(clear)
    for path in (turned, clear):
        assert_same(choose(page, path), OnnxDetector(threads=1).detect(path))


def test_the_page_works_without_a_network(page):
    expect(page.locator("#offline")).to_contain_text("works without", timeout=60_000)
    page.context.set_offline(True)
    page.reload()
    sample = page.get_by_role("button", name="Try the sample")
    expect(sample).to_be_enabled(timeout=60_000)
    sample.press("Enter")
    expect(page.locator("#status")).to_contain_text("1 face in")
    assert page.get_by_role("img", name="sample.jpg: 1 face found").is_visible()
    assert page.evaluate("crossOriginIsolated"), "the detector gets one thread only"


def test_the_camera_shows_faces_until_it_is_stopped(page):
    page.click("#camera")
    expect(page.locator("#status")).to_have_text(
        re.compile(r"1 face in \d+ ms · \d+ frames per second"), timeout=60_000
    )
    page.get_by_role("button", name="Stop the camera").click()
    assert page.get_by_role("button", name="Use the camera").is_visible()
    assert len(shown_faces(page)) == 1


def test_a_camera_that_does_not_start_says_why(page):
    reasons = {
        "NotFoundError": "No camera was found.",
        "NotAllowedError": "The camera is not allowed.",
        "NotReadableError": "The camera is in use by another program.",
    }
    for name, message in reasons.items():
        page.evaluate(
            """name => { navigator.mediaDevices.getUserMedia =
                () => Promise.reject(new DOMException("", name)) }""",
            name,
        )
        page.click("#camera")
        expect(page.get_by_role("alert")).to_contain_text(message)


def test_a_file_that_is_no_picture_is_named_and_the_next_one_works(page, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no picture")
    page.set_input_files("#file", path)
    expect(page.get_by_role("alert")).to_contain_text("notes.txt is not a picture that this")
    assert len(choose(page, SAMPLE)) == 1
    assert page.get_by_role("alert").is_hidden()


@pytest.mark.parametrize("file", ["featherface.onnx", "ort-wasm-simd-threaded.wasm", "worker.js"])
def test_a_file_that_fails_to_load_is_named_and_can_be_tried_again(chromium, address, file):
    context = chromium.new_context(base_url=address, service_workers="block")
    context.route(f"**/{file}", lambda route: route.abort())
    page = context.new_page()
    page.goto("/")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The detector could not be loaded", timeout=60_000)
    expect(alert).to_contain_text("wasm" if file.endswith("wasm") else file)
    assert page.locator("#choose").is_disabled()
    context.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#choose")).to_be_enabled(timeout=60_000)
    assert alert.is_hidden()
    context.close()
