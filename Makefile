# Every target sets up what it needs in .venv; Python 3.11 or 3.12 and make are all that a machine must have.
# PIP_ARGS goes to pip, for instance an extra index of CPU builds of PyTorch.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
# Two processes, also on larger machines: each makes the corpora and servers that its tests share.
PYTEST := python -m pytest -q -n 2 --dist loadfile
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing here may wait for a network: packages are installed by pip, and that is all that is fetched.
export HF_HUB_OFFLINE ?= 1
export DO_NOT_TRACK ?= 1

.PHONY: demo test lint docs ui ci-tests constraints clean

demo: $(VENV)/.run
	dvc repro
	dashfusion results

test: $(VENV)/.dev
	$(PYTEST)

# What CI runs beyond `test`: whole stages, a Prefect server on loopback, a browser.
ci-tests: $(VENV)/.dev
	$(PYTEST) -m "e2e or server or browser"

lint: $(VENV)/.dev
	ruff check .
	ruff format --check .
	lint-imports
	mypy
	pip check

# The site, in site/; a link to nothing, or a docstring that does not fit its function, is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

# Prefect's pages on loopback with deployments, a worker and the report. SCHEDULE=on switches the nightly run on.
ui: $(VENV)/.run
	dashfusion ui $(if $(filter on,$(SCHEDULE)),--schedule) $(if $(filter off,$(SCHEDULE)),--no-schedule)

# Resolve pyproject.toml into one pinned set for every supported Python and platform, with as few other versions as
# need be; UPGRADE=1 takes the newest of all. CUDA's wheels are left out: PyTorch pins its own, and a CPU build has none.
constraints: $(VENV)/.run
	python -m pip install --quiet uv
	cp constraints.txt constraints.new
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --no-header --quiet \
	  $(if $(UPGRADE),--upgrade) --output-file constraints.new
	(echo '# Made by `make constraints`; do not edit.'; \
	 grep -Ev '^#|^(triton|cuda-[a-z]+|nvidia-(cu|nccl|nvj|nvs|nvt)[a-z0-9-]*)==' constraints.new \
	 | sed -E "s/ ; python_full_version < '3.13'$$//; s/python_full_version < '3.13' and //") > constraints.txt
	rm constraints.new

$(VENV)/pyvenv.cfg:
	@for python in python3 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then \
	    echo "setting up $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); \
	  fi; \
	done; echo "Python 3.11 or 3.12 is needed (mediapipe has wheels for no later one); none found on PATH" >&2; exit 1

$(VENV)/.run: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev,dask,onnx,ray,opensmile,s3,tensorboard,words]'
	@touch $@

clean:
	rm -rf $(VENV) data models metrics report predictions.parquet .dashfusion
