"""Compare recipes by short runs of equal budget that differ in one thing; see results/LOG.md.

Runs that the table holds already are left out, so an interrupted comparison goes on where it was.
"""

from pathlib import Path

from featherface.cli import flag, parser, run
from featherface.config import PRESETS


def main() -> None:
    from featherface.plots import plot_ablation, save_figure
    from featherface.training.ablation import VARIANTS, run_ablation, summarise

    commands = parser(__doc__ or "")
    add = commands.add_argument
    add(*flag("data"), default="data/widerface", help="data folder; only its train split is used")
    add(*flag("teacher_model"), default=PRESETS["v2"].teacher_model, help="weights of V1")
    add(*flag("variants"), nargs="*", default=None, help="only these: " + ", ".join(VARIANTS))
    add(*flag("seeds"), nargs="*", type=int, default=[0, 1], help="a run of each variant for each")
    add(*flag("images"), type=int, default=4000, help="images that every run sees, about")
    add(*flag("image_size"), type=int, default=256, help="side of the training image, pixels")
    add(*flag("batch_size"), type=int, default=16, help="images a step")
    add(*flag("num_workers"), type=int, default=1, help="loader processes")
    add(*flag("hold_out"), type=float, default=0.25, help="share of the photos to measure on")
    add(*flag("unlabelled"), default="", help="folders of photos for one variant more")
    add(*flag("protocol"), default="vga", help="size of the photos to measure on")
    add(*flag("runs"), type=Path, default=Path("runs/ablation"), help="where the runs go")
    add(*flag("out"), type=Path, default=Path("results/ablations.csv"), help="table to add to")
    options = vars(commands.parse_args())
    own = ("variants", "seeds", "images", "unlabelled", "protocol", "runs", "out")
    given = {name: options.pop(name) for name in own}
    names = given["variants"] or [*VARIANTS, *(["unlabelled"] if given["unlabelled"] else [])]
    table = run_ablation(
        PRESETS["v2"].replace(**options, save_folder=str(given["runs"])),
        out=given["out"],
        variants=names,
        seeds=given["seeds"],
        images=given["images"],
        unlabelled=given["unlabelled"],
        protocol=given["protocol"],
    )
    print(summarise(table).round(2).to_string())
    save_figure(plot_ablation(table), given["out"].with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    run(main)
