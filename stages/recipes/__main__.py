"""Recipes of the alignment-handbook as parameters of this repository.

python -m stages.recipes RECIPE.yaml             the parameter of each key, and the `dvc exp run` with them
python -m stages.recipes --write RECIPE.yaml     params.yaml is changed, and keeps its comments
--gpus 8                                         GPUs the recipe was written for (a batch is per device there)
--as sft|dpo|orpo                                the recipe's objective, where neither its folder nor its keys name it
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from stages.contract.errors import UserError, shorten
from stages.contract.params import load_params, validated
from stages.contract.yaml_file import parse_yaml, read_text, rewritten, scalar
from stages.recipes.settings import NOW

if TYPE_CHECKING:
    from stages.recipes.handbook import RecipeLine

PARAMS = Path("params.yaml")
HANDBOOK_GPUS = 8  # num_processes of recipes/accelerate_configs
LONGEST = 40  # characters of a value that are shown


def main(arguments: list[str] | None = None) -> int:
    """Translate a recipe. Exit code: 0 done, 1 it cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--gpus", type=int, default=HANDBOOK_GPUS)
    parser.add_argument("--as", dest="kind", choices=("sft", "dpo", "orpo"))
    given = parser.parse_args(arguments)
    try:
        _recipe(given.recipe, given.kind, given.gpus, given.write)
    except UserError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


def _recipe(path: Path, kind: str | None, gpus: int, write: bool) -> None:
    from stages.recipes import handbook

    if gpus < 1:
        raise UserError(f"--gpus: {gpus} is not allowed. It should be a whole number from 1 on.")
    recipe, present = read_recipe(path), load_params(PARAMS)
    kind = kind or handbook.objective(recipe, path)
    try:
        lines = handbook.translate(recipe, kind, gpus, present.pack.row_tokens)
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    text = PARAMS.read_text(encoding="utf-8")
    wanted = {param: value for line in lines for param, value in line.params.items()}
    changed = changes(text, wanted, path)
    print(f"{path}: a recipe for {kind}\n")
    print("\n".join(_shown(line) for line in lines) + "\n")
    if shared := [param for param in changed if not param.startswith(("sft.", "dpo.", "data."))]:
        print(f"Read by pretrain too, which runs again: {', '.join(shared)}.")
    if not changed:
        print("params.yaml says all of that already.")
    elif write:
        PARAMS.write_text(rewritten(text, changed), encoding="utf-8")
        print(f"{PARAMS}: changed {', '.join(changed)}.")
    else:
        print(" ".join(["dvc exp run", *(f"-S {shlex.quote(f'{p}={scalar(v)}')}" for p, v in changed.items())]))


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the recipe's keys. Raises UserError: no such file, not YAML, no keys in it."""
    try:
        found = parse_yaml(read_text(path), path)
    except FileNotFoundError as e:
        raise UserError(f"{path}: {e.strerror}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected keys and values, found {type(found).__name__}.")
    return found


def changes(text: str, wanted: dict[str, object], path: Path) -> dict[str, object]:
    """Those of ``wanted``, dotted names, that differ from params.yaml, whose ``text`` this is.

    Raises:
        UserError: a value that params.yaml may not have; it is named with ``path``.
    """
    raw, found = YAML(typ="safe").load(text), {}
    for param, value in wanted.items():
        *sections, name = param.split(".")
        section = raw
        for part in sections:
            section = section[part]
        if section[name] != value:
            found[param] = section[name] = value
    validated(raw, path)
    return found


def _shown(line: "RecipeLine") -> str:
    renamed = f" (now {NOW[line.key]})" if line.key in NOW else ""
    params = ", ".join(f"{param}={scalar(found)}" for param, found in line.params.items())
    right = f"{params}{': ' if params and line.note else ''}{line.note}"
    return f"  {line.key}{renamed}: {shorten(line.value, LONGEST)}\n      {'→' if params else '-'} {right}"


if __name__ == "__main__":
    sys.exit(main())
