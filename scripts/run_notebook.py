"""Run the notebook without a browser; write the executed copy and an HTML page of it."""

import json
import os
import sys
import time
from collections.abc import Mapping
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

from featherface.cli import parser, run
from featherface.errors import ConfigError
from featherface.files import CHECKOUT, check_writable, write_text
from featherface.notebook.display import PROBLEM, STATUS
from featherface.notebook.results import summary
from featherface.notebook.session import REAL_DATA, configs, current_session

NOTEBOOK = CHECKOUT / "notebooks/03_train_evaluate_featherface_v2.ipynb"
NO_ALT = 'alt="No description has been provided for this image"'  # what nbconvert writes
STATUS_EVERY = 10.0  # seconds between progress lines of a training run


class ThisPython(KernelSpecManager):
    """Run this Python as the kernel, whatever kernels are installed under the same name."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        quiet = [*argv, "--log-level=ERROR"]
        return KernelSpec(argv=quiet, display_name=kernel_name, language="python")


class Kernel(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return ThisPython(parent=self)


class LiveClient(NotebookClient):
    """Print each section as it begins, and its progress and problems."""

    section, problems, started, printed, printed_at = "", 0, 0.0, "", 0.0

    def begin(self, cell: NotebookNode, cell_index: int) -> None:
        above = [c.source for c in self.nb.cells[: cell_index + 1] if c.cell_type == "markdown"]
        headings = [text.splitlines()[0].lstrip("# ") for text in above if text.startswith("#")]
        if headings and headings[-1] != self.section:
            self.section = headings[-1]
            minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
            print(f"[{minutes:2d}:{seconds:02d}] {self.section}", flush=True)

    def process_message(self, msg: Any, cell: NotebookNode, cell_index: int) -> Any:
        if msg["msg_type"] == "stream" and "\r" in msg["content"]["text"]:
            return None  # a progress bar: nothing for a page
        if msg["msg_type"] in ("display_data", "update_display_data"):
            mark = msg["content"].get("metadata", {}).get("featherface", "")
            text = msg["content"].get("data", {}).get("text/plain", "")
            due = time.monotonic() - self.printed_at > STATUS_EVERY or "process" not in text
            if mark == PROBLEM or (mark == STATUS and due and text != self.printed):
                print("\n".join(f"        {line}" for line in text.splitlines()), flush=True)
                self.printed, self.printed_at = text, time.monotonic()
            self.problems += mark == PROBLEM
        return super().process_message(msg, cell, cell_index)


def run_notebook(
    out: Path, *, parameters: Mapping[str, Any], source: Path = NOTEBOOK
) -> tuple[NotebookNode, int]:
    """Execute the notebook and write it and an HTML page into `out`.

    parameters: values for the names of the cell tagged "parameters". Returns the executed notebook
    and the number of steps that were not done. Raises ConfigError for an unknown parameter, or if a
    cell raises or the kernel ends; the files are written nevertheless.
    """
    check_writable(out)
    notebook = nbformat.read(source, as_version=4)
    inject(notebook, parameters)
    os.environ["FEATHERFACE_HEADLESS"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a training process shares the cores
    where = {"metadata": {"path": str(source.parent)}}
    client = LiveClient(notebook, kernel_manager_class=Kernel, timeout=None, resources=where)
    client.on_cell_execute, client.started = client.begin, time.monotonic()
    executed = out / source.name
    try:
        client.execute()
    except CellExecutionError as error:
        raise ConfigError(
            f"a cell failed, see {executed}: {error.ename}: {error.evalue}"
        ) from error
    except (DeadKernelError, AssertionError) as error:  # nbclient asserts after a signal
        raise ConfigError(
            f"the kernel ended in section {client.section} (interrupted, or out of memory); a "
            "training process continues, and the next run of the notebook finds it"
        ) from error
    finally:
        write_text(executed, nbformat.writes(notebook) + "\n")
        write_text(executed.with_suffix(".html"), to_html(notebook, title=source.stem))
    return notebook, client.problems


def inject(notebook: NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Insert a cell with the parameters after the one tagged "parameters", as papermill does."""
    tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ())]
    if not tagged:
        raise ConfigError('the notebook has no cell tagged "parameters"')
    unknown = [name for name in parameters if f"{name} = " not in notebook.cells[tagged[0]].source]
    if unknown:
        raise ConfigError(f"the notebook has no parameter {', '.join(unknown)}")
    if parameters:
        lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        cell = nbformat.v4.new_code_cell(lines, metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(tagged[0] + 1, cell)


def to_html(notebook: NotebookNode, *, title: str) -> str:
    """The notebook as a page that needs no network, its images with their descriptions."""
    exporter = HTMLExporter(template_name="lab")
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = ""
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = ("image/png", "image/jpeg")
    images = [(output, k) for output in outputs for k in kinds if k in output.get("data", {})]
    for output, kind in images:  # nbconvert's template leaves the descriptions out
        text = output.metadata.get(kind, {}).get("alt", "figure").replace('"', "'")
        page = page.replace(NO_ALT, f'alt="{text}"', 1)
    style = ".jp-OutputArea-output{padding-left:12px} .dataframe *{text-align:left!important}"
    return page.replace("</head>", f"<style>{style}</style></head>", 1)


def main() -> None:
    commands = parser(__doc__)
    commands.add_argument(
        "--mode", default="auto", choices=("auto", "quick", "full"), help="see section 1"
    )
    commands.add_argument(
        "--settings", default="{}", metavar="JSON", help='training settings: {"epochs": 10}'
    )
    commands.add_argument(
        "--fresh", action="store_true", help="train again even if a finished run exists"
    )
    commands.add_argument(
        "--out", default="results/notebook", help="folder of the executed copy and its page"
    )
    args = commands.parse_args()
    try:
        settings = dict(json.loads(args.settings))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--settings is not a JSON object: {error}") from error
    configs("full" if args.mode == "full" else "quick", REAL_DATA, settings)  # fails now, not later
    started, out = time.monotonic(), Path(args.out).resolve()
    parameters = {"MODE": args.mode, "SETTINGS": settings, "FRESH": args.fresh}
    _, problems = run_notebook(out, parameters=parameters)
    page = out / f"{NOTEBOOK.stem}.html"
    minutes = (time.monotonic() - started) / 60
    gives = summary(current_session())["value"]  # changes the working folder to the notebook's
    print(f"done in {minutes:.1f} minutes, in {Path.cwd()}:")
    print(*(f"{what}: {value}" for what, value in gives.items()), sep="\n")
    print(f"page: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if problems:
        raise ConfigError(f"{problems} steps were not done: see above, or the page")


if __name__ == "__main__":
    run(main)
