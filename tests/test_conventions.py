"""The rules of CONTRIBUTING.md that a reader of the syntax tree can hold without a reviewer."""

import ast
import functools
import graphlib
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
SHIPPED = ("cuda_ops", "models", "criterions", "megalodon_tasks", "recipes")
FOLDERS = (*SHIPPED, "benchmarks", "docs", "tests", "tools", ".ci")

# What each folder, or file of megalodon_tasks/ itself, may import; nothing else.
LEAVES = {"errors", "files", "option_types", "signals"}
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "option_types": set(),
    "signals": set(),
    "cuda_ops": set(),
    "models": {"cuda_ops", *LEAVES},
    "timm_model": {"models"},
    "criterions": {"cuda_ops", "models", *LEAVES},
    "data": LEAVES,
    "fairseq_compat": LEAVES,
    "configuration": {"models", *LEAVES},
    "runs": {"configuration", "models", "data", *LEAVES},
    "training": {"runs", "data", "models", "fairseq_compat", *LEAVES},
    "recipes": {"training", "data", "models", *LEAVES},
    "evaluation": {"runs", "data", "models", "cuda_ops", "fairseq_compat", *LEAVES},
    "hf": {"data", "models", *LEAVES},
    "cli": {"hf", "evaluation", "training", "runs", "configuration", "data", "models", *LEAVES}
    | {"fairseq_compat"},
}
# These look back, to register everything and to start the command.
LOOK_BACK = {"__init__", "registration", "__main__"}
# What is registered with fairseq; all else in models/ and cuda_ops/ needs torch only.
FAIRSEQ_MODELS = {f"models/fairseq_{name}.py" for name in ("models", "encoder", "seq2seq")}
# File -> what it may import besides.
EXCEPTIONS = {"models/released/files.py": {"safetensors"}}
TORCH_ONLY = {"torch", "megalodon_tasks", *sys.stdlib_module_names}


class Source:
    """One Python file: its name below the root, its top folder, its text and syntax tree."""

    def __init__(self, path: Path):
        self.name = path.relative_to(ROOT).as_posix()
        self.folder = self.name.split("/")[0]
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text, self.name)
        self.lines = len(self.text.splitlines())
        self.holds_kernels = path.name in ("triton_kernels.py", "triton_helpers.py")

    def functions(self) -> Iterator[ast.FunctionDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef))

    def at(self, node: ast.AST, rule: str) -> str:
        return f"{self.name}:{node.lineno}: {rule}"


@functools.cache
def sources(*folders: str) -> list[Source]:
    found = [Source(p) for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    assert found, f"no Python files below {folders}"
    return found


def none(violations: Iterator[str]) -> None:
    found = list(violations)
    assert not found, "\n" + "\n".join(found)


def length(function: ast.FunctionDef) -> int:
    return function.end_lineno - function.lineno + 1


def too_long() -> Iterator[str]:
    for source in sources(*FOLDERS):
        if source.lines > (600 if source.holds_kernels else 500):
            yield f"{source.name}: {source.lines} lines; is there a second job in it?"
        for function in source.functions():
            if length(function) > (140 if source.holds_kernels else 80):
                yield source.at(function, f"{function.name} has {length(function)} lines")


def test_no_file_or_function_is_too_long():
    none(too_long())


def test_most_files_and_functions_are_short():
    files = [source for source in sources(*SHIPPED) if not source.holds_kernels]
    long = [source.name for source in files if source.lines > 300]
    assert len(long) <= len(files) // 20, f"over 300 lines: {long}"
    lengths = [length(function) for source in files for function in source.functions()]
    assert statistics.median(lengths) <= 15
    assert statistics.quantiles(lengths, n=10)[-1] <= 50


def nested_targets() -> Iterator[str]:
    for source in sources("cuda_ops"):
        for node in ast.walk(source.tree if source.holds_kernels else ast.Module([], [])):
            targets = node.targets if isinstance(node, ast.Assign) else ()
            nested = (item for t in targets for item in getattr(t, "elts", ()))
            if any(isinstance(item, ast.Tuple) for item in nested):
                yield source.at(
                    node, "Triton 3.6 takes no tuple inside the target of an assignment"
                )


def test_kernels_are_in_the_language_of_the_oldest_triton():
    none(nested_targets())


def public_functions(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """Constructors, and functions and methods that are public like all classes around them."""
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", None) or "_"
        public = name == "__init__" or not name.startswith("_")
        if isinstance(child, ast.ClassDef) and public:
            yield from public_functions(child)
        elif isinstance(child, ast.FunctionDef) and public:
            yield child


# What makes a tensor in PyTorch's default dtype unless it is given one.
FACTORIES = {
    "empty",
    "eye",
    "full",
    "linspace",
    "logspace",
    "ones",
    "rand",
    "randn",
    "tensor",
    "zeros",
}


def without_dtype() -> Iterator[str]:
    for source in sources(*SHIPPED):
        calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call)]
        # Parameters are made in the default dtype, as those of PyTorch's modules are.
        parameters = [call for call in calls if ast.unparse(call.func) == "nn.Parameter"]
        exempt = {id(node) for call in parameters for node in ast.walk(call)}
        for call in calls:
            module, _, name = ast.unparse(call.func).rpartition(".")
            given = any(keyword.arg in ("dtype", None) for keyword in call.keywords)
            if module == "torch" and name in FACTORIES and not given and id(call) not in exempt:
                yield source.at(call, f"torch.{name} without a dtype")


def test_no_tensor_is_made_in_the_default_dtype():
    none(without_dtype())


def unannotated() -> Iterator[str]:
    for source in sources(*SHIPPED, "benchmarks"):
        if source.holds_kernels:
            continue
        for function in public_functions(source.tree):
            args = function.args
            each = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
            bare = [a.arg for a in each if a and not a.annotation and a.arg not in ("self", "cls")]
            if bare or function.returns is None:
                yield source.at(function, f"{function.name}: not annotated: {bare or 'result'}")


def test_public_functions_are_annotated():
    none(unannotated())


def has_text(error: ast.expr) -> bool:
    """Whether a raised exception is more than a class, or a class called without arguments."""
    if isinstance(error, ast.Call):
        return bool(error.args or error.keywords)
    return not (isinstance(error, ast.Name) and error.id[0].isupper())


def uninformative() -> Iterator[str]:
    for source in sources(*SHIPPED, "benchmarks"):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Assert) and node.msg is None:
                yield source.at(node, "assert without a text")
            elif isinstance(node, ast.Raise) and node.exc and not has_text(node.exc):
                yield source.at(node, "raise without a text")
            elif isinstance(node, ast.ExceptHandler) and node.type is None:
                yield source.at(node, "bare except")


def test_errors_say_what_happened():
    none(uninformative())


def test_most_errors_name_the_value():
    """Fixed text is enough only where the condition leaves one value, such as None or False."""
    trees = [source.tree for source in sources(*SHIPPED, "benchmarks")]
    raised = [n.exc for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Raise)]
    calls = [error for error in raised if isinstance(error, ast.Call)]
    fixed = [call for call in calls if all(isinstance(a, ast.Constant) for a in call.args)]
    assert len(fixed) <= len(calls) / 4, [ast.unparse(call) for call in fixed]


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Each imported name with its statement; relative ones start with a dot, stars end in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node, f"{module}.{alias.name}") for alias in node.names)


def misspelt_imports() -> Iterator[str]:
    siblings = set(SHIPPED) - {"megalodon_tasks"}
    for source in sources(*FOLDERS):
        for node, name in imports(source.tree):
            if name.split(".")[0] in {"", *siblings} or name.endswith("*"):
                yield source.at(node, f"{name}: write from megalodon_tasks.<folder> import <name>")


def test_imports_have_one_spelling():
    none(misspelt_imports())


def node(words: list[str]) -> str:
    """Return the folder, or the file beside the folders, that a path or a dotted name lies in."""
    words = words[1:] if words[0] == "megalodon_tasks" else words
    return words[0].removesuffix(".py") if words else "__init__"


@functools.cache
def arrows() -> dict[str, dict[str, str]]:
    """Return for each folder those that it imports, each with the first statement that does."""
    found: dict[str, dict[str, str]] = {}
    for source in sources(*SHIPPED):
        start = node(source.name.split("/"))
        if start in LOOK_BACK:
            continue
        ends = found.setdefault(start, {})
        for statement, name in imports(source.tree):
            end = node(name.split("."))
            inside = name.startswith("megalodon_tasks.") and end not in {"__version__", start}
            if inside and end not in LOOK_BACK:
                ends.setdefault(end, source.at(statement, f"{start} imports {name}"))
    return found


def test_no_folder_imports_one_that_imports_it():
    graphlib.TopologicalSorter(arrows()).prepare()


def test_imports_go_one_way():
    none(
        place
        for start, ends in arrows().items()
        for end, place in ends.items()
        if end not in MAY_IMPORT.get(start, set())
    )


def more_than_torch() -> Iterator[str]:
    for source in sources("cuda_ops", "models"):
        if source.name in FAIRSEQ_MODELS:
            continue
        triton = {"triton"} if source.name.split("/")[-1].startswith("triton_") else set()
        allowed = TORCH_ONLY | triton | EXCEPTIONS.get(source.name, set())
        for statement, name in imports(source.tree):
            if name.split(".")[0] not in allowed:
                yield source.at(statement, f"{name}: this folder may import torch only")


def test_ops_and_models_import_torch_only():
    none(more_than_torch())


# Written so that they do not find themselves.
UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|NotImplemented[E]rror)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|tmp|home)/")
TEXT = {".py", ".md", ".sh", ".yaml", ".toml", ".txt", ".csv", ""}


@pytest.mark.parametrize("pattern", [UNFINISHED, MACHINE_PATH], ids=["unfinished", "machine paths"])
def test_no_file_holds(pattern):
    below = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")))
    files = [path for path in (*ROOT.iterdir(), *below) if path.is_file() and path.suffix in TEXT]
    none(
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    )


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


# Settings for a corpus that is prepared by lm/text, so no script prepares it.
WITHOUT_SCRIPT = {"base", "pretrain_7b"}


def incomplete_recipes() -> Iterator[str]:
    recipes = [p for p in sorted(RECIPES.glob("*/*.yaml")) if p.stem not in WITHOUT_SCRIPT]
    assert recipes, "no recipe YAML in recipes/<family>/"
    for recipe in recipes:
        name, script = recipe.relative_to(ROOT), f"{recipe.stem.removesuffix('_demo')}.sh"
        option = " --demo" if recipe.stem.endswith("_demo") else ""
        if not recipe.with_name(script).is_file():
            yield f"{name}: no run script {script}"
        readme = read(recipe.with_name("README.md"))
        if option and f"{script}{option}" not in readme:
            yield f"{name}: README.md beside it does not show {script}{option}"
        elif not option and not re.search(rf"^\|.*\b{re.escape(script)}", readme, re.MULTILINE):
            yield f"{name}: README.md beside it has no table row about {script}"
    for path in sorted(RECIPES.rglob("*.yaml")):
        folder = path.parent.name
        if path.parent != RECIPES and path.parents[1] != RECIPES and folder != "settings":
            yield f"{path.relative_to(ROOT)}: fairseq finds recipes in recipes/<family>/ only"


def test_each_recipe_has_a_run_script_and_a_row_in_the_readme():
    none(incomplete_recipes())
