"""Helpers of notebooks/03_train_evaluate_featherface_v2.ipynb beyond the library.

Paths and settings of a run, training as a separate process, tables of settings and weights, and
the record. Everything else that a cell calls is the library's public API.
"""
# ruff: noqa: F401 - the names that cells use as nb.<name>

from featherface.notebook.display import folded
from featherface.notebook.process import (
    checkpoints,
    follow_training,
    resume_training,
    start_training,
    stop_training,
)
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
