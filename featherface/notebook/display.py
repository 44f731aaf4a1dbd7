"""What the notebook shows: tables, figures, notes, and errors as one message instead of a wall.

Everything goes through IPython's display with a plain-text form beside the rich one, so that a
terminal that runs the notebook shows something readable too.
"""

import html
import io
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.display import DisplayHandle, Image, display
from matplotlib.figure import Figure
from PIL import Image as Pictures

from featherface.errors import FeatherFaceError
from featherface.files import CHECKOUT
from featherface.plots import plot_pictures, save_figure

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 100_000  # of one figure in the notebook: the HTML copy stays small
PROBLEM, STATUS = "problem", "status"  # marks in an output's metadata, for run_notebook
_BOX = "border-left:4px solid {colour};padding:6px 12px;margin:4px 0;max-width:60em"


@contextmanager
def explained(what: str) -> Iterator[None]:
    """What fails inside becomes one message, and the notebook goes on; also as a decorator.

    A deliberate error says itself what to do. Any other is a defect of the code: its message says
    so and folds the traceback away. Ctrl-C ends the cell with a line.
    """
    try:
        yield
    except FeatherFaceError as error:
        problem(what, str(error))
    except ImportError as error:
        hint = "bring the checkout up to date, or pip install -e '.[dev]'"
        problem(what, f"{error.msg.split(' (')[0]}: {hint}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        problem(what, f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        note(f"{what}: interrupted; run the cell again to go on")
    except Exception as error:
        text = f"{type(error).__name__}: {error} (not foreseen: please report it)"
        problem(what, text, details=traceback.format_exc())


def problem(what: str, message: str, *, details: str = "") -> None:
    """One message: which step was not done, why, and what to do; no path of this machine."""
    message, details = _without_places(message), _without_places(details)
    title = f"Not done: {what}"
    body = f"<b>{html.escape(title)}</b><br>{html.escape(message)}"
    if details:
        body += f"<details><summary>traceback</summary><pre>{html.escape(details)}</pre></details>"
    box = f'<div style="{_BOX.format(colour="#D55E00")}">{body}</div>'
    _show({"text/html": box, "text/plain": f"{title}: {message}"}, mark=PROBLEM)


def _without_places(text: str) -> str:
    """Paths below the project, Python, home and the folder for temporary files, shortened."""
    places = {CHECKOUT: "", Path(sys.prefix): "python/", Path.home(): "~/"}
    places |= {Path(sysconfig.get_path("stdlib")).parent: "python/"}
    for place, short in (places | {Path(tempfile.gettempdir()): ""}).items():
        text = text.replace(f"{place}/", short)
    return text


def note(text: str) -> None:
    """A sentence or two."""
    _show({"text/markdown": text, "text/plain": text})


def show_table(
    frame: "pd.DataFrame", caption: str = "", *, fold: bool = False, digits: int = 3
) -> None:
    """A table without its index, numbers for people: `digits` behind the point, none over 1,000.

    fold: hidden under its caption until that is clicked.
    """
    cells = frame.map(lambda value: _cell(value, digits))
    shown = cells.to_html(index=False, border=0, justify="left")
    style = "<style>.ff{overflow-x:auto} .ff td,.ff th{text-align:left !important;"
    style += "vertical-align:top;max-width:24em;white-space:normal !important;"
    style += "overflow-wrap:break-word}</style>"
    title = html.escape(caption)
    if fold:
        shown = f"<details><summary>{title}</summary>{shown}</details>"
    elif caption:
        shown = f"<b>{title}</b>{shown}"
    plain = f"{caption}\n{cells.to_string(index=False)}"
    _show({"text/html": f'{style}<div class="ff">{shown}</div>', "text/plain": plain})


def show_text(text: str, caption: str) -> None:
    """A text as it is written, hidden under its caption until that is clicked."""
    shown = f'<pre style="white-space:pre-wrap;font-size:90%">{html.escape(text)}</pre>'
    shown = f"<details><summary>{html.escape(caption)}</summary>{shown}</details>"
    _show({"text/html": shown, "text/plain": f"{caption}\n{text}"})


def _cell(value: Any, digits: int) -> str:
    """A value as text; an empty one where there is none."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        small = 0 < abs(value) < 10 ** (1 - digits)
        return f"{value:.2g}" if small else f"{value:,.{0 if abs(value) >= 1000 else digits}f}"
    return str(value)


def _show(bundle: dict[str, str], *, mark: str = "") -> None:
    display(bundle, raw=True, metadata={"featherface": mark} if mark else {})


class Live:
    """A line and a figure that are replaced in place while something runs."""

    def __init__(self) -> None:
        self._line: DisplayHandle | None = None
        self._figure: DisplayHandle | None = None

    def line(self, text: str) -> None:
        bundle = {"text/html": f"<code>{html.escape(text)}</code>", "text/plain": text}
        options: dict[str, Any] = {"raw": True, "metadata": {"featherface": STATUS}}
        if self._line is None:
            self._line = display(bundle, display_id=True, **options)
        else:
            self._line.update(bundle, **options)

    def figure(self, figure: Figure) -> None:
        image = _image(png(figure), figure, "progress")
        if self._figure is None:
            self._figure = display(image, display_id=True)
        else:
            self._figure.update(image)


def show_figure(figure: Figure, path: Path) -> None:
    """The figure here, and as a PNG file."""
    save_figure(figure, path, dpi=100)
    display(_image(png(figure), figure, path.stem))


def show_pictures(
    pictures: Sequence[tuple[str, np.ndarray]], path: Path, *, columns: int = 3
) -> None:
    """Photographs (title, (H, W, 3) uint8 RGB) side by side; as a JPEG here, as a PNG file."""
    figure = plot_pictures(pictures, columns=columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure, most=3 * MOST_BYTES))
    display(_image(_jpeg(figure), figure, path.stem))


def _image(content: bytes, figure: Figure, name: str) -> Image:
    """With a description for readers who do not see it: what its panels are called."""
    titles = [ax.get_title() or ax.get_ylabel() or ax.get_xlabel() for ax in figure.axes]
    panels = ", ".join(dict.fromkeys(title for title in titles if title))
    return Image(data=content, alt=": ".join(filter(None, (name.replace("_", " "), panels))))


def png(figure: Figure, *, most: int = MOST_BYTES) -> bytes:
    """The figure as PNG of at most about `most` bytes: fewer colours, then fewer pixels."""
    content = b""
    for dpi in (100, 85, 72, 60, 50):
        content = _rendered(figure, dpi, "png")
        if len(content) <= most:
            break
        content = _with_palette(content)
        if len(content) <= most:
            break
    return content


def _jpeg(figure: Figure, *, most: int = MOST_BYTES) -> bytes:
    """Photographs take a fifth of a PNG's bytes as JPEG."""
    content = b""
    for dpi, quality in ((100, 85), (100, 75), (90, 65), (75, 60), (60, 55)):
        content = _rendered(figure, dpi, "jpg", pil_kwargs={"quality": quality})
        if len(content) <= most:
            break
    return content


def _rendered(figure: Figure, dpi: int, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format=kind, **options)
    return buffer.getvalue()


def _with_palette(content: bytes) -> bytes:
    picture = Pictures.open(io.BytesIO(content)).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256, dither=Pictures.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()
