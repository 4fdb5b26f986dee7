# Each target that needs Python sets the machine up first; a second run finds it done.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export OMP_NUM_THREADS := 1

READY := .venv/.st4vla-ready
ST4VLA := .venv/bin/st4vla
PYTHON := .venv/bin/python
SECONDS_PER_TEST := 600

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml scripts/setup.sh scripts/vulkan.sh
	scripts/setup.sh

setup: $(READY) links ## create .venv, install the lock, fetch software Vulkan where it is needed

demo: setup ## run the main job at small size: collect, ground, act, evaluate, track
	$(ST4VLA) demo

reproduce: setup ## run the main job at the size the figures of docs/results.md come from (about an hour and a half)
	$(ST4VLA) demo --size full --out runs/reproduce

ladder: setup ## train and compare the paper's four arms with three seeds (about three hours, goes on where it stopped)
	$(ST4VLA) ladder

test: setup ## run every test (up to 25 minutes on 2 cores)
	$(PYTHON) -m pytest -q --timeout=$(SECONDS_PER_TEST) --durations=15

test-fast: setup ## run the tests that start no Ray and render nothing (under two minutes)
	$(PYTHON) -m pytest -q --timeout=120 -m "not ray and not sim and not slow and not gpu"

check: setup ## lint, format and type checks
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright

format: setup ## rewrite the sources in the house format
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

links: ## lay typings/st4vla/* for the type checker, which runs no import hooks
	@mkdir -p typings/st4vla
	@for room in platform workers envs serve configs; do ln -sfn ../../$$room typings/st4vla/$$room; done

lock: ## resolve pyproject.toml anew into requirements.lock
	scripts/lock.sh

base: setup ## train the base checkpoint that ships with the package
	$(ST4VLA) base

build: setup ## build the wheel, install it in a fresh environment and use it there
	scripts/build.sh

clean: ## remove what was built, keeping .venv, .vulkan and runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache typings

.PHONY: help setup demo reproduce ladder test test-fast check format links lock base build clean
