# Everything works in .venv/ inside the clone; downloads are kept in BERTMP_HOME (default: the user's
# cache folder), so that a second clone does not download again.
#
#   make quickstart   the whole pipeline on TREC questions, from set-up to two served answers
#   make test         lint, types and tests
#   make test-slow    the tests that take too long for it
#   make bench-train  fine-tuning and pre-training against transformers: benchmarks/results/train.json
#   make bench-precision  FP16 conversion against other converters: benchmarks/results/precision.json
#   make bench-pipeline  time and memory from checkpoint to engine: benchmarks/results/pipeline.json
#   make bench-serve  serving against FastAPI servers: benchmarks/results/serve.json
#   make docs         the documentation site: build/site
#   make screenshot   the README's picture of a parity report, from the last quickstart; needs Chromium
#   make test-gpu     the tests that need CUDA; from a plain checkout, with the packages that PYTHON has
#   make bench-gpu    the benchmark that needs CUDA: benchmarks/results/gpu.json; neither installs anything
#
# PYTHON=python3.12           another Python (3.10 or later) for .venv
# EXTRAS=gpu,dev,sign         other extras of pyproject.toml
# TORCH_INDEX=URL             an additional package index for torch: PyTorch's CPU index saves a
#                             machine without a GPU several gigabytes of CUDA libraries
# TEST_SECONDS=600            time limit of the tests (SLOW_TEST_SECONDS=1900: of the slow ones)
# TEST_WORKERS=               run the tests in one process (for a debugger); default: two processes
# BENCH_OPTIONS=--quick       more options for a benchmark

PYTHON ?= python3
EXTRAS ?= cpu,dev,sign
TORCH_INDEX ?=
TEST_SECONDS ?= 600
SLOW_TEST_SECONDS ?= 1900
TEST_WORKERS ?= -n 2 --dist loadfile
BENCH_OPTIONS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --no-input --disable-pip-version-check
INSTALLED := $(VENV)/.installed-$(EXTRAS)

MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup triton data quickstart test test-slow docs screenshot bench-train bench-precision bench-pipeline bench-serve test-gpu bench-gpu lint clean

# $(call stage,TITLE,COMMAND): runs it between two lines that say what it is and how long it took.
define stage
@start=$$(date +%s); echo "== $(1)"; \
code=0; { $(2); } || code=$$?; \
seconds=$$(( $$(date +%s) - start )); \
if [ $$code -eq 0 ]; then echo "== $(1): $$seconds s"; else echo "== $(1): failed after $$seconds s" >&2; fi; \
exit $$code
endef

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

setup: $(INSTALLED)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: bertmp needs Python 3.10 or later: make PYTHON=python3.12 …" >&2; exit 1; }
	$(call stage,virtual environment,$(PYTHON) -m venv $(VENV) && $(PIP) -c constraints.txt pip)
	@touch $@

$(INSTALLED): $(VENV)/.created pyproject.toml constraints.txt constraints-gpu.txt
	$(call stage,packages [$(EXTRAS)],$(PIP) -c constraints.txt $(if $(findstring gpu,$(EXTRAS)),-c constraints-gpu.txt) $(TORCH_INDEX:%=--extra-index-url %) -e '.[$(EXTRAS)]')
	@touch $@

triton: $(INSTALLED)
	$(call stage,Triton server,$(BIN)/bertmp setup triton)

data: $(INSTALLED)
	$(call stage,weights and data,$(BIN)/bertmp download minilm trec sms-spam moviedialog)

quickstart: triton data
	$(call stage,quickstart,$(BIN)/python scripts/quickstart.py)

lint: $(INSTALLED)
	$(call stage,lint,$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .)
	$(call stage,types,$(BIN)/mypy)
	$(call stage,import contracts,$(BIN)/lint-imports --no-logo)

# $(call pytest,SECONDS,OPTIONS)
pytest = timeout --foreground --signal=INT --kill-after=30 $(1) env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(2)

# In two processes: no test measures speed (benchmarks/ does), each takes free ports and folders of its own, and
# the files of a process share its server.
test: triton data lint
	$(call stage,tests,$(call pytest,$(TEST_SECONDS),-m 'not slow' $(TEST_WORKERS)))

test-slow: triton data
	$(call stage,slow tests,$(call pytest,$(SLOW_TEST_SECONDS),-m slow $(TEST_WORKERS)))

screenshot: $(INSTALLED)
	@$(BIN)/python scripts/screenshot.py build/quickstart/report/report.html docs/report.png

docs: $(INSTALLED)
	$(call stage,documentation packages,$(PIP) -c constraints.txt -e '.[docs]')
	$(call stage,documentation,$(BIN)/python scripts/docs.py)

bench-train: data
	$(call stage,training against transformers,$(BIN)/python -m benchmarks.train $(BENCH_OPTIONS))

bench-precision: data
	$(call stage,conversion against other converters,$(BIN)/python -m benchmarks.precision $(BENCH_OPTIONS))

bench-pipeline: $(INSTALLED)
	$(call stage,from checkpoint to engine,$(BIN)/python -m benchmarks.pipeline $(BENCH_OPTIONS))

bench-serve: triton data
	$(call stage,peers' packages,$(PIP) -c constraints.txt -e '.[bench]')
	$(call stage,serving against FastAPI servers,$(BIN)/python -m benchmarks.serve $(BENCH_OPTIONS))

# Without a GPU both print one line and exit with code 4; make itself then exits with 2.
test-gpu:
	@PYTHONPATH=. $(PYTHON) -m tests.gpu

bench-gpu:
	@PYTHONPATH=. $(PYTHON) -m benchmarks.gpu $(BENCH_OPTIONS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
