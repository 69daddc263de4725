# From a bare clone: `make demo`, `make test`. The first target you run builds $(VENV) with the versions of constraints.txt.
# CPU build of torch on Linux: make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
# Options of the demo, for example: make demo ARGS="--quick --overwrite"
ARGS ?=
# Two workers of one thread each: small models gain nothing from more threads and slow each other down.
PYTEST_FLAGS ?= -n 2 --dist loadfile

# Nothing here needs the network once installed.
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help demo test check format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     train, merge and evaluate tiny models into runs/demo (ARGS=\"--quick --overwrite\")"
	@echo "make test     run the tests"
	@echo "make check    lint and check the formatting, changing nothing"
	@echo "make format   fix what lint can fix and format"
	@echo "make clean    remove caches and build outputs (keeps $(VENV) and runs/)"

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/babylm-vlm demo --output-dir runs/demo $(ARGS)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

check: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find scripts src tests -name __pycache__ -type d -prune -exec rm -rf {} +
