# Two commands on a fresh machine:  make run  boots Debian's RISC-V kernel to a shell,
#                                   make test runs everything there is to run.
# Neither needs root; everything lands in .venv and in the user's cache folder.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.run
DEV_STAMP := $(VENV)/.dev

.PHONY: run test lint types unit abi guest guest-aia guest-plic examples lab-tests bench clean

run: $(RUN_STAMP)
	@$(BIN)/pyvmm run $(ARGS)

test: lint types unit abi guest examples lab-tests

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP)
	$(BIN)/mypy

# In parallel, but each file in one process: some of them count over all their tests.
unit: $(DEV_STAMP)
	$(BIN)/pytest -n auto --dist loadfile tests/model tests/unit tests/test_layering.py

abi: $(DEV_STAMP)
	$(BIN)/pytest tests/abi

# Real guests on real RISC-V KVM: one emulated host at a time.
guest: guest-aia guest-plic

guest-aia: $(DEV_STAMP)
	scripts/guest-tests aia

guest-plic: $(DEV_STAMP)
	scripts/guest-tests plic -m 'not long'

# The pytest plugin as its users have it: pytest runs here, its guests wherever there is RISC-V KVM.
examples: $(DEV_STAMP)
	$(BIN)/pytest --vmm-require-kvm examples

lab-tests: $(DEV_STAMP)
	$(BIN)/pytest tests/lab; code=$$?; $(BIN)/pyvmm lab stop; exit $$code

bench: $(DEV_STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	-$(BIN)/pyvmm lab stop
	rm -rf $(VENV) build dist *.egg-info

$(RUN_STAMP): pyproject.toml setup.py $(wildcard pyvmm/_native*.[pch]*) scripts/make-venv
	$(PYTHON) scripts/make-venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
