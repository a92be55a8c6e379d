# make run    run the pipeline on the data named in params.yaml; stages that are up to date do not run again
# make check  the data named in params.yaml: form, counts, lengths, samples; seconds a GB, nothing is trained
# make test   the tests
# Both create the environment in .venv first, once.
# make serve  Prefect, MLflow and a worker on this machine, until Ctrl-C; make serve-team: on PostgreSQL, see docs.
#             Elsewhere than on ports 4200 and 5000: make serve PORTS="--prefect-port 4300 --mlflow-port 5100"
# make retrain  train on new data from inbox/, and promote the model if it is better; make serve does it every night
# make chat   talk to the model in the terminal; options: make chat ARGS="--model out/sft --beside out/pretrain"
# make api    the model by OpenAI's API on port 8000; options as for chat: ARGS="--port 8001"
# make export the model for vLLM, llama.cpp and Ollama, in export/; options: ARGS="--gguf q8_0 --license MIT"
# make verdict  measure each technique against its claim on this hardware, for VERDICT_MINUTES (30); again: the rest
# make adopt  write the best measured switches into params.yaml, after showing the change and asking
# make docs   the documentation, in site/
# make gpu    adds FlashAttention 4, for an H100 or newer
.DEFAULT_GOAL := run
.PHONY: run check test docs serve serve-team retrain chat api export verdict adopt gpu lock clean
VENV := .venv
PY := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Without byte code every stage pays seconds for its imports.
unexport PYTHONDONTWRITEBYTECODE

run: $(VENV)/.installed
	@$(PY) -m flows.pipeline

check: $(VENV)/.installed
	@$(PY) -m stages.check > /dev/null && cat reports/check/overview.txt  # which has the same lines, and samples

test: $(VENV)/.installed
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m mypy
	@said=$$($(VENV)/bin/lint-imports --no-cache) || { echo "$$said"; exit 1; }
	@$(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

docs: $(VENV)/.installed
	@$(PY) docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

retrain: $(VENV)/.installed
	@$(PY) -m flows.retrain || [ $$? -eq 3 ]  # 3: refused by the gate, which is an answer

chat: $(VENV)/.installed
	@$(PY) -m serving.chat $(ARGS)

api: $(VENV)/.installed
	@$(PY) -m serving.api $(ARGS)

export: $(VENV)/.installed
	@$(PY) -m serving.export $(ARGS)

verdict: $(VENV)/.installed
	@$(PY) -m dvc repro -q pack  # the rows that short trainings read
	@$(PY) -m verdict.run

adopt: $(VENV)/.installed
	@$(PY) -m verdict.adopt $(ARGS)

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
	@bash -o pipefail -c '$(VENV)/bin/uv pip install --python $(PY) --require-hashes -r requirements.lock 2>&1 \
	    | { grep -v "^ [+] " || true; }'  # 345 lines, one a package
	@touch $@

gpu: $(VENV)/.installed
	@$(VENV)/bin/uv pip install --python $(PY) --require-hashes -r requirements-gpu.lock
	@$(PY) -c 'from stages.trainer.model.flash4 import build; build()'

LOCK := $(VENV)/bin/uv pip compile pyproject.toml --universal --generate-hashes --no-header --no-emit-index-url -q
lock: $(VENV)/.installed  ## after a change to pyproject.toml
	@$(LOCK) --extra dev --extra docs --extra cluster -o requirements.lock
	@cp requirements.lock requirements-gpu.lock && $(LOCK) --extra dev --extra docs --extra cluster --extra gpu -o requirements-gpu.lock

clean:  ## everything a run made; the data and the environment stay
	rm -rf out reports .dvc/cache .dvc/cache-checkpoints .dvc/tmp .verdict mlflow.db mlruns dvc.lock verdict/results verdict/dvc.lock verdict/hardware.json
