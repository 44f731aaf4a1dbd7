"""Where a result comes from: package versions, machine and commit, recorded beside every figure."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
