"""``-S KEY=VALUE``: values of params.yaml from the command line, by DVC's code and Hydra's grammar.

A mapping is parsed as YAML: Hydra knows no quoted keys, so it would refuse `{"web/*": 0.5}`.
"""

import difflib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from stages.contract.errors import UserError, one_line
from stages.contract.files import atomic_write
from stages.contract.params import load_params
from stages.contract.yaml_file import read_text


@contextmanager
def override(params: Path, overrides: list[str]) -> Iterator[None]:
    """Set ``overrides`` ("dpo.beta=0.2", Hydra's grammar) in the file ``params``, comments kept, with DVC's own code.

    They stay there, as after `dvc exp run -S`: outs in the workspace and params.yaml belong together. Only if the
    block raises a UserError does the file get its old text back.

    Raises:
        UserError: an unknown key, or an invalid override.
    """
    from dvc.exceptions import DvcException

    if not params.is_file():
        load_params(os.path.relpath(params))  # raises, with advice
    before = read_text(params) if overrides else ""
    try:
        if overrides:
            _apply(params, overrides)
        yield
    except (DvcException, UserError) as e:
        if overrides:
            params.write_text(before, encoding="utf-8")
        raise e if isinstance(e, UserError) else UserError(f"-S {' '.join(overrides)}: {one_line(e)}") from None


def _apply(params: Path, overrides: list[str]) -> None:
    """Write ``overrides`` to the file ``params``, all or none, and keep its comments."""
    from dvc.utils.hydra import apply_overrides
    from dvc.utils.serialize import modify_yaml

    values = YAML(typ="safe").load(params.read_text(encoding="utf-8"))
    for text in overrides:
        key, equals, _ = text.partition("=")
        if equals and not key.startswith(("+", "~")):  # Hydra's for keys that are added and removed
            find_key(values, key, text)
    mappings = {text: value for text in overrides if (value := _mapping(text)) is not None}
    with atomic_write(params) as part:  # a full disk must not cost the file
        shutil.copy(params, part)
        if others := [text for text in overrides if text not in mappings]:
            apply_overrides(part, others)
        if mappings:
            with modify_yaml(part) as written:
                for text, value in mappings.items():
                    section, name = find_key(written, text.partition("=")[0], text)
                    section[name] = value


def _mapping(text: str) -> dict[str, Any] | None:
    """Return the value of the override ``text`` if it changes a key to a mapping."""
    key, _, value = text.partition("=")
    if not value.startswith("{") or key.startswith(("+", "~")):
        return None
    try:
        return YAML(typ="safe").load(value)
    except YAMLError:
        return None


def find_key(values: dict[str, Any], key: str, text: str) -> tuple[dict[str, Any], str]:
    """Return the section of params.yaml's ``values`` that holds the dotted ``key``, and the key's name there.

    Raises:
        UserError: it is not there; the line quotes ``text``, the argument of -S, and names keys that are.
    """
    *sections, last = key.split(".")
    section: Any = values
    for depth, name in enumerate([*sections, last]):
        if not isinstance(section, dict) or name not in section:
            place, names = ".".join(sections[:depth]), [str(n) for n in section] if isinstance(section, dict) else []
            close = [".".join([*sections[:depth], n]) for n in difflib.get_close_matches(name, names, 1)]
            raise UserError(
                f"-S {text}: params.yaml has no key {key}. "
                + (f"Did you mean {close[0]}? " if close else "")
                + (f"{place or 'Its top level'} has {', '.join(names)}." if names else f"{place} has no keys.")
            )
        if depth < len(sections):
            section = section[name]
    return section, last
