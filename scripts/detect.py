"""Find faces in photos, folders, videos and camera pictures."""

from featherface.cli import run
from featherface.commands import detect

if __name__ == "__main__":
    run(detect)
