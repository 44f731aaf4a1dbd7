"""The main job in small: render a data set, train V1, distil V2 from it, find faces, measure.

Everything is written to results/demo and data/demo. Minutes on two cores; no download.
"""

from pathlib import Path

import pandas as pd

from featherface.batch_detect import detect_files
from featherface.cli import flag, parser, run
from featherface.config import PRESETS
from featherface.data.demo import make_demo
from featherface.plots import plot_training_log, save_figure
from featherface.training.engine import train


def main() -> None:
    commands = parser(__doc__)
    commands.add_argument("--data", default="data/demo", help="folder of the data set")
    commands.add_argument("--out", default="results/demo", help="pictures and figures go here")
    commands.add_argument(*flag("photos"), type=int, default=240, help="training photos to render")
    arguments = commands.parse_args()
    out = Path(arguments.out)
    data = make_demo(arguments.data, train=arguments.photos, val=40)

    print("\n1/4  V1, the teacher, from scratch on the drawn faces")
    small = {"data": str(data), "image_size": 256, "batch_size": 16}
    v1 = PRESETS["v1"].replace(**small, init="scratch", epochs=12, lr=3e-3, save_folder=str(out / "v1"))
    teacher = train(v1)

    print("\n2/4  V2, the student, distilled from it")


if __name__ == "__main__":
    run(main)
