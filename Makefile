# `make help` lists the targets; what isn't listed there isn't supported.
PREFIX ?= /usr/local
DESTDIR ?=
PYTHON ?= /usr/bin/python3
CC ?= cc
CFLAGS ?= -O2 -g0 -Wall -Wextra -Werror

LIBDIR := $(PREFIX)/lib/grit-runtime
VENV := build/venv
BUILT := $(CURDIR)/build/prefix
SOURCES := $(shell find grit_runtime -name '*.py' -o -name '*.json' -o -name py.typed) launcher/boot.py launcher/grit-runtime.c $(wildcard hooks/* hooks/hooks.d/*) setup.cfg pyproject.toml $(wildcard docs/man/*.1)

.PHONY: help deps deps-runtime install uninstall build demo test lint unit contract integration e2e conformance bench soak fuzz e2e-cluster crds docs recording clean

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install what the project and its tests need (as root; Debian 12 and 13, Ubuntu 24.04)
	tools/deps

deps-runtime:
	tools/deps runtime

install: ## install grit-runtime to $(PREFIX); DESTDIR is honoured (needs `make deps` once)
	tools/install "$(DESTDIR)" "$(PREFIX)" "$(PYTHON)" "$(CC)" $(CFLAGS)

uninstall: ## remove what install put to $(PREFIX)
	rm -f "$(DESTDIR)$(PREFIX)"/share/man/man1/grit-runtime.1 "$(DESTDIR)$(PREFIX)"/share/man/man1/grit-runtime-*.1
	rm -f "$(DESTDIR)$(PREFIX)/share/containers/oci/hooks.d/99-grit-record.json" "$(DESTDIR)$(PREFIX)/share/containers/oci/hooks.d/99-grit-cleanup.json"
	rm -rf "$(DESTDIR)$(LIBDIR)" "$(DESTDIR)$(PREFIX)/bin/grit-runtime"

build: build/prefix/.done ## the runtime under build/prefix, as the tests and the demo use it

build/prefix/.done: $(SOURCES) tools/install
	@tools/install "" "$(BUILT)" "$(PYTHON)" "$(CC)" $(CFLAGS)
	@touch $@

demo: deps-runtime build ## set up, then show the main job end to end and explain it
	$(PYTHON) examples/demo/demo.py --runtime $(BUILT)/bin/grit-runtime

test: deps build ## set up, then run linters and all tests
	@$(MAKE) --no-print-directory lint
	$(VENV)/bin/pytest
	tests/conformance/run --quick --runtime $(BUILT)/bin/grit-runtime

lint: ## ruff, mypy (strict), import-linter, shellcheck
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy -p tools.manual
	$(VENV)/bin/mypy --scripts-are-modules hooks/grit-record hooks/grit-cleanup
	$(VENV)/bin/lint-imports --config setup.cfg
	shellcheck tools/deps tools/install examples/kubernetes/agent/certificate

docs: ## make new what of docs/ is made from the program: configuration reference, man pages
	$(VENV)/bin/python -m tools.manual

recording: deps build ## run the demo, and draw its output as the picture in the README
	$(VENV)/bin/python -m tools.manual.recording $(BUILT)/bin/grit-runtime

conformance: deps build ## runc's own integration suite, with runc and with us
	tests/conformance/run --runtime $(BUILT)/bin/grit-runtime

bench: deps build ## what we cost, side by side with runc in one run; figures and picture in build/bench
	$(PYTHON) tests/bench/passthrough.py --runtime $(BUILT)/bin/grit-runtime
	$(PYTHON) tests/bench/devices.py --runtime $(BUILT)/bin/grit-runtime
	$(PYTHON) tests/bench/owntime.py --runtime $(BUILT)/bin/grit-runtime
	$(VENV)/bin/python -m tests.bench.looking --runtime $(BUILT)/bin/grit-runtime
	$(VENV)/bin/python -m tests.bench.memory --runtime $(BUILT)/bin/grit-runtime
	$(VENV)/bin/python -m tests.bench.growth --runtime $(BUILT)/bin/grit-runtime
	$(VENV)/bin/python -m tests.bench.transfer
	$(VENV)/bin/python -m tests.bench.report build/bench/memory.json build/bench/growth.json --svg build/bench/benchmarks.svg

# Each is what `make test` does once, LOAD times: 12 restores at once, 4 cycles, a few hundred hostile inputs for a parser.
LOAD ?= 10
soak: deps build ## load, cycles and hostile input, LOAD (10) times as much as make test does
	GRIT_TEST_LOAD=$(LOAD) $(VENV)/bin/pytest --timeout 3600 tests/integration/test_load.py tests/unit/test_hostile_input.py

# Each of the targets (tests/fuzz/targets.py) for so many seconds, with atheris, from the seeds in tests/data/seeds.
FUZZ_SECONDS ?= 60
TARGETS ?= argv pagemap raw rewrite images
fuzz: deps build ## fuzz the readers of images and of command lines by coverage, FUZZ_SECONDS (60) for each
	@$(VENV)/bin/python -c 'import atheris' 2>/dev/null || $(VENV)/bin/python -m pip install -q \
		"$$($(PYTHON) -c 'import configparser as c; p = c.ConfigParser(interpolation=None); p.read("setup.cfg"); print(p["options.extras_require"]["fuzz"].strip())')"
	@for target in $(TARGETS); do echo "fuzz: $$target"; \
		$(VENV)/bin/python -m tests.fuzz.run "$$target" $(FUZZ_SECONDS) 2>&1 | tail -n 12 || exit; \
		! ls build/fuzz/$$target/crash-* build/fuzz/$$target/timeout-* 2>/dev/null || exit 1; done

e2e-cluster: ## on a node of a real cluster: capture, delete and restore a pod; KUBECONFIG=FILE [ARGS="--image ..."] (docs/kubernetes.md)
	@test -n "$(KUBECONFIG)" || { echo "say KUBECONFIG=FILE" >&2; exit 1; }
	KUBECONFIG="$(KUBECONFIG)" $(VENV)/bin/python tests/e2e/cluster.py $(ARGS)

crds: ## write the custom resource definitions to examples/kubernetes/agent/crds.yaml
	$(VENV)/bin/python -m grit_runtime.agent.crds >examples/kubernetes/agent/crds.yaml

clean: ## remove build/
	rm -rf build
