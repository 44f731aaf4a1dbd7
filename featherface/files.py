"""Atomic writes, checksums, and the provenance of results: commit and versions."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featherface.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\..{1,40}\.[0-9a-f]{32}(\.\w+)?")  # names that atomic_path gives
CHECKOUT = Path(__file__).resolve().parents[1]  # root of the repository, if run from a checkout
INSTALLED = Path(__file__).resolve().parent / "weights"  # in a wheel: the shipped files
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "onnxruntime")


def shipped_file(path: str) -> Path:
    """Find a file that belongs to the package, given its path in the repository.

    A wheel holds it in featherface/weights; a checkout and an editable install hold it at `path`.
    """
    installed = INSTALLED / Path(path).name
    return installed if installed.is_file() else CHECKOUT / path


def check_writable(folder: str | os.PathLike) -> None:
    """Raise ConfigError if `folder`, which need not exist yet, cannot be written into."""
    wanted = Path(folder).absolute()
    nearest = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"cannot write into {folder}: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise ConfigError(f"cannot write into {folder}: no permission to write in {nearest}")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; at the end, sync it and rename it to `path`.

    On an exception, Ctrl-C included, the temporary file is removed and `path` stays unchanged. A
    missing folder is created, and a file that is replaced keeps its permissions. The temporary name
    keeps the suffix of `path`, because image writers choose the format by it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = target.stem[:40]  # a name has at most 255 bytes
    temporary = target.with_name(f".{stem}.{uuid.uuid4().hex}{target.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as written:  # Windows syncs only what is open for writing
            os.fsync(written.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as of a full disk
            error.filename = os.fspath(path)
        raise


_locks: set[int] = set()  # file descriptors of the folders that this process has locked


def _leave_locks_to_the_parent() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):  # a loader process must not hold the lock of a killed run
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it when the process ends, however it ends.

    Raises ConfigError if another process, or another part of this one, holds it. Without fcntl
    (Windows) there is no lock.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another process writes into this folder now; wait for its end, or "
                "choose another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        _locks.add(descriptor)
        yield
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


def remove_temporary(folder: str | os.PathLike) -> None:
    """Remove what `atomic_path` left in a folder when its process was killed."""
    for path in Path(folder).iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file (UTF-8, \\n line ends) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, this package and its installed libraries."""
    found = {"python": platform.python_version()}
    for package in ("featherface", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, with "+changes" if it is not clean; "" without a checkout or git."""
    if not (CHECKOUT / ".git").exists():
        return ""
    try:
        revision = git(CHECKOUT, "rev-parse", "--short=12", "HEAD")
        return revision + ("+changes" if git(CHECKOUT, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def git(root: Path, *arguments: str) -> str:
    """Run git in `root` and return its output. OSError without git, SubprocessError if it fails."""
    result = subprocess.run(
        ("git", "-C", str(root), *arguments), capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout.strip()
