"""Errors of this package. Each says what is wrong, where, and what to do."""


class FeatherFaceError(Exception):
    """Base of every deliberate error; scripts print it as one line and exit with code 2."""


class DataError(FeatherFaceError, ValueError):
    """A data folder, annotation file or image is missing, empty, corrupt or of an unknown form."""


class CheckpointError(FeatherFaceError, ValueError):
    """A weights file is missing, truncated, or belongs to another network."""


class ConfigError(FeatherFaceError, ValueError):
    """A setting has a value that cannot work."""


class TrainingError(FeatherFaceError, RuntimeError):
    """A training run cannot continue (non-finite loss, nothing to resume from, and so on)."""


class ExportError(FeatherFaceError, RuntimeError):
    """An exported model does not compute what the trained network does."""
