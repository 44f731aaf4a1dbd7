"""Download WIDER FACE and check a data folder."""

from featherface.cli import run
from featherface.commands import prepare_data

if __name__ == "__main__":
    run(prepare_data)
