# make env    the environment, in .venv
# make demo   the whole path: phantom archive -> store -> pretraining -> detectors -> report
# make test   format, lint, types, import order, spelling, tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HEADCT := $(BIN)/headct
D := demo
SYSTEM_TOOLS := orthanc orthanc-dicomweb orthanc-gdcm dcmtk dicom3tools chromium

.DELETE_ON_ERROR:
.PHONY: env demo test check clean system-tools

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "headct needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# ---------------------------------------------------------------- demo

demo: export HEADCT_KEY_FILE := $(abspath $(D))-key/key
demo: env
	@$(MAKE) --no-print-directory -f examples/demo.mk HEADCT=$(HEADCT) D=$(D)

# ---------------------------------------------------------------- test

test: env $(if $(CI),system-tools) check
	$(BIN)/pytest -n 2 --dist loadgroup

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md docs src tests examples benchmarks

# Some tests use a PACS, a DICOM validator and a browser; they skip with a reason where these are absent.
system-tools:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  command -v Orthanc >/dev/null && command -v dciodvfy >/dev/null && command -v chromium >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends $(SYSTEM_TOOLS) >/dev/null; } || \
	  echo "no PACS, DICOM validator or browser: their tests will be skipped"; fi

clean:
	rm -rf $(D) $(D)-key
