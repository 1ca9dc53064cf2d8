"""Commands in the documentation exist: scripts, make targets, modules, configurations, folders."""

import contextlib
import functools
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from megalodon_tasks.cli.main import COMMANDS, main
from megalodon_tasks.cli.prepare import MODULES

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "criterions", "cuda_ops", "megalodon_tasks", "models", "recipes", "tests")
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
BLOCK = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the shell blocks of a document."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|\|?|;", line.removeprefix("$ ")):
                if words := shlex.split(command, comments=True):
                    yield words


def is_ours(word: str) -> bool:
    """Whether a word is a path into one of the project's folders."""
    return word.split("/")[0] in FOLDERS and ("/" in word or (ROOT / word).exists())


def module_exists(module: str) -> bool:
    below = module.removeprefix("megalodon_tasks.").replace(".", "/")
    places = [ROOT / below, ROOT / module.replace(".", "/")]
    return any(p.with_suffix(".py").is_file() or (p / "__init__.py").is_file() for p in places)


@functools.cache
def help_of(*words: str) -> str:
    """What ``megalodon ... --help`` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue()


def wrong_words(words: list[str]) -> Iterator[str]:
    """The subcommand, recipe or options of a ``megalodon`` command that do not exist."""
    subcommand, *others = words
    if subcommand == "--help":
        return
    if subcommand not in COMMANDS:
        yield f"megalodon {subcommand}"
        return
    second = others[:1] if subcommand in ("prepare", "convert") else []
    if subcommand == "prepare" and second[0] not in MODULES:
        yield f"recipe {second[0]}"
        return
    known = set(re.findall(r"--[a-z][a-z_-]*", help_of(subcommand, *second))) | {"--demo"}
    yield from (w for w in others if w.startswith("--") and w.split("=")[0] not in known)


def mistakes(words: list[str]) -> Iterator[str]:
    """What a command names that does not exist."""
    if words[0] == "megalodon":
        yield from wrong_words(words[1:])
    if words[0] == "make":
        yield from (w for w in words[1:] if re.fullmatch("[a-z-]+", w) and w not in TARGETS)
    yield from (w for w in words if is_ours(w) and not (ROOT / w.split("::")[0]).exists())
    options = dict(zip(words, words[1:], strict=False))
    module = options.get("-m", "")
    if module.split(".")[0] in FOLDERS and not module_exists(module):
        yield f"-m {module}"
    if "--config-name" in options:
        config = Path(options.get("--config-dir", ""), options["--config-name"] + ".yaml")
        if not (ROOT / config).is_file():
            yield f"configuration {config}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(document):
    wrong = [
        f"{shlex.join(words)}: there is no {mistake}"
        for words in commands(document.read_text("utf-8"))
        for mistake in mistakes(words)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_linked_files_exist(document):
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text("utf-8"))
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing


def test_readme_states_the_two_commands():
    first_words = {tuple(words[:2]) for words in commands((ROOT / "README.md").read_text("utf-8"))}
    assert {("make", "demo"), ("make", "test")} <= first_words


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("make demo test  # both", []),
        ("make tset", ["tset"]),
        ("bash recipes/nowhere.sh data run", ["recipes/nowhere.sh"]),
        ("cd x && python -m benchmarks.nothing", ["-m benchmarks.nothing"]),
        ("megalodon prepare lra/text DATA OUT --subset --generate", ["--generate"]),
        ("megalodon prepare lra/texts DATA OUT", ["recipe lra/texts"]),
        ("megalodon trian --data DATA", ["megalodon trian"]),
        ("x --config-dir models \\\n --config-name lost", ["configuration models/lost.yaml"]),
    ],
)
def test_this_test_sees_mistakes(line, wrong):
    found = [m for words in commands(f"```bash\n{line}\n```\n") for m in mistakes(words)]
    assert found == wrong
