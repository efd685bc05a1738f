# make demo and make test do everything on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo check test slow attack golden docs lock clean

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/caswit demo --out demo
	@echo "Open demo/report.html in a browser; demo/map.tif opens in QGIS."

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Trainings and maps in several processes, stopped by signals and resumed, and the tutorial notebook; ten minutes at most.
slow: setup
	OMP_NUM_THREADS=1 timeout 600 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# Damaged inputs, hostile requests, and 100 SIGKILLs each of predict and train; 15 minutes at most.
# CASWIT_ATTACK_SEED is the first seed of the inputs and that of the kills. docs/reliability.md has the full numbers.
attack: setup
	CASWIT_ATTACK_S=$${CASWIT_ATTACK_S:-240} CASWIT_KILLS=$${CASWIT_KILLS:-100} OMP_NUM_THREADS=1 timeout 900 $(BIN)/python -m pytest -q -rP -n 2 --dist worksteal tests/attack

# Files that tests compare with: help.txt and the losses in tests/golden, and docs/settings.md.
# A changed one needs a sentence in the commit that says why.
golden: setup
	$(BIN)/python docs/settings_page.py
	CASWIT_GOLDEN=write OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m golden

# The site in site/; a broken link or a name that does not exist is an error. (--quiet would hide warnings, and --strict would not see them.)
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Newest versions that pyproject.toml admits. What torch itself pins for one platform (CUDA libraries)
# is left to torch, so that the file installs everywhere.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet --editable ".[train,serve,vector,ray,fast,int8,export]" --group dev
	.venv-lock/bin/python -m pip freeze --exclude-editable \
	  | grep -Ev '^(nvidia|cuda|triton|pip|setuptools)' > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv demo site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
