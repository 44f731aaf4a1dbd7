# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
# Each makes the environment first when it is missing. PYTHON and VENV can be set: make test VENV=/some/venv

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
READY_DEV = $(VENV)/.ready-dev
PAGE = docs/demo/dist/offline.js
PAGE_SOURCES = $(wildcard docs/demo/*.* docs/demo/src/*) docs/astronaut.jpg results/v2/featherface_v2_deployment.onnx

.DEFAULT_GOAL = help
.PHONY: help demo test stress lint browser clean

help:
	@echo "make demo     run the notebook: synthesise photos, train V1, distil V2, evaluate, export (12 minutes on 2 busy cores)"
	@echo "make test     run the tests (6 minutes on 2 cores)"
	@echo "make stress   kill 100 small training runs at random moments and count the damage; not part of make test"
	@echo "make lint     ruff and mypy"
	@echo "make browser  build the page that finds faces in a browser, in docs/demo/dist (needs Node.js)"
	@echo "make clean    remove the environment and caches; data, weights and results stay"

$(READY): pyproject.toml
	@echo "==> making the environment in $(VENV) (PyTorch is a large download)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[notebook]'
	@touch $@

$(READY_DEV): $(READY)
	@echo "==> installing what the tests and linters need"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY_DEV)
	@echo "==> running the notebook; its page appears in results/notebook, all other files in results/v2/quick_run"
	$(BIN)/python scripts/run_notebook.py --mode quick

test: $(READY_DEV)
	@if command -v npm > /dev/null; then $(MAKE) browser || echo "==> the page is not built: its tests are skipped"; fi
	@echo "==> running the tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

stress: $(READY_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python tests/stress_training.py --kills 100

lint: $(READY_DEV)
	@echo "==> ruff and mypy"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

browser: $(PAGE)

$(PAGE): $(PAGE_SOURCES)
	@command -v npm > /dev/null || { echo "make browser needs Node.js 18 or newer, with npm" >&2; exit 2; }
	@echo "==> building the page in docs/demo/dist"
	cd docs/demo && npm ci --silent --no-audit --no-fund && npm run --silent build

clean:
	rm -rf docs/demo/node_modules docs/demo/dist
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis featherface.egg-info
