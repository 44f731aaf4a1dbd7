"""Writing files so that nothing half-written ever replaces something good."""

import hashlib
import os
import platform
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featherface.errors import ConfigError


def check_writable(folder: str | os.PathLike) -> None:
    """ConfigError where files could not be written into `folder`, which need not exist yet."""
    wanted = Path(folder).absolute()
    nearest = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"cannot write into {folder}: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise ConfigError(f"cannot write into {folder}: no permission to write in {nearest}")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it is fsynced and renamed to
    it.

    On an exception, Ctrl-C included, the temporary file is removed and `path` is left as it was.
    The folder is created when missing. The temporary name keeps the suffix of `path`, because
    image writers choose the format by it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as written:  # Windows syncs only what is open for writing
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file (UTF-8, \\n line ends) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def sha256(path: str | os.PathLike) -> str:
    """Of a file's content, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


CHECKOUT = Path(__file__).resolve().parents[1]  # where it is a checkout
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "onnxruntime")


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with; absent packages are left out."""
    found = {"python": platform.python_version()}
    for package in ("featherface", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, "+changes" when it is not clean, "" outside a checkout or without
    git."""
    if not (CHECKOUT / ".git").exists():
        return ""
    try:
        revision = git(CHECKOUT, "rev-parse", "--short=12", "HEAD")
        return revision + ("+changes" if git(CHECKOUT, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def git(root: Path, *arguments: str) -> str:
    """What git prints there. OSError without git, SubprocessError where it fails."""
    result = subprocess.run(
        ("git", "-C", str(root), *arguments), capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout.strip()
