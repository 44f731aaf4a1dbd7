"""One cache for the processes of a machine; threads stand in for them here."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from tiny_sets import make_photo

from featherface.config import TrainConfig
from featherface.data import cache
from featherface.data import cache as places
from featherface.data import cache as sharing
from featherface.data.cache import (
    FOLDER,
    Machine,
    build_cache,
    can_share,
    choose_place,
    shared_bytes,
)
from featherface.errors import ConfigError, DataError

CPU, NAME = torch.device("cpu"), "of-this-test"
CONFIG = TrainConfig(image_size=64, num_workers=0, cache="ram")
needs_folder = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"this system has no {FOLDER}")


def together(function, places=((0, 2), (1, 2))):
    """What the function makes of each process: its number on its machine, and of how many."""
    count = len(places)
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
            name = f"{NAME}-{places[number][1]}"
            return function(Machine(*places[number], any_of(number), name))
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
def nothing_is_left():
    yield
    assert not FOLDER.is_dir() or not list(FOLDER.glob(f"featherface-{NAME}*"))


def built(photos, machine):
    return build_cache(photos, CONFIG, CPU, progress=False, machine=machine)


@needs_folder
def test_each_process_decodes_its_part_and_sees_all(photos, monkeypatch):
    decoded, read_small = [], cache.read_small

    def watched(file, side):
        decoded.append(file.path)
        return read_small(file, side)

    alone = build_cache(photos, CONFIG, CPU, progress=False)
    monkeypatch.setattr(cache, "read_small", watched)
    first, second = together(partial(built, photos))
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
    first, second = together(partial(built, photos))
    assert "shared" not in str(first)
    for index in range(len(photos)):
        assert torch.equal(first.picture(index), second.picture(index))
    first.rows[0, 0, 0] = 255 - first.rows[0, 0, 0]
    assert not torch.equal(first.rows, second.rows)


@needs_folder
def test_machines_with_other_numbers_of_processes_wait_for_each_other(photos):
    kept = together(partial(built, photos), places=((0, 1), (0, 2), (1, 2)))
    assert [each.users for each in kept] == [1, 2, 2]
    for index in range(len(photos)):
        assert torch.equal(kept[0].picture(index), kept[1].picture(index))


def refuse(*_, **__):
    raise OSError(28, "No space left on device")


@needs_folder
@pytest.mark.parametrize(
    ("where", "what"),
    [(os, "ftruncate"), (os, "posix_fallocate"), (sharing.mmap, "mmap")],
)
def test_what_the_system_refuses_each_keeps_for_itself(photos, monkeypatch, where, what):
    monkeypatch.setattr(where, what, refuse)
    assert together(lambda machine: shared_bytes(4096, machine)) == [None, None]
    kept = together(partial(built, photos))
    assert [each.users for each in kept] == [1, 1]
    for index in range(len(photos)):
        assert torch.equal(kept[0].picture(index), kept[1].picture(index))


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


def test_processes_decide_alike(monkeypatch):
    monkeypatch.setattr(places, "free_bytes", lambda place: 100)
    elsewhere_full = Machine(0, 2, lambda flag: True)
    assert choose_place("auto", 10, torch.device("cuda"), machine=elsewhere_full) is None
    with pytest.raises(ConfigError, match=r"--cache ram.*another process of the run"):
        choose_place("ram", 10, CPU, machine=elsewhere_full, sharing=True)
    assert not can_share(10, elsewhere_full)


def test_what_is_shared_counts_once(monkeypatch):
    monkeypatch.setattr(places, "free_bytes", lambda place: 100)  # a process's part of the host's
    two = Machine(0, 2)
    assert choose_place("ram", 100, CPU, machine=two, sharing=True) == CPU
    with pytest.raises(ConfigError, match=f"{FOLDER} has no room for one copy"):
        choose_place("ram", 100, CPU, machine=two, sharing=False)
