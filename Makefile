# Two commands on a fresh machine: `make demo` fits, evaluates and meshes the built-in scene; `make test` passes the tests.
# Each makes its own virtual environment (.venv) and does nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
SECONDS ?= 45
# A machine without a CUDA device wants torch's CPU build; name another torch with TORCH="torch==2.9.0".
TORCH ?= torch==2.13.0
SOURCES := pyproject.toml CMakeLists.txt $(wildcard cuda/kernels/*.cu cuda/include/*.h cuda/cpu/*.cpp)

.PHONY: demo test lint format clean

demo: $(VENV)/.demo
	$(BIN)/polyfield fit ngp demo --run $(RUN) --seconds $(SECONDS) --overwrite
	$(BIN)/polyfield evaluate $(RUN)
	$(BIN)/polyfield extract $(RUN) --output $(RUN)/mesh.glb
	$(BIN)/polyfield render $(RUN) --views orbit --frames 60 --output $(RUN)/orbit.mp4
	@echo
	@echo "Pictures: $(RUN)/contact_sheet.png and $(RUN)/orbit.mp4"
	@echo "Mesh:     $(RUN)/mesh.glb"
	@echo "Viewer:   $(BIN)/polyfield view $(RUN)"

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# torch first and by itself, so that the packages that need it find it there.
$(VENV)/.torch: | $(BIN)/python
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)" || $(BIN)/python -m pip install --quiet torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --config-settings=cmake.define.POLYFIELD_ISAS=native --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --config-settings=cmake.define.POLYFIELD_ISAS=all --editable ".[test,cuda]"
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build runs .pytest_cache .ruff_cache .mypy_cache
