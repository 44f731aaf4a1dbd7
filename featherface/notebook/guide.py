"""Section 11: what to do when something goes wrong, and which settings help."""

from pathlib import Path

import pandas as pd

from featherface.errors import DataError
from featherface.notebook.display import explained, note, show_figure, show_table
from featherface.notebook.sessions import Session
from featherface.plots import plot_ablation
from featherface.training.ablation import read_table, summarise

ABLATIONS = Path("results/ablations.csv")
TROUBLES = (
    (
        "The V1 teacher is missing",
        "no published weights in weights/",
        "put featherface_v1.pth there (weights/README.md), or python scripts/train_v1.py",
    ),
    (
        "WIDER FACE is not found, or not complete",
        "not downloaded, or another layout",
        "python scripts/prepare_data.py --download; data/README.md lists the layouts",
    ),
    (
        "A run lies here",
        "an unfinished run is in the save folder",
        "python scripts/train_v2.py --resume, or --overwrite, or another --save-folder",
    ),
    (
        "The loss became nan",
        "learning rate too high for the batch, or damaged boxes",
        "python scripts/prepare_data.py; then a new run with half the --lr",
    ),
    (
        "CUDA is out of memory",
        "batch too large for the device",
        "--accumulate 2: the same batch in two parts; or --batch-size auto",
    ),
    (
        "A loader process was ended from outside",
        "memory: each worker holds photographs",
        "--resume --num-workers 2",
    ),
    (
        "Low images/s, the GPU waits",
        "the loader is slower than the network",
        "--cache ram; python scripts/benchmark.py train --data data/widerface says where time goes",
    ),
    (
        "AP near 0 after a short run",
        "batch norms and averages need some 500 steps",
        "--bn-batches 25",
    ),
    (
        "easy < medium < hard, all of them low",
        "predictions that are not sorted by score",
        "python scripts/evaluate.py --predictions DIR sorts them",
    ),
    (
        "Small faces are missed",
        "photographs were shrunk, or training crops were small",
        "a larger max_side; --image-size 640 --crop-scale-max 2.0",
    ),
    (
        "Objects are taken for faces",
        "a threshold too low for these weights",
        "Detector(score_threshold=0.8); section 9 gives the score for a precision",
    ),
    (
        "The kernel was restarted",
        "training goes on without it",
        "run section 6: it finds the run by itself",
    ),
)


@explained("the troubleshooting table")
def show_troubles() -> None:
    """Symptom, cause, what to do."""
    frame = pd.DataFrame(TROUBLES, columns=["symptom", "usual cause", "what to do"])
    show_table(frame, "when something goes wrong")


@explained("the tuning guide")
def show_tuning(current: Session) -> None:
    """What each part of the recipe was worth in short runs, from results/ablations.csv."""
    if not ABLATIONS.is_file():
        note(
            f"`{ABLATIONS}` is not there. `python scripts/ablate.py --data data/widerface` makes "
            "it: short runs that differ from a common recipe in one setting each."
        )
        return
    runs = read_table(ABLATIONS)
    if runs.empty:
        raise DataError(f"{ABLATIONS}: holds no run yet; python scripts/ablate.py adds some")
    frame = summarise(runs)
    note(verdict(frame))
    show_figure(plot_ablation(runs), current.results / "ablations.png")
    named = frame.reset_index().rename(columns=lambda name: name.replace("_", " "))
    show_table(named, "AP (%) and landmark distance (face sizes), click", fold=True, digits=2)


def verdict(frame: pd.DataFrame) -> str:
    """Which changes of `base` helped and which hurt, by more than the seeds of both scatter.

    Of a change with a single seed it says nothing where base has more.
    frame: `featherface.training.ablation.summarise`'s.
    """
    if "base" not in frame.index:
        return "The table holds no run of `base` to compare with."
    others = frame.drop(index="base").dropna(subset=["difference"])
    seeds = int(frame.loc["base", "seeds"])
    single = others[(others["seeds"] == 1) & (seeds > 1)]
    others = others.drop(index=single.index)
    spread = others["spread"] + frame.loc["base", "spread"]
    helped = others[others["difference"] > spread]
    hurt = others[others["difference"] < -spread].iloc[::-1]
    parts = [f"Against `base`, AP points: helped: {_listed(helped)}", f"hurt: {_listed(hurt)}"]
    rest = len(others) - len(helped) - len(hurt)
    parts.append(f"the other {rest} changes are within the spread of the seeds ({seeds} of base)")
    if len(single):
        parts.append(f"{len(single)} ran with one seed: no verdict")
    doubt = "trust signs, not sizes" if seeds > 1 else "and of one seed: a point may be chance"
    return "; ".join(parts) + f". These runs are short: {doubt}."


def _listed(part: pd.DataFrame) -> str:
    named = [f"{name} ({row['difference']:+.1f})" for name, row in part.iterrows()]
    return ", ".join(named) or "nothing"
