"""How the notebook shows things: figures, one message per error, a line and curves that move.

`install` teaches IPython to do so for calls of any library function, so that a cell needs no
wrapper: the library returns a figure or raises an error, and the notebook shows it.
"""

import html
import io
import os
import sys
import sysconfig
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, DisplayHandle, display
from matplotlib.figure import Figure

from featherface.errors import FeatherFaceError
from featherface.files import CHECKOUT

DPI, JPEG_QUALITY = 80, 80
# marks in an output's metadata, for scripts/run_notebook.py
PROBLEM, STATUS = "problem", "status"
_BOX = "border-left:4px solid #D55E00;padding:6px 12px;margin:4px 0;max-width:60em"


def install() -> None:
    """Show figures and errors in this kernel as described above; without IPython do nothing."""
    shell: Any = get_ipython()
    if shell is None:
        return
    formatters = shell.display_formatter.formatters
    formatters["image/png"].for_type(Figure, _as_png)
    formatters["image/jpeg"].for_type(Figure, _as_jpeg)
    pd.set_option("display.precision", 3, "display.max_colwidth", 100, "display.max_rows", 80)
    shell.set_custom_exc((Exception, KeyboardInterrupt), _show_error)


def continue_after_errors() -> None:
    """Count a cell that ends with an error as done: "Run All" continues with the next one."""
    shell: Any = get_ipython()
    if shell and _forgive not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", _forgive)


def is_headless() -> bool:
    """True if nobody watches: scripts/run_notebook.py sets FEATHERFACE_HEADLESS."""
    return bool(os.environ.get("FEATHERFACE_HEADLESS"))


def _show_error(shell: Any, kind: Any, error: BaseException, trace: Any, tb_offset: Any) -> None:
    explain(error)


def _forgive(result: Any) -> None:
    """An interruption still ends "Run All"."""
    if isinstance(result.error_in_exec, Exception):
        result.error_in_exec = None


def explain(error: BaseException) -> None:
    """Show an error as one message: what is wrong and what to do.

    A deliberate error says both itself. Any other carries its traceback, folded.
    """
    if isinstance(error, KeyboardInterrupt):
        display(HTML("Interrupted; run the cell again to continue."))
    elif isinstance(error, FeatherFaceError):
        problem(str(error))
    elif isinstance(error, ImportError):
        hint = "bring the checkout up to date, or pip install -e '.[notebook]'"
        problem(f"{error.msg.split(' (')[0]}: {hint}")
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        problem(f"{where}{error.strerror or error}")
    else:
        lines = "".join(traceback.format_exception(error))
        if isinstance(error, NameError):
            text = f"{error}; run the cells above first, or this section from its first cell"
        else:
            text = f"{type(error).__name__}: {error} (an unexpected error: please report it)"
        problem(text, details=lines)


def problem(message: str, *, details: str = "") -> None:
    """Show that a step was not done, and why; paths of this machine are shortened."""
    message, details = _shortened(message), _shortened(details)
    body = f"<b>Not done</b><br>{html.escape(message)}"
    if details:
        body += f"<details><summary>traceback</summary><pre>{html.escape(details)}</pre></details>"
    content = {"text/html": f'<div style="{_BOX}">{body}</div>'}
    content["text/plain"] = f"Not done: {message}"
    display(content, raw=True, metadata={"featherface": PROBLEM})


def _shortened(text: str) -> str:
    """The text with paths below the project, Python, home and the temporary folder shortened."""
    folders = {CHECKOUT: "", Path(sys.prefix): "python/", Path.home(): "~/"}
    folders |= {Path(sysconfig.get_path("stdlib")).parent: "python/"}
    for folder, short in (folders | {Path(tempfile.gettempdir()): ""}).items():
        text = text.replace(f"{folder}/", short)
    return text


def note(text: str) -> None:
    """Show a few lines of Markdown."""
    display({"text/markdown": text, "text/plain": text}, raw=True)


def folded(table: pd.DataFrame, caption: str) -> HTML:
    """Return a table that is hidden under its caption until the caption is clicked."""
    text = f"<details><summary>{html.escape(caption)}</summary>{table.to_html()}</details>"
    return HTML(text)


class Live:
    """A line and a figure that are replaced in place while something runs."""

    def __init__(self) -> None:
        self._handles: dict[str, DisplayHandle] = {}

    def line(self, text: str) -> None:
        content = {"text/html": f"<code>{html.escape(text)}</code>", "text/plain": text}
        self._show("line", content, raw=True, metadata={"featherface": STATUS})

    def figure(self, figure: Figure) -> None:
        self._show("figure", figure)

    def _show(self, name: str, content: Any, **options: Any) -> None:
        if name in self._handles:
            self._handles[name].update(content, **options)
        else:
            self._handles[name] = display(content, display_id=True, **options)


Shown = tuple[bytes, dict[str, str]] | None  # an image and its metadata; None: another format


def _as_png(figure: Figure) -> Shown:
    return None if _has_photos(figure) else _rendered(figure, "png")


def _as_jpeg(figure: Figure) -> Shown:
    """Photographs take a fifth of a PNG's bytes as JPEG."""
    options = {"pil_kwargs": {"quality": JPEG_QUALITY}}
    return _rendered(figure, "jpeg", **options) if _has_photos(figure) else None


def _has_photos(figure: Figure) -> bool:
    return any(ax.images for ax in figure.axes)


def _rendered(figure: Figure, kind: str, **options: Any) -> tuple[bytes, dict[str, str]]:
    """The figure with a description for readers who do not see it: the names of its panels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format=kind, **options)
    titles = [ax.get_title() or ax.get_ylabel() or ax.get_xlabel() for ax in figure.axes]
    panels = ", ".join(dict.fromkeys(title for title in titles if title))
    return buffer.getvalue(), {"alt": panels or "figure"}
