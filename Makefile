.DEFAULT_GOAL := help
VENV ?= .venv
PY ?= python3.11
CONFIG ?= configs/telecom_small_cpu.yaml
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# A checkout of sierra-research/tau2-bench, and the Python that it needs; only `make test-upstream` uses them.
UPSTREAM ?= $(TAU2_SOURCE)
UPSTREAM_VENV ?= .venv-upstream
UPSTREAM_PY ?= python3.12
SGLANG_VENV ?= .venv-sglang
# One thread a process: two torch threads under load are ten times slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: help install train test test-upstream test-sglang check lint format types imports clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

$(VENV)/.uv:
	test -x $(VENV)/bin/python || $(PY) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q uv
	touch $@

# The +cpu build can never resolve to a CUDA one; the second line is for machines where only PyTorch's own index has it.
$(VENV)/.torch: | $(VENV)/.uv
	$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python "torch==2.13.0+cpu" \
	 || $(VENV)/bin/uv pip install -q --python $(VENV)/bin/python "torch==2.13.0" --torch-backend cpu
	touch $@

$(VENV)/.cpu: pyproject.toml | $(VENV)/.torch
	$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python -e '.[cpu]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.cpu
	$(VENV)/bin/uv pip install -q --python $(VENV)/bin/python -e '.[dev]'
	touch $@

install: $(VENV)/.cpu  ## virtual environment with the CPU extras

train: $(VENV)/.cpu  ## train an agent on telecom/small on this machine (CONFIG=…, ARGS="key.path=value …")
	$(VENV)/bin/frontdesk train --config $(CONFIG) $(ARGS)

test: $(VENV)/.dev  ## everything: lint, types, imports, tests
	$(MAKE) check

test-upstream:  ## the same episodes through upstream tau2-bench and through ours (UPSTREAM=path of a tau2-bench checkout)
	@test -d "$(UPSTREAM)/src/tau2" || { echo "test-upstream: UPSTREAM must name a checkout of sierra-research/tau2-bench" >&2; exit 2; }
	test -x $(UPSTREAM_VENV)/bin/python || $(UPSTREAM_PY) -m venv $(UPSTREAM_VENV)
	$(UPSTREAM_VENV)/bin/python -m pip install -q uv
	$(UPSTREAM_VENV)/bin/uv pip install -q --python $(UPSTREAM_VENV)/bin/python "$(UPSTREAM)[knowledge]" -e '.[agent-runner]' \
	 pytest pytest-asyncio pytest-timeout pytest-xdist
	TAU2_DATA_DIR="$${TAU2_DATA_DIR:-$(UPSTREAM)/data}" PYTHONPATH=. $(UPSTREAM_VENV)/bin/pytest tests/upstream -n 2 --dist worksteal $(ARGS)

$(SGLANG_VENV)/.installed: pyproject.toml tests/sglang/requirements.txt tests/sglang/requirements-no-deps.txt
	test -x $(SGLANG_VENV)/bin/python || $(PY) -m venv $(SGLANG_VENV)
	$(SGLANG_VENV)/bin/python -m pip install -q uv
	$(SGLANG_VENV)/bin/uv pip install -q --python $(SGLANG_VENV)/bin/python "torch==2.13.0+cpu" \
	 || $(SGLANG_VENV)/bin/uv pip install -q --python $(SGLANG_VENV)/bin/python "torch==2.13.0" --torch-backend cpu
	$(SGLANG_VENV)/bin/uv pip install -q --python $(SGLANG_VENV)/bin/python -r tests/sglang/requirements.txt \
	 -e '.[policy-proxy,trajectory-store,trainer,launcher]'
	$(SGLANG_VENV)/bin/uv pip install -q --python $(SGLANG_VENV)/bin/python --no-deps -r tests/sglang/requirements-no-deps.txt
	touch $@

# Bytecode is wanted here: without it every start of the server compiles SGLang anew.
test-sglang: $(SGLANG_VENV)/.installed  ## the proxy against the real SGLang server on a CPU (ARGS="-k …": a part)
	PYTHONDONTWRITEBYTECODE= PYTHONPATH=. $(SGLANG_VENV)/bin/pytest tests/sglang -W default --timeout 900 $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.dev  ## format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(VENV)/.dev
	$(VENV)/bin/pyright

imports: $(VENV)/.dev
	$(VENV)/bin/lint-imports

check: lint types imports  ## quality gates and tests
	$(VENV)/bin/pytest -n 2 --dist loadfile

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(UPSTREAM_VENV) $(SGLANG_VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
