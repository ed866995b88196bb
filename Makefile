# Everything runs from a fresh clone with python3 (3.11 or newer) and make. Each target first makes or refreshes .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help demo test lint conformance bench soak peers format clean

help:
	@echo "make demo         a whole mesh on this machine: canary, crash, ejection, lost control plane (about 40 s)"
	@echo "make test         every check and test, on each supported Python of this machine"
	@echo "make lint         the static checks alone"
	@echo "make conformance  the same cases through a real Envoy and through meshlib"
	@echo "make bench        the benchmark: one interleaved run, ratios to httpx, aiohttp and Envoy"
	@echo "make soak         certificates and roots rotate under load for ten minutes; no call may fail"
	@echo "make peers        build SPIRE where Go is, take Prometheus from Debian, test against both (ten minutes the first time)"
	@echo "make format       rewrite the sources in the project's format"
	@echo "make clean        remove environments and caches"

demo:
	@$(PYTHON) -m scripts.env --for demo
	@$(RUN) -m meshlib.cli demo

test:
	@$(PYTHON) -m scripts.env --for dev
	@$(RUN) -m scripts.test_pythons

lint:
	@$(PYTHON) -m scripts.env --for dev
	@$(RUN) -m scripts.test_pythons --only-checks

conformance:
	@$(PYTHON) -m scripts.env --for dev
	@$(RUN) -m conformance --json conformance/results.json
	@$(RUN) -m conformance.tls --json conformance/results-tls.json

bench:
	@$(PYTHON) -m scripts.env --for dev
	@compiled="$$($(RUN) -m scripts.compiled)" && PYTHONPATH="$$compiled" $(RUN) -m benchmarks --json benchmarks/results.json

soak:
	@$(PYTHON) -m scripts.env --for dev
	@compiled="$$($(RUN) -m scripts.compiled)" && PYTHONPATH="$$compiled" $(RUN) -m benchmarks.soak

peers:
	@$(PYTHON) -m scripts.env --for dev
	@$(RUN) -m scripts.peers
	@$(RUN) -m pytest tests/interop

format:
	@$(PYTHON) -m scripts.env --for dev
	@$(RUN) -m ruff check --fix-only --quiet .
	@$(RUN) -m ruff format .

clean:
	rm -rf .venv .venv-3.* .compiled .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
