# `make demo` and `make test` are all that a fresh machine needs; `make help` lists the rest.
VENV ?= .venv
OUT ?= out/demo
WORKERS ?= 2
# One more than cores: many of the quick tests wait.
QUICK_WORKERS ?= 3
BIN = $(VENV)/bin
# An environment made with TORCH=cuda also serves later calls that do not name a build.
READY = $(VENV)/.ready$(if $(TORCH),-$(TORCH))

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-exhaustive ranges env lint format format-check types wheel clean

help:  ## list the targets
	@echo "usage: make TARGET [VENV=.venv] [TORCH=cpu|cuda] [PYTHON=python3]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1:\2/p' Makefile | awk -F: '{printf "%-18s%s\n", $$1, $$2}'

demo: $(READY)  ## a video of the demo model and its contact sheet, in out/demo
	$(BIN)/longlive-trt demo --out $(OUT)

test: $(READY)  ## run the tests (PYTEST_ARGS="-k name" narrows them)
	$(BIN)/python -m pytest -n $(QUICK_WORKERS) --dist loadfile -m "not exhaustive" $(PYTEST_ARGS)

test-all: test test-exhaustive  ## run every test, the long ones too

test-exhaustive: $(READY)  ## run the long tests alone; installs a browser, a proxy and Ray for them
	sh scripts/live_tools.sh $(VENV)
	sh scripts/fleet_tools.sh $(VENV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m exhaustive $(PYTEST_ARGS)

env: $(READY)  ## make the environment, if need be

$(READY): pyproject.toml constraints.txt scripts/environment.sh
	sh scripts/environment.sh $(VENV) $(TORCH)

lint: $(READY)  ## find mistakes and style faults
	$(BIN)/ruff check .

format: $(READY)  ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

format-check: $(READY)  ## fail if the code is not formatted
	$(BIN)/ruff format --check .

types: $(READY)  ## check the types
	$(BIN)/mypy

wheel: $(READY)  ## build the wheel and try it in an empty folder
	bash scripts/check_wheel.sh $(BIN)/python

ranges: $(READY)  ## try the lowest and the newest versions that pyproject.toml allows
	bash scripts/check_ranges.sh $(BIN)/python

clean:  ## remove what was built; keeps the environment and the videos
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
