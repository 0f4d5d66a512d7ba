# make setup | demo | test | bench | lint. Everything a fresh Debian 12 machine lacks is installed by make setup, as root.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(shell sed 's/\#.*//' packages.txt)
VM_PACKAGES := qemu-system-x86 busybox-static kmod xz-utils
DIST := /usr/lib/python3/dist-packages
export UV_NO_PROGRESS := 1

define install-missing-now
missing=$$(for p in $(1); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
if [ -n "$$missing" ]; then \
  [ "$$(id -u)" = 0 ] || { echo "these Debian packages are missing and installing them needs root:" $$missing >&2; exit 1; }; \
  echo "installing Debian packages:" $$missing; \
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
fi
endef
define install-missing
@$(call install-missing-now,$(1))
endef

.PHONY: setup demo attacks bench fuzz test test-vm test-image test-clients test-site test-newcomer client-table docs lint proto \
  lock clean chart-docs dataplane-table architecture manifests pictures

setup: $(VENV)/.ready

# bcc's binding comes with Debian's python3 and nowhere else, so the environment is made from that python3, and that
# package (and no other) is linked into it.
$(VENV)/.ready: pyproject.toml requirements.lock packages.txt
	$(call install-missing,$(PACKAGES))
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "installing Python packages into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	ln -sfn $(DIST)/bcc $$site/bcc
	@# helm-python-sdk's wheel can't hold symlinks, and brings one library of 81 MB under three names.
	@cd $(VENV)/lib/python3.*/site-packages/helm_python/lib && real=$$(ls libhelm_c.so.*.*.*) && \
	  ln -f "$$real" libhelm_c.so.0 && ln -f "$$real" libhelm_c.so
	@touch $@

proto: setup
	$(BIN)/python -m grpc_tools.protoc -Ikiam/rpc=proto --python_out=. --grpc_python_out=. --mypy_out=. \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy kiam/rpc/kiam.proto

lock:
	$(BIN)/uv pip compile --quiet --no-emit-index-url --no-emit-find-links --generate-hashes --python-version 3.11 \
	  --extra server --extra dev --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --no-emit-index-url --no-emit-find-links --generate-hashes --python-version 3.11 \
	  --constraint requirements.lock --output-file deploy/requirements-agent.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --no-emit-index-url --no-emit-find-links --generate-hashes --python-version 3.11 \
	  --constraint requirements.lock --extra server --output-file deploy/requirements-server.txt pyproject.toml
	echo hatchling | $(BIN)/uv pip compile --quiet --no-emit-index-url --no-emit-find-links --generate-hashes \
	  --python-version 3.11 --constraint requirements.lock --output-file deploy/requirements-build.txt -

# The parameter table in the chart's README, from the comments in its values.yaml.
chart-docs: setup
	$(BIN)/python -m tests.deploy.generate docs

# The pictures of the code's layers in docs/architecture.md, from import-linter's contracts.
architecture: setup
	$(BIN)/python -m tests.docs.layers

# What each dataplane declares of itself, in docs/dataplanes.md.
dataplane-table: setup
	$(BIN)/python -m tests.docs.dataplanes

# deploy/manifests, from the chart.
manifests: setup
	$(BIN)/python -m tests.deploy.generate manifests

# One node, its pods, and who gets whose role: make demo DATAPLANE=iptables|nftables|ebpf
DATAPLANE ?= iptables
demo: setup
	@$(BIN)/python -m tests.sandbox.demo --dataplane "$(DATAPLANE)"

# docs/images: what the demo and kiam dataplane verify print, as SVG.
pictures: setup
	$(BIN)/python -m tests.sandbox.pictures

# The parallel tests first, then those that need the machine to themselves.
test: setup
	$(BIN)/pytest -n 4 --dist=loadgroup --no-loadscope-reorder -q -m "not serial and not vm and not image and not clients and not site and not newcomer"
	$(BIN)/pytest -q -m "serial"

# The Dockerfile's own steps in a debootstrap folder, and what they made, confined as the chart confines it.
test-image: setup
	$(call install-missing,debootstrap)
	$(BIN)/pytest -q -s -m "image"

# Real AWS clients, from PyPI, npm and Debian: installs them (about 0.9 GB below .clients, and Debian packages), tries each, and
# compares what they did with the table in README.md; make client-table writes it.
test-clients: setup
	@$(BIN)/python -m tests.clients.kits
	$(BIN)/pytest -n 2 -q tests/clients
	@$(BIN)/python -m tests.clients.readme --check

client-table: setup
	@$(BIN)/python -m tests.clients.readme

# README.md and docs/getting-started.md, step by step, on a minimal Debian 12 in a folder; from the last commit.
test-newcomer: setup
	$(call install-missing,debootstrap)
	$(BIN)/pytest -q -s -m newcomer

# What somebody else controls, thrown at what reads it, guided by coverage: make fuzz FUZZ_SECONDS=600 FUZZ_TARGETS="watch agent"
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=
ATHERIS := 3.0.0
fuzz: setup
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/uv pip install --quiet --python $(BIN)/python atheris==$(ATHERIS)
	@$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS)

# Other kernels, in QEMU (the harness's own tests first): make test-vm KERNELS="5.10 6.1 6.12 newest"
KERNELS ?= 5.10 6.1 6.12 newest
test-vm: setup
	$(call install-missing,$(VM_PACKAGES))
	$(BIN)/pytest -q -m vm
	$(BIN)/python -m tests.vm $(foreach kernel,$(KERNELS),--kernel $(kernel))

# Every way to instance metadata, tried by dataplane; the table goes into docs/security.md.
attacks: setup
	$(BIN)/python -m tests.attacks.table

# Figures: make bench SECTIONS="node agent dataplanes server start strangers fairness fanout identity"; a table, and JSON in bench.json
SECTIONS ?=
bench: setup
	@$(BIN)/python -m tests.bench $(SECTIONS)

# The documentation as a site, in site/; a broken link fails.
docs: setup .site/mermaid.min.js
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

MERMAID := 11.17.2
.site/mermaid.min.js: Makefile
	@command -v npm >/dev/null || { $(call install-missing-now,npm); }
	@mkdir -p .site && cd .site && npm pack --silent mermaid@$(MERMAID) >/dev/null && \
	  tar --extract --touch --file mermaid-$(MERMAID).tgz --strip-components=2 package/dist/mermaid.min.js && \
	  rm mermaid-$(MERMAID).tgz

# The site in Chromium: every diagram is drawn, nothing is fetched from elsewhere, no link is broken.
test-site: docs
	$(call install-missing,chromium)
	$(BIN)/pytest -q -m site

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) .clients .site fuzz/found build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
