# Three commands on a fresh machine: `make app`, `make demo` and `make test`. Each makes .venv, installs what is missing and runs.
#
#   PYTHON=python3.12      the interpreter .venv is made from (3.11 or newer)
#   TORCH=...              what to hand to pip for torch, for instance the path of a wheel. Without it: on Linux without a
#                          GPU (as nvidia-smi reports it) the release that was tested, elsewhere any from 2.11 on. The
#                          builds for Linux on x86-64 bring CUDA's libraries, 4 to 5 GB, unless pip is configured with an
#                          index of builds for CPUs
#   WORKERS=3              test processes; some wait for servers and browsers, so one more than cores
#   PORT=8000              of the page

PYTHON ?= python3
TORCH ?=
WORKERS ?= 3
PORT ?= 8000
TYPESCRIPT := 7.0.2
BIN := .venv/bin

.PHONY: help app demo test slow style check docs sync profile train-toy

help:
	@echo "app    the page on http://127.0.0.1:$(PORT)/, with the small model and two example clips"
	@echo "demo   a conversation of three turns about a generated clip, written to outputs/"
	@echo "test   the fast tests            slow   the tests that take minutes"
	@echo "style  lint and format, fixing   check  lint, format, types and layout rules, changing nothing"
	@echo "docs   the documentation as a site in build/docs"
	@echo "sync   copy the model's code beside checkpoints/sama-tiny"
	@echo "train-toy  five minutes of training on a CPU, with its curves in outputs/train_toy"
	@echo "profile  tables of times and memory, as in docs/log.md"

app: .venv/.installed-serve
	$(BIN)/python serve.py --port $(PORT)

demo: .venv/.installed-demo
	$(BIN)/python demo.py --example

test: .venv/.installed-test
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

slow: .venv/.installed-test
	$(BIN)/python -m pytest -q -m slow --timeout 7200

style: .venv/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright  # without a look for newer releases
	$(BIN)/python -m pytest -q tests/test_layout.py
	@if command -v npx >/dev/null; then npx --yes --package typescript@$(TYPESCRIPT) -- tsc --project tests/web; \
	else echo "check: npm is not installed, so the types of serving/web are not checked"; fi

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

sync:
	cp *_sama*.py checkpoints/sama-tiny/

train-toy: .venv/.installed-test
	$(BIN)/python recipes/sama_tiny/initialize.py --to outputs/tiny_start
	$(BIN)/python train.py --config recipes/train_toy.yaml
	$(BIN)/python scripts/plot_run.py outputs/train_toy

profile: .venv/.installed-test
	$(BIN)/python profiling/inference.py

# Nothing is installed again until one of these two files changes.
.venv/.installed-%: pyproject.toml scripts/install.sh
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" bash scripts/install.sh $*
