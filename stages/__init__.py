"""The stages of dvc.yaml, one module each, and the rooms they call."""

import importlib.util
import sys

if importlib.util.find_spec("pydantic") is None:
    sys.exit(
        f"{sys.executable} has none of the packages in requirements.lock.\n"
        "Run `make run`, or `source .venv/bin/activate` before `dvc repro`."
    )
