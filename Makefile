# Two commands matter: `make demo` (the main job on real input) and `make test` (everything).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONTRACTS := $(shell find protos -name '*.proto' -o -name 'generate.py')
# One more than there are cores, since tests wait for servers; five at most.
PROCESSES ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 4 ? cores + 1 : 5)))
PIP := $(BIN)/pip --disable-pip-version-check install --quiet

.PHONY: demo up test lint stubs contracts-baseline clean

demo: $(VENV)/serve.stamp ## start the cluster on loopback, send objects, show the verdicts, verify the log (INPUT=folder for your own)
	$(BIN)/stepwedge demo $(if $(INPUT),--input "$(INPUT)")

up: $(VENV)/serve.stamp ## start the cluster and leave it running
	$(BIN)/stepwedge up

test: $(VENV)/test.stamp ## every test, on SQLite and on a real PostgreSQL, with real sockets
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/lint.stamp ## style, types, import contracts, gRPC contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint
	cd protos && ../$(BIN)/buf breaking --against released.binpb

stubs: $(VENV)/serve.stamp ## generate the gRPC stubs again
	$(BIN)/pip --disable-pip-version-check install --quiet grpcio-tools==1.85.1 mypy-protobuf==5.1.0
	$(BIN)/python protos/generate.py

contracts-baseline: $(VENV)/lint.stamp ## at a release: what later contracts may not break
	cd protos && ../$(BIN)/buf build -o released.binpb

clean: ## remove the virtual environment and everything generated
	rm -rf $(VENV) stepwedge build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.stamp: $(VENV)/bin/python pyproject.toml setup.py $(CONTRACTS)
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/serve.stamp: EXTRAS := serve
$(VENV)/test.stamp: EXTRAS := serve,train,test
$(VENV)/lint.stamp: EXTRAS := serve,train,test,lint
