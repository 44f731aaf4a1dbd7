"""Videos: sound, times and format of what is written; cut files, streams, tracks, windows."""

import json
from fractions import Fraction

import cv2
import numpy as np
import pandas as pd
import pytest
from spotter import Spotter, photo

from featherface import video
from featherface.detect_files import detect_paths
from featherface.detector import Detector
from featherface.errors import ConfigError, DataError
from featherface.structures import Detections
from featherface.video import Tracker, VideoReader, Window

FRAMES = [photo(64, 96, (2 + index // 2, 3)) for index in range(12)]


@pytest.fixture
def detector():
    return Detector(Spotter())


def write_avi(path, frames=FRAMES):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no MJPG video")
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def write_clip(path, times):
    """An mp4 with frames at these times in seconds and a tone of 1.5 s."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10, width=96, height=64)
        stream.codec_context.time_base = Fraction(1, 1000)
        tone = file.add_stream("aac", rate=44100, layout="mono")
        for seconds, frame in zip(times, FRAMES, strict=False):
            picture = av.VideoFrame.from_ndarray(cv2.resize(frame, (96, 64)), format="rgb24")
            picture.pts, picture.time_base = round(seconds * 1000), Fraction(1, 1000)
            file.mux(stream.encode(picture))
        wave = np.sin(np.arange(66150) * 440 * 2 * np.pi / 44100).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        sound.rate, sound.pts = 44100, 0
        file.mux(tone.encode(sound))
        for one in (stream, tone):
            file.mux(one.encode(None))
    return path


def test_tables_of_a_video(tmp_path, detector):
    clip = write_avi(tmp_path / "clip.avi")
    report = detect_paths(detector, [clip], tmp_path / "out")
    (record,) = json.loads((tmp_path / "out/detections.json").read_text())["files"]
    assert record["fps"] == pytest.approx(10) and report.faces == 12 and not report.problems
    assert [frame["frame"] for frame in record["frames"]] == list(range(12))
    table = pd.read_csv(tmp_path / "out/detections.csv")
    assert table["frame"].tolist() == list(range(12)) and table["track"].isna().all()
    assert table["x1"].tolist() == [12 + 8 * (index // 2) for index in range(12)]


@pytest.mark.parametrize("library", ["av", None])
def test_drawn_video(tmp_path, detector, monkeypatch, library):
    if library:
        pytest.importorskip(library)
    else:
        monkeypatch.setattr(video, "av", None)
    detect_paths(detector, [write_avi(tmp_path / "clip.avi")], tmp_path / "out")
    drawn = cv2.VideoCapture(str(tmp_path / "out/clip.avi.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 12
    ok, frame = drawn.read()
    assert ok and frame.shape == (64, 96, 3)
    yellow = frame.astype(int)[..., 2] - frame[..., 0]  # red minus blue: the box, compressed
    assert yellow[8:32, 8:40].max() > 60 > yellow[40:, 50:].max()


def test_h264_for_browsers_with_sound_and_times(tmp_path, detector):
    av = pytest.importorskip("av")
    times = [0, 0.1, 0.2, 0.7, 0.8, 1.2]  # not at a constant rate
    clip = write_clip(tmp_path / "clip.mp4", times)
    detect_paths(detector, [clip], tmp_path / "out", blur_faces=True)
    target = tmp_path / "out/clip.mp4"
    with av.open(str(target)) as file:
        picture, sound = file.streams.video[0], file.streams.audio[0]
        assert (picture.codec_context.name, picture.pix_fmt) == ("h264", "yuv420p")
        assert sound.codec_context.name == "aac"
        np.testing.assert_allclose([f.time for f in file.decode(video=0)], times, atol=0.002)
    with av.open(str(target)) as file:
        frames = list(file.decode(audio=0))
    heard = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    tone = np.abs(np.fft.rfft(heard[4096:36864]))
    assert abs(tone.argmax() * 44100 / 32768 - 440) < 3
    assert 1.2 <= len(heard) / 44100 <= 1.45  # as long as the picture, not as the tone
    data = target.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")  # the index comes first


def test_a_video_that_ends_early_is_reported_and_kept(tmp_path, detector, capsys):
    pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 80, (40, 64, 96, 3), np.uint8)
    clip = tmp_path / "clip.mp4"
    with video.video_writer(clip, 10, (96, 64)) as write:
        for index, frame in enumerate(noise):
            write(frame, index / 10)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])  # a broken-off download
    report = detect_paths(detector, [clip], tmp_path / "out")
    (record,) = json.loads((tmp_path / "out/detections.json").read_text())["files"]
    read = len(record["frames"])
    assert 5 < read < 35 and record["promised_frames"] == 40 and not report.skipped
    (line,) = report.problems
    assert f"ends after {read} of 40 promised frames" in line and line in capsys.readouterr().err


def test_odd_and_changing_sizes(tmp_path):
    pytest.importorskip("av")
    with video.video_writer(tmp_path / "odd.mp4", 10, (95, 63)) as write:
        write(np.full((63, 95, 3), 200, np.uint8), 0.0)
        write(np.full((80, 40, 3), 200, np.uint8), 0.1)
    with pytest.raises(DataError, match="first frame"):
        with video.video_writer(tmp_path / "empty.mp4", 10, (95, 63)):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["odd.mp4"]
    reader = VideoReader(str(tmp_path / "odd.mp4"), "odd.mp4")
    frames = [frame for frame, _ in reader.frames()]
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 2
    assert all(abs(frame.astype(int) - 200).max() < 8 for frame in frames)


@pytest.mark.parametrize(
    ("source", "words"),
    [("rtsp://me:secret@127.0.0.1:1/live", "rtsp://127.0.0.1:1/live"), ("97", "camera 97")],
)
def test_a_source_that_is_not_there_is_named(tmp_path, detector, source, words):
    with pytest.raises(DataError, match="nothing could be read"):
        detect_paths(detector, [source], tmp_path / "out")
    with pytest.raises(DataError, match=words):
        VideoReader(int(source) if source.isdigit() else source, words)


def test_ctrl_c_ends_a_live_source_and_keeps_its_video(tmp_path, monkeypatch):
    class Impatient(Spotter):
        def forward(self, images):
            if len(self.shapes) == 4:
                raise KeyboardInterrupt
            return super().forward(images)

    clip = write_avi(tmp_path / "clip.avi")
    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: capture(str(clip)))
    report = detect_paths(Detector(Impatient()), ["0"], tmp_path / "out")
    assert report.faces == 4 and report.files[0]["file"] == "camera 0"
    drawn = capture(str(tmp_path / "out/camera_0.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 4


def test_tracks(tmp_path, detector):
    pytest.importorskip("trackers")
    frames = [photo(64, 160, (2 + index // 4, 2), (16 - index // 4, 5)) for index in range(16)]
    detect_paths(detector, [write_avi(tmp_path / "clip.avi", frames)], tmp_path / "out", track=True)
    table = pd.read_csv(tmp_path / "out/detections.csv").dropna(subset="track")
    assert len(table) >= 28
    assert (
        table.groupby("y1")["track"].nunique().tolist() == [1, 1] and table["track"].nunique() == 2
    )
    assert Tracker(25.0).number(Detections()) == []


def test_a_window_needs_a_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ConfigError, match="display"):
        Window()


def test_q_closes_the_window_and_ends_the_video(tmp_path, detector, monkeypatch):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "destroyWindow", shown.append)
    monkeypatch.setattr(cv2, "imshow", lambda title, frame: shown.append(frame))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if len(shown) == 3 else -1)
    clip = write_avi(tmp_path / "clip.avi")
    report = detect_paths(detector, [clip], tmp_path / "out", show=True, draw_pictures=False)
    assert len(shown) == 4 and report.faces == 3 and not report.problems
    assert shown[0].shape == (64, 96, 3) and shown[3] == Window.title
