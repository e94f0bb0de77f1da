# niwaki: `make demo` on a fresh machine, `make test` before a commit. Needs Python 3.11 or newer, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTS ?= tests
EXTRAS := train,dev,openvino,nncf,litert,ncnn,executorch,tiles,segment

.PHONY: help setup litert demo quick test lint bench docs picture clean

help:
	@echo "make demo    set up, then train, prune and export on the built-in digits; the report is runs/demo/report.html"
	@echo "make test    all tests          make quick   those under ten seconds"
	@echo "make lint    ruff and mypy      make docs    pages that are generated from the program"
	@echo "make bench   the measured claims (long)      make clean   forget the environment"

setup: $(READY)

# uv installs in seconds; where it cannot be had, pip does the same, slower.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| uv venv --seed -p $(PYTHON) $(VENV)
	@if command -v uv >/dev/null || $(BIN)/python -m pip install -q uv; then \
		PATH="$$PATH:$(CURDIR)/$(BIN)" uv pip install -q -p $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'; \
	else false; fi || $(BIN)/python -m pip install -q -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(READY)

# The converter to LiteRT asks for other versions of packages than the rest, so it has an environment of its own.
litert: .venv-litert/.ready

.venv-litert/.ready: constraints.txt
	test -x .venv-litert/bin/python || $(PYTHON) -m venv .venv-litert || uv venv --seed -p $(PYTHON) .venv-litert
	.venv-litert/bin/python -m pip install -q uv && .venv-litert/bin/uv pip install -q -p .venv-litert/bin/python \
		$$(grep -E '^(torch|numpy)==' constraints.txt) litert-torch==0.10.0 ai-edge-quantizer==0.10.0 ai-edge-litert==2.3.0
	@touch $@

demo: $(READY)
	$(BIN)/niwaki fit digits --out runs/demo
	@echo "report: runs/demo/report.html"

test: $(READY)
	$(BIN)/python -m pytest $(TESTS) -m "not bench" -n 2 --dist worksteal --durations=15

quick: $(READY)
	$(BIN)/python -m pytest $(TESTS) -m "not slow and not bench"

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy

bench: $(READY)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(READY)
	$(BIN)/python -m niwaki.cli.pages docs

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The picture on the README's page, from digits only. Needs chromium.
picture: $(READY)
	$(BIN)/niwaki report runs/demo
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,1400 \
		--screenshot=docs/report.png "file://$(CURDIR)/runs/demo/report.html"
