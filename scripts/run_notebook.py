"""Run the notebook headless and leave the executed copy and an HTML page in results/."""

import json
from pathlib import Path

from featherface.cli import parser, run
from featherface.errors import ConfigError
from featherface.notebook.execute import run_notebook


def main() -> None:
    commands = parser(__doc__)
    commands.add_argument(
        "--mode", default="auto", choices=("auto", "quick", "full"), help="see section 1"
    )
    commands.add_argument(
        "--settings", default="{}", metavar="JSON", help='training settings: {"epochs": 10}'
    )
    commands.add_argument(
        "--fresh", action="store_true", help="train anew even where a finished run lies"
    )
    commands.add_argument("--out", default="results", help="folder of the copy and the page")
    args = commands.parse_args()
    try:
        settings = dict(json.loads(args.settings))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--settings is no JSON object: {error}") from error
    parameters = {"MODE": args.mode, "SETTINGS": settings, "FRESH": args.fresh}
    result = run_notebook(Path(args.out).resolve(), parameters=parameters)
    size = result.page.stat().st_size / 1e6
    print(f"page: {result.page} ({size:.1f} MB), notebook: {result.notebook}")
    print(f"done in {result.seconds / 60:.1f} minutes")
    if result.problems:
        raise ConfigError(f"{len(result.problems)} steps were not done, see above and in the page")


if __name__ == "__main__":
    run(main)
