# make run    the whole pipeline on the data named in params.yaml
# make test   the tests
# Both make the environment in .venv first; when it is already there, nothing is installed.
# make serve  Prefect, MLflow and a worker on this machine, until Ctrl-C; make serve-team: on PostgreSQL.
#             Elsewhere than on ports 4200 and 5000: make serve PORTS="--prefect-port 4300 --mlflow-port 5100"
# make retrain  new data from inbox/, what changed runs, and the better model is champion; as every night with make serve
# make gpu    adds what the fast path of an H100 or newer wants
.DEFAULT_GOAL := run
.PHONY: run test serve serve-team retrain gpu lock clean
VENV := .venv
PY := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Without byte code every stage pays seconds for its imports.
unexport PYTHONDONTWRITEBYTECODE

run: $(VENV)/.installed
	@$(PY) -m flows.pipeline

test: $(VENV)/.installed
	@$(PY) -m ruff check .
	@$(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

retrain: $(VENV)/.installed
	@$(PY) -m flows.retrain

serve: $(VENV)/.installed
	@$(PY) -m flows.serve $(PORTS)

serve-team: $(VENV)/.installed
	@$(PY) -m flows.serve --team $(PORTS)

$(VENV)/.installed: requirements.lock
	@for p in "$(PYTHON)" python3 python3.13 python3.12 python3.11; do \
	    [ -n "$$p" ] && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; p=; \
	done; \
	[ -n "$$p" ] || { echo "No Python 3.11 or newer found. Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	echo "Making the environment in $(VENV) with $$($$p -V) (about 6 GB: torch brings its CUDA libraries)"; \
	$$p -m venv --clear $(VENV) || { echo "'$$p -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PY) -m pip install -q --disable-pip-version-check 'uv>=0.8,<1'
	@$(VENV)/bin/uv pip install --python $(PY) --require-hashes -r requirements.lock
	@touch $@

gpu: $(VENV)/.installed
	@$(VENV)/bin/uv pip install --python $(PY) --require-hashes -r requirements-gpu.lock
	@$(PY) -c 'from stages.trainer.flash4 import build; build()'

LOCK := $(VENV)/bin/uv pip compile pyproject.toml --universal --generate-hashes --no-header --no-emit-index-url -q
lock: $(VENV)/.installed  ## after a change to pyproject.toml
	@$(LOCK) --extra dev --extra cluster -o requirements.lock
	@cp requirements.lock requirements-gpu.lock && $(LOCK) --extra dev --extra cluster --extra gpu -o requirements-gpu.lock

clean:  ## everything a run made; the data and the environment stay
	rm -rf out reports .dvc/cache .dvc/cache-checkpoints .dvc/tmp .verdict mlflow.db mlruns dvc.lock
