"""Section 11: what to do when something goes wrong, and which settings help."""

import pandas as pd

from featherface.notebook.display import explained, show_table

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
        "--accumulate 2: the same batch in two parts; or a smaller --batch-size",
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
