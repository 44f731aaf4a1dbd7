"""Helpers of notebooks/03_train_evaluate_featherface_v2.ipynb beyond the library.

Paths and settings of a run, training as a separate process, tables of settings and weights, and
the record. Everything else that a cell calls is the library's public API.
"""

from featherface.notebook.display import folded
from featherface.notebook.results import network_table, remember, summary, write_comparison
from featherface.notebook.session import Session, current_session, open_session
from featherface.notebook.setup import (
    annotated,
    environment,
    guide,
    learning_rates,
    prepare_photos,
    sample_photos,
    sample_portrait,
    settings_table,
    weights_table,
    write_record,
)
from featherface.notebook.training import (
    checkpoints,
    follow_training,
    resume_training,
    start_training,
    stop_training,
)

__all__ = [
    "Session",
    "annotated",
    "checkpoints",
    "current_session",
    "environment",
    "folded",
    "follow_training",
    "guide",
    "learning_rates",
    "network_table",
    "open_session",
    "prepare_photos",
    "remember",
    "resume_training",
    "sample_photos",
    "sample_portrait",
    "settings_table",
    "start_training",
    "stop_training",
    "summary",
    "weights_table",
    "write_comparison",
    "write_record",
]
