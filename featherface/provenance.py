"""Where a result comes from: package versions, machine and commit, recorded beside every figure."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        revision = _git(root, "rev-parse", "--short=12", "HEAD")
        return revision + ("+changes" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ("git", "-C", str(root), *arguments), capture_output=True, text=True, check=True, timeout=20
    )
    return result.stdout.strip()
