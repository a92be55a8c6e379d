"""The documentation names what exists: links, commands, parameters, variables, messages, and the glossary's words."""

import ast
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
FRONT = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"]
PAGES = [ROOT / name for name in FRONT] + sorted((ROOT / "docs").rglob("*.md"))

SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)
GENERATED = {ROOT / "docs" / "reference" / name for name in generate.PAGES}
CODE = ("stages", "flows", "serving", "verdict")
WRITTEN = [page for page in PAGES if page not in GENERATED]

PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")
METRICS = {  # of a sweep
    "eval.preferences.reward.margin", "eval.assistant_loss.sft.nats_per_token", "pretrain.validation_loss", "sft.loss",
}  # fmt: skip
ADDED = {  # by recipes of extending.md
    "stages/downcast.py", "stages/corpus/reading/html_files.py",
}  # fmt: skip
BANNED = (  # the glossary's second column, and other spellings of one word
    "sets? aside", "quarantined?", "taken out", "twins?", "going on from",
    "(?:tokeni|optimi)s(?:e[drs]?|ers|ing|ation)",
    "(?:normali|initiali|seriali|summari|quanti|speciali|recogni)s(?:e[ds]?|ing)", "behaviours?", "colours?",
    "favour\\w*", "neighbours?", "licences?", "labelled", "modelling", "learnt", "whilst",
)  # fmt: skip


@cache
def text(page: Path) -> str:
    return generate.PAGES[page.name]() if page in GENERATED else page.read_text(encoding="utf-8")


@cache
def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, content) of each code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text(page), re.M | re.S)


@cache
def prose(page: Path) -> str:
    """Text without code blocks."""
    return re.sub(r"^```.*?^```", "", text(page), flags=re.M | re.S)


def spans(page: Path) -> list[str]:
    """Contents of inline code."""
    return re.findall(r"`([^`\n]+)`", prose(page))


@cache
def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as Python-Markdown and GitHub make them of plain ones."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_readme_has_at_most_150_lines():
    assert len(text(ROOT / "README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_links_point_to_files_and_anchors(page):
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        exists = target in GENERATED or target.exists()
        if not exists or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def test_every_page_is_in_the_navigation():
    def files(entries) -> set[str]:
        found = set()
        for entry in entries if isinstance(entries, list) else entries.values():
            found |= {entry} if isinstance(entry, str) else files(entry)
        return found

    nav = files(YAML(typ="safe").load(ROOT / "mkdocs.yml")["nav"])
    pages = {page for page in {*PAGES, *GENERATED} if page.is_relative_to(ROOT / "docs")}
    assert nav == {str(page.relative_to(ROOT / "docs")) for page in pages}


def commands(page: Path) -> list[list[str]]:
    """Commands of the code blocks and of inline code, in words."""
    lines = [
        line for language, block in blocks(page) if not language for line in block.replace("\\\n", "").splitlines()
    ]
    found = []
    for line in [*lines, *spans(page)]:
        for command in re.split(r"&&|\|(?!\|)", line):
            try:
                words = shlex.split(command, comments=True)
            except ValueError:
                continue
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            found += [words] if words else []
    return found


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {word for words in commands(page) if words[0] == "make" for word in words[1:] if "=" not in word}
    assert named - targets == set()


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_modules_exist(page):
    named = {words[2] for words in commands(page) if words[0].endswith("python") and words[1:2] == ["-m"]}
    named -= {"stages.NAME", "stages.X", "pip"}
    assert {name for name in named if not is_module(name)} == set()


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists() or name in ("ruff", "mypy", "pytest")


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_dvc_commands_and_stages_exist(page, monkeypatch):
    from dvc.cli.parser import get_main_parser

    monkeypatch.setattr("sys.argv", ["dvc"])  # which the parser reads while it is made
    (known,) = (action.choices for action in get_main_parser()._actions if isinstance(action.choices, dict))
    stages = {*YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]}
    wrong = []
    for words in commands(page):
        if words[0] == "dvc" and len(words) > 1 and words[1] not in known:
            wrong.append(words)
        named = (
            words[2:] if words[:2] == ["dvc", "repro"] else words[3:] if words[1:3] == ["-m", "flows.pipeline"] else []
        )
        names = [word for word in named if re.fullmatch(r"[a-z]+", word)]
        wrong += [words for name in names if name not in stages]
    assert wrong == []


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_parameters_exist(page):
    sections = "|".join(name for name, value in PARAMS.items() if isinstance(value, dict))
    key = re.compile(rf"((?:{sections})(?:\.[a-z][a-z_0-9]*)+)(?:[:= ].*)?")
    named = {match[1] for span in spans(page) if (match := key.fullmatch(span))}
    named |= {match[1] for words in commands(page) for word in words if (match := key.fullmatch(word))}
    files = re.compile(r".*\.(md|py|yaml|json|jsonl|csv|parquet)")
    assert {name for name in named - METRICS - ADDED if not files.fullmatch(name) and not is_parameter(name)} == set()


def is_parameter(name: str) -> bool:
    value = PARAMS
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_yaml_blocks_have_keys_of_params(page):
    for language, block in blocks(page):
        if language == "yaml" and not block.startswith(" "):
            found = YAML(typ="safe").load(block)
            assert {key for key in keys(found) if key not in {*keys(PARAMS)}} - ADDED == set()


def keys(value, prefix="") -> list[str]:
    """Dotted keys of sections, down to where users put names of their own."""
    if not isinstance(value, dict) or prefix.endswith(("weights.", "fields.", "_by.")):
        return []
    inner = [key for name, below in value.items() for key in keys(below, f"{prefix}{name}.")]
    return [*(f"{prefix}{name}" for name in value), *inner]


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_paths_exist(page):
    path = re.compile(r"(?:stages|flows|tests|benchmarks|docs|data|\.github)/[\w./-]*\w/?|[\w.-]+\.(?:md|toml|cff)")
    named = {span for span in spans(page) if path.fullmatch(span)} - ADDED
    made = {f"docs/reference/{name}" for name in generate.PAGES}
    assert {name for name in named - made if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_imports_of_python_blocks_exist(page):
    for language, block in blocks(page):
        if language == "python" and re.match('"""|from|import', block):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith(CODE):
                    file = ROOT / node.module.replace(".", "/")
                    code = (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text()
                    for alias in node.names:
                        assert re.search(rf"\b{alias.name}\b", code) or (file / f"{alias.name}.py").exists()


def test_variables_of_the_code_are_documented():
    read = set()
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            read |= set(re.findall(r"VERDICT_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8")))
    listed = set(re.findall(r"VERDICT_[A-Z_]*[A-Z]", text(ROOT / "docs/reference/environment.md")))
    assert listed == read


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_documented_variables_exist(page):
    listed = set(re.findall(r"VERDICT_[A-Z_]*[A-Z]", text(ROOT / "docs/reference/environment.md")))
    assert set(re.findall(r"VERDICT_[A-Z_]*[A-Z]", text(page))) - listed == set()


def test_messages_of_troubleshooting_are_those_of_the_code():
    known = " ".join(" ".join(literals(ROOT / folder)) for folder in CODE)
    known += " ".join([*(ROOT / "Makefile").read_text().split(), "Unable to read RWLock-file", "Server is pinned to"])
    # the last two are DVC's and transformers'
    wrong = []
    for row in re.findall(r"^\| (.*?) \| ", prose(ROOT / "docs/troubleshooting.md"), re.M):
        for span in re.findall(r"`([^`]+)`", row):
            pieces = [piece.strip(" :;,") for piece in re.split(r"\.\.\.|\b[A-Z]+\b", span)]
            wrong += [piece for piece in pieces if len(piece) > 9 and piece not in known]
    assert wrong == []


def literals(folder: Path) -> list[str]:
    """Strings of the code, each message as one line; what is filled in is left out."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(" ".join(node.value.split()))
    return found


def test_user_errors_are_all_listed():
    found = {"UserError"}
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r"^class (\w+)\(UserError\)", path.read_text(encoding="utf-8"), re.M))
    assert found == {*generate.USER_ERRORS}


def test_every_parameter_has_a_row():
    page = generate.parameters()
    assert [key for key in keys(PARAMS) if not isinstance(of(key), dict) and f"`{key}`" not in page] == []


def test_every_parameter_has_a_comment():
    comments = generate._comments((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert [key for key in keys(PARAMS) if not isinstance(of(key), dict) and not comments.get(key)] == []


def of(key: str):
    value = PARAMS
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_glossary_words(page):
    plain = re.sub(r"`[^`\n]*`|\]\([^)]*\)", " ", prose(page))
    assert re.findall(rf"\b(?:{'|'.join(BANNED)})\b", plain, re.I) == []


@pytest.mark.parametrize("folder", CODE)
def test_glossary_words_in_docstrings_and_messages(folder):
    """Strings that are text: with a space, so neither a key nor a path."""
    banned = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.I)
    lines = [
        f"{word}: {line[:100]}" for line in literals(ROOT / folder) if " " in line for word in banned.findall(line)
    ]
    assert lines == []


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_no_path_of_one_machine(page):
    assert re.findall(r"/(?:home|root|work)/\S*", text(page)) == []
