"""What the cells of notebooks/03_train_evaluate_featherface_v2.ipynb call, one name a step.

Each function shows what it found and returns little; what fails is one message, and the rest goes
on. The notebook's run is a `Session`, found again after a kernel restart by `session()`.
"""

from featherface.notebook.display import explained, show_table
from featherface.notebook.faces import (
    real_photograph,
    sample_folder,
    show_faces,
    show_folder,
    show_side_by_side,
)
from featherface.notebook.guide import show_troubles
from featherface.notebook.measure import (
    compare_detections,
    evaluate,
    show_calibration,
)
from featherface.notebook.networks import show_networks
from featherface.notebook.package import check_export, export
from featherface.notebook.performance import compare_speed, write_comparison
from featherface.notebook.record import show_record
from featherface.notebook.sessions import Session, open_session, session
from featherface.notebook.setup import (
    prepare_data,
    show_environment,
    show_photos,
    show_samples,
    show_schedule,
    show_settings,
    show_weights,
)
from featherface.notebook.training import (
    follow_training,
    prepare_teacher,
    resume_training,
    show_checkpoints,
    start_training,
    stop_training,
)

__all__ = [
    "Session",
    "check_export",
    "compare_detections",
    "compare_speed",
    "evaluate",
    "explained",
    "export",
    "follow_training",
    "open_session",
    "prepare_data",
    "prepare_teacher",
    "real_photograph",
    "resume_training",
    "sample_folder",
    "session",
    "show_calibration",
    "show_checkpoints",
    "show_environment",
    "show_faces",
    "show_folder",
    "show_networks",
    "show_photos",
    "show_record",
    "show_samples",
    "show_schedule",
    "show_settings",
    "show_side_by_side",
    "show_table",
    "show_troubles",
    "show_weights",
    "start_training",
    "stop_training",
    "write_comparison",
]
