"""Atomic writes, checksums, and the provenance of results: commit and versions."""

import hashlib
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featherface.errors import ConfigError

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
