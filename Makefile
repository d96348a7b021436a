PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python

.PHONY: demo test test-long bench lint install clean

$(BIN)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(BIN)/.installed-test: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

install: $(BIN)/.installed

demo: $(BIN)/.installed
	$(RUN) -m bert_ft.main --config=configs/sentiment.py --workdir=runs/sentiment

test: $(BIN)/.installed-test
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(BIN)/.installed-test  # what is left out of `make test` for its time
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m long

bench: $(BIN)/.installed  # ratios with wide limits: exit code 1 on a regression
	$(RUN) -m experiments.speed.guard

lint: $(BIN)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  # what an installation made; runs/ stays, in which trained models are
	rm -rf $(VENV)
