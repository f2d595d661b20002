# Samewire. `make lab` and `make test` do all their own set-up on a fresh Debian 12 machine (as root).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL: # dpkg has one lock, and what is set up comes in this order

VENV   ?= .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install -q --disable-pip-version-check
SYSPY  := /usr/bin/python3
CLANG  ?= clang
CNI_CC ?= musl-gcc
STRIP  ?= llvm-strip
OUT    := src/samewire/_build

include tools/packages.mk

BPF_CFLAGS := -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter --target=bpf -mcpu=v3 \
              -I/usr/include/$(shell uname -m)-linux-gnu -Ibpf -ffile-prefix-map=$(CURDIR)=.
BPF_HEADERS := $(wildcard bpf/*.h)

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

# --- set-up ---------------------------------------------------------------------------------------
build/.apt-%: tools/packages.mk
	@mkdir -p build
	tools/apt-install $($*_PACKAGES)
	@touch $@

build/.venv: pyproject.toml | build/.apt-RUN
	[ -x $(PY) ] || $(SYSPY) -m venv $(VENV)
	$(PIP) -U "pip>=25.1"
	$(PIP) $(shell $(SYSPY) tools/requirements.py)
	@touch $@

build/.venv-test: build/.venv
	$(PIP) $(shell $(SYSPY) tools/requirements.py test lint bench)
	@touch $@

# The package is used in place (a .pth file), so a rebuilt switch is picked up without a reinstall.
build/.installed: build/.venv
	echo "$(CURDIR)/src" > $$($(PY) -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/samewire.pth
	printf '#!%s\nfrom samewire.cli.main import main\nmain()\n' "$(CURDIR)/$(PY)" > $(VENV)/bin/samewire
	chmod +x $(VENV)/bin/samewire
	@touch $@

# As installing the package does it. A daemon that has to compile its modules takes a third longer to start.
.PHONY: bytecode
bytecode: build/.installed
	$(PY) -m compileall -q src/samewire

.PHONY: native
native: $(OUT)/switch.o $(OUT)/switch_trace.o $(OUT)/samewire-cni $(OUT)/samewire-relay ## compile the switch, the CNI client, the relay

$(OUT)/switch.o: bpf/switch.c $(BPF_HEADERS) | build/.apt-RUN
	@mkdir -p $(OUT)
	$(CLANG) $(BPF_CFLAGS) -c $< -o $@.tmp && $(STRIP) -g $@.tmp && mv $@.tmp $@

$(OUT)/switch_trace.o: bpf/switch.c $(BPF_HEADERS) | build/.apt-RUN
	@mkdir -p $(OUT)
	$(CLANG) $(BPF_CFLAGS) -DTRACE=1 -c $< -o $@.tmp && $(STRIP) -g $@.tmp && mv $@.tmp $@

$(OUT)/samewire-cni: native/samewire-cni.c | build/.apt-RUN
	@mkdir -p $(OUT)
	$(CNI_CC) -O2 -Wall -Wextra -Werror -static -s -o $@ $<

$(OUT)/samewire-relay: $(wildcard native/relay/*.c native/relay/*.h) | build/.apt-RUN
	@mkdir -p $(OUT)
	$(CC) -O2 -Wall -Wextra -Werror -static -s -o $@ $(filter %.c,$^)

# What Windows programs load under Wine; docs/guides/windows-clients.md. Only the tests need it.
SHIM     := $(OUT)/windows
SHIM_CC  ?= x86_64-w64-mingw32-gcc
SHIM_C   := $(addprefix compat/windows/,call.c connection.c http.c text.c platform.c)
SHIM_H   := $(wildcard compat/windows/*.h)

.PHONY: windows-shim
windows-shim: build/.apt-WINDOWS $(addprefix $(SHIM)/,computenetwork.dll vmcompute.dll bcryptprimitives.dll client.exe hostile.exe libcomputenetwork.so) ## the DLLs for Windows programs

$(SHIM)/%.dll: compat/windows/%.c compat/windows/handles.c $(SHIM_C) $(SHIM_H)
	@mkdir -p $(SHIM)
	$(SHIM_CC) -O2 -Wall -Wextra -Werror -shared -static-libgcc -s -o $@ $(filter %.c,$^) -lws2_32 -lole32

$(SHIM)/bcryptprimitives.dll: compat/windows/bcryptprimitives.c
	@mkdir -p $(SHIM)
	$(SHIM_CC) -O2 -Wall -Wextra -Werror -shared -static-libgcc -s -o $@ $< -ladvapi32

# The same exports for Linux: a test double of the real library.
$(SHIM)/libcomputenetwork.so: compat/windows/computenetwork.c compat/windows/handles.c $(SHIM_C) $(SHIM_H)
	@mkdir -p $(SHIM)
	$(CC) -O2 -Wall -Wextra -Werror -fvisibility=hidden -fPIC -shared -pthread -s -o $@ $(filter %.c,$^)

$(SHIM)/%.exe: compat/windows/test/%.c compat/windows/test/expect.h
	@mkdir -p $(SHIM)
	$(SHIM_CC) -O2 -Wall -Wextra -Werror -static -s -o $@ $< -lole32

.PHONY: setup
setup: bytecode native ## what running needs

.PHONY: setup-test
setup-test: build/.apt-TEST build/.venv-test bytecode native windows-shim

# --- the two commands -----------------------------------------------------------------------------
.PHONY: lab lab-down
lab: setup ## bring up examples/mixed-cluster.yaml (unless it is), check every path, print the table
	$(VENV)/bin/samewire lab show mixed >/dev/null 2>&1 || $(VENV)/bin/samewire lab up examples/mixed-cluster.yaml
	$(VENV)/bin/samewire lab check mixed
	@echo
	@echo 'The lab is up; docs/guides/quickstart.md goes on from here, `make lab-down` removes it. The commands above need'
	@echo '  export PATH="$(abspath $(VENV))/bin:$$PATH"'

lab-down: ## remove the lab and everything it made
	@[ -x $(VENV)/bin/samewire ] || { echo 'nothing is set up here'; exit 0; }; $(VENV)/bin/samewire lab down mixed

.PHONY: test lint test-fast test-kernels
lint: build/.venv-test build/.installed ## ruff, mypy --strict (tests too), import-linter
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test-fast: setup-test ## unit, property and Kubernetes source tests only: no root once set up
	$(PY) -m pytest tests/unit tests/property tests/apiserver

test: setup-test lint ## everything: linters, unit, property, kernel and end-to-end tests
	$(PY) -m pytest tests

test-kernels: setup-test build/.apt-KERNELS ## load and run the kernel tests on Debian's 6.1 and 6.12 under qemu
	tools/kernels/run

.PHONY: bench
bench: setup-test ## every figure beside its peer; CASES=cni,same-node QUICK=1 for a part
	$(PY) -m benchmarks $(if $(CASES),--cases $(CASES)) $(if $(QUICK),--quick)

.PHONY: clean
clean: ## remove what was built
	rm -rf build dist $(OUT) benchmarks/build
