"""One cache for the processes of a machine; threads stand in for them here."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_sets import make_photo

from featherface.config import TrainConfig
from featherface.data import cache, places, sharing
from featherface.data.cache import build_cache
from featherface.data.places import choose_place
from featherface.data.sharing import FOLDER, Machine, can_share, shared_bytes
from featherface.errors import ConfigError

CPU = torch.device("cpu")
CONFIG = TrainConfig(image_size=64, num_workers=0, cache="ram")
needs_folder = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"this system has no {FOLDER}")


def together(count, function):
    """What the function makes of each of `count` machines that wait for each other."""
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
            return function(Machine(number, count, any_of(number)))
        except Exception:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return [make_photo(folder / f"{n}.png", width=60 + n, height=50, seed=n) for n in range(5)]


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "of-this-test")
    yield
    assert not FOLDER.is_dir() or not list(FOLDER.glob("featherface-*-of-this-test"))


@needs_folder
def test_each_process_decodes_its_part_and_sees_all(photos, monkeypatch):
    decoded, read_small = [], cache.read_small

    def watched(file, side):
        decoded.append(file.path)
        return read_small(file, side)

    alone = build_cache(photos, CONFIG, CPU, progress=False)
    monkeypatch.setattr(cache, "read_small", watched)
    first, second = together(
        2, lambda machine: build_cache(photos, CONFIG, CPU, progress=False, machine=machine)
    )
    assert sorted(decoded) == sorted(photo.path for photo in photos)
    for kept in (first, second):
        assert str(kept).endswith("shared by 2 processes")
        for index in range(len(photos)):
            assert torch.equal(kept.picture(index), alone.picture(index))
    first.rows[0, 0, 0] = 255 - first.rows[0, 0, 0]
    assert torch.equal(first.rows, second.rows), "one memory"


@pytest.mark.parametrize("folder", ["", "missing"])
def test_without_room_to_share_each_keeps_its_own(photos, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(sharing, "FOLDER", tmp_path / folder)
    if not folder:
        full = type("Status", (), {"f_bavail": 1, "f_frsize": 4096})
        monkeypatch.setattr(sharing.os, "statvfs", lambda path: full, raising=False)
    first, second = together(
        2, lambda machine: build_cache(photos, CONFIG, CPU, progress=False, machine=machine)
    )
    assert "shared" not in str(first)
    for index in range(len(photos)):
        assert torch.equal(first.picture(index), second.picture(index))
    first.rows[0, 0, 0] = 255 - first.rows[0, 0, 0]
    assert not torch.equal(first.rows, second.rows)


@needs_folder
def test_memory_that_the_system_refuses_is_one_line(monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharing.os, "posix_fallocate", refuse)
    with pytest.raises(
        ConfigError, match=r"cannot share 0\.0 GiB .*No space.*--cache none"
    ) as said:
        shared_bytes(4096, Machine(0, 2))
    assert "\n" not in str(said.value)


def test_processes_decide_alike(monkeypatch):
    monkeypatch.setattr(places, "free_bytes", lambda place: 100)
    elsewhere_full = Machine(0, 2, lambda flag: True)
    assert choose_place("auto", 10, torch.device("cuda"), machine=elsewhere_full) is None
    with pytest.raises(ConfigError, match="--cache ram"):
        choose_place("ram", 10, CPU, machine=elsewhere_full)
    assert not can_share(10, elsewhere_full)


def test_what_is_shared_counts_once(monkeypatch):
    monkeypatch.setattr(places, "free_bytes", lambda place: 100)  # a process's part of the host's
    two = Machine(0, 2)
    assert choose_place("ram", 100, CPU, machine=two, sharing=True) == CPU
    with pytest.raises(ConfigError):
        choose_place("ram", 100, CPU, machine=two, sharing=False)
