"""Errors of this package, and text that is safe to print. Each error says what is wrong, where,
and what to do.
"""


def printable(text: object) -> str:
    """The text in one line that a terminal shows as it is.

    Control characters, line breaks, and bytes of a file name that are not UTF-8 appear as \\x1b,
    \\n and \\udce9: a name must not move the cursor or fake a line.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in str(text)
    )


class FeatherFaceError(Exception):
    """Base of every deliberate error; scripts print it as one line and exit with code 2."""

    def __str__(self) -> str:
        return printable(super().__str__())


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


EXTRAS = {  # {module of a missing library: the extra that installs it}
    **dict.fromkeys(
        ("torch", "torchvision", "onnx", "onnxscript", "gdown", "yaml", "safetensors"), "train"
    ),
    **dict.fromkeys(("scipy", "pandas", "matplotlib"), "train"),
    "tensorboard": "tensorboard",
    **dict.fromkeys(("IPython", "jupyter_client", "nbformat", "nbclient", "psutil"), "notebook"),
    **{"openvino": "openvino", "ncnn": "ncnn", "pnnx": "ncnn"},
    **dict.fromkeys(("ai_edge_litert", "litert_torch"), "tflite"),
}


class MissingExtraError(FeatherFaceError, ImportError):
    """A library of an extra is not installed."""

    def __init__(self, what: str, error: ModuleNotFoundError) -> None:
        library, extra = (error.name or "").split(".")[0], extra_of(error)
        super().__init__(
            f"{what} needs {library}, which is not installed: pip install 'featherface[{extra}]'"
        )


def extra_of(error: ModuleNotFoundError) -> str | None:
    """The extra that installs the missing module; None for modules of no extra."""
    return EXTRAS.get((error.name or "").split(".")[0])
