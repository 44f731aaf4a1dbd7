"""Run the notebook without a browser: progress in the terminal, a notebook and a page as result."""

import html
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from traitlets import default

from featherface.errors import ConfigError
from featherface.files import CHECKOUT, check_writable, write_text
from featherface.notebook.display import PROBLEM, STATUS

NOTEBOOK = CHECKOUT / "notebooks/03_train_evaluate_featherface_v2.ipynb"
NO_ALT = 'alt="No description has been provided for this image"'  # what nbconvert writes
STATUS_EVERY = 10.0  # seconds between progress lines of a training run


@dataclass(frozen=True)
class Result:
    """What a run left: the executed notebook, its page, and the problems that it met."""

    notebook: Path
    page: Path
    problems: tuple[str, ...]
    seconds: float


class ThisPython(KernelSpecManager):
    """The kernel is this Python, whatever kernels the user has installed under the same name."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        quiet = [*argv, "--log-level=ERROR"]
        return KernelSpec(argv=quiet, display_name=kernel_name, language="python")


class Kernel(AsyncKernelManager):
    """Started and ended by the client."""

    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return ThisPython(parent=self)


class Terminal:
    """Prints the sections as they begin, and the plain form of what their cells show."""

    def __init__(self, notebook: NotebookNode) -> None:
        self.notebook, self.started = notebook, time.monotonic()
        self.problems: list[str] = []
        self.section, self.said_at, self.said = "", 0.0, ""

    def begin(self, cell: NotebookNode, cell_index: int) -> None:
        section = _section(self.notebook, cell_index)
        if section != self.section:
            minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
            print(f"[{minutes:2d}:{seconds:02d}] {section}", flush=True)
            self.section = section

    def show(self, message: Mapping[str, Any]) -> None:
        content = message["content"]
        mark = content.get("metadata", {}).get("featherface", "")
        text = content.get("data", {}).get("text/plain", "")
        if mark == PROBLEM:
            self.problems.append(text)
            print(f"        {text}", flush=True)
        elif mark == STATUS and text != self.said:
            if time.monotonic() - self.said_at > STATUS_EVERY or "process" not in text:
                print(f"        {text}", flush=True)
                self.said_at, self.said = time.monotonic(), text


def _section(notebook: NotebookNode, index: int) -> str:
    """The heading above a cell."""
    for cell in reversed(notebook.cells[: index + 1]):
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            return cell.source.splitlines()[0].lstrip("# ")
    return ""


class LiveClient(NotebookClient):
    """Shows what the kernel says while it says it."""

    terminal: Terminal

    def process_message(self, msg: Any, cell: NotebookNode, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.terminal.show(msg)
        return super().process_message(msg, cell, cell_index)


def run_notebook(
    out: Path,
    *,
    parameters: Mapping[str, Any],
    source: Path = NOTEBOOK,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Execute the notebook with these parameters; write it and an HTML page into `out`.

    parameters: values for the names of the cell tagged "parameters". environment: for the kernel,
    over this process's. ConfigError for an unknown parameter, where a cell raises, or where the
    kernel ends.
    """
    started = time.monotonic()
    check_writable(out)
    notebook = nbformat.read(source, as_version=4)
    inject(notebook, parameters)
    os.environ.update({"FEATHERFACE_HEADLESS": "1", **(environment or {})})
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a training process shares the cores
    where = {"metadata": {"path": str(source.parent)}}
    client = LiveClient(notebook, kernel_manager_class=Kernel, timeout=None, resources=where)
    client.terminal = terminal = Terminal(notebook)
    client.on_cell_execute = terminal.begin
    executed, page = out / source.name, out / f"{source.stem}.html"
    try:
        client.execute()
    except CellExecutionError as error:
        raise ConfigError(
            f"a cell failed, see {executed}: {error.ename}: {error.evalue}"
        ) from error
    except (DeadKernelError, AssertionError) as error:  # nbclient asserts after a signal
        raise ConfigError(
            f"the kernel ended in section {terminal.section} (interrupted, or out of memory); a "
            "training that was started goes on, and the next run of the notebook finds it"
        ) from error
    finally:  # what was done so far is worth reading
        write_text(executed, nbformat.writes(notebook) + "\n")
        write_text(page, to_html(notebook, title=source.stem))
    return Result(executed, page, tuple(terminal.problems), time.monotonic() - started)


def inject(notebook: NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Put a cell with the parameters behind the one tagged "parameters", as papermill does."""
    at = next(
        (
            index
            for index, cell in enumerate(notebook.cells)
            if "parameters" in cell.metadata.get("tags", ())
        ),
        None,
    )
    if at is None:
        raise ConfigError('the notebook has no cell tagged "parameters"')
    unknown = [name for name in parameters if f"{name} = " not in notebook.cells[at].source]
    if unknown:
        raise ConfigError(f"the notebook has no parameter {', '.join(unknown)}")
    if parameters:
        lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        cell = nbformat.v4.new_code_cell(lines, metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(at + 1, cell)


def to_html(notebook: NotebookNode, *, title: str) -> str:
    """A page that needs no network: no formula is set, no widget is drawn."""
    exporter = HTMLExporter(template_name="lab")
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = ""
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    style = "<style>.jp-OutputArea-output{padding-left:12px}</style>"  # in line with the text
    return _described(body.replace("</head>", f"{style}</head>", 1), notebook)


def _described(page: str, notebook: NotebookNode) -> str:
    """Give the images their own descriptions: nbconvert's template leaves them out."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [
        output.metadata.get(kind, {}).get("alt", "figure")
        for output in outputs
        for kind in ("image/png", "image/jpeg")
        if kind in output.get("data", {})
    ]
    parts = page.split(NO_ALT)
    if len(parts) != len(texts) + 1:
        return page
    described = [f'alt="{html.escape(text)}"' for text in texts]
    return "".join(part + text for part, text in zip(parts, [*described, ""], strict=True))
