"""Laws of the house that no running program shows: which part may know which, and what may not be written at all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HOUSES = {  # a library and the only places that may import it
    "dagster": ["orchestration"],
    "mlflow": ["src/noise2next/registry"],
    "great_expectations": ["src/noise2next/data/validation.py"],
    "ibis": ["src/noise2next/data"],
    "duckdb": ["src/noise2next/data"],
    "pyspark": ["src/noise2next/data"],
    "optuna": ["src/noise2next/stages/tune.py"],
    "fastapi": ["src/noise2next/serving"],
    "uvicorn": ["src/noise2next/serving"],
    "prometheus_client": ["src/noise2next/serving"],
    "dvc": [],  # called as a program
}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_LOADS = {"torch.load", "torch.save", "np.load", "numpy.load", "yaml.load"}


@pytest.fixture(scope="module")
def programs(repository) -> dict[str, ast.Module]:
    """Every module that a person runs, parsed, by its path."""
    found = [path for folder in ("src", "orchestration", "benchmarks") for path in (repository / folder).rglob("*.py")]
    return {path.relative_to(repository).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in found}


def imported(program: ast.Module) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(program):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def dotted(node: ast.expr) -> str:
    """`torch.load` as text; empty for anything that is not a plain dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def calls(program: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(program) if isinstance(node, ast.Call)]


def test_imports_go_one_way(repository):
    """The contracts of [tool.importlinter]: errors <- config <- workspace <- data ... <- cli | orchestration."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("library", HOUSES)
def test_each_tool_lives_in_its_one_place(programs, library):
    places = HOUSES[library]
    elsewhere = [
        path
        for path, program in programs.items()
        if not path.startswith("benchmarks/")
        and library in imported(program)
        and not any(path == place or path.startswith(f"{place}/") for place in places)
    ]
    assert elsewhere == []


def test_nothing_pickles(programs):
    assert [path for path, program in programs.items() if imported(program) & UNSAFE_MODULES] == []


def test_no_file_is_loaded_in_a_way_that_could_run_it(programs):
    """No torch.load, no yaml.load; numpy only with allow_pickle=False said."""
    found = []
    for path, program in programs.items():
        for call in calls(program):
            safe = {(word.arg, getattr(word.value, "value", None)) for word in call.keywords}
            if dotted(call.func) in UNSAFE_LOADS and ("allow_pickle", False) not in safe:
                found.append(f"{path}:{call.lineno}")
    assert found == []


def test_no_text_is_run_as_a_program(programs):
    found = [
        f"{path}:{call.lineno}"
        for path, program in programs.items()
        for call in calls(program)
        if isinstance(call.func, ast.Name) and call.func.id in UNSAFE_CALLS
    ]
    assert found == []


def test_no_error_is_swallowed_unnamed_but_where_one_model_serves_and_another_is_fetched(programs):
    broad = {"Exception", "BaseException"}
    found = [
        path
        for path, program in programs.items()
        for node in ast.walk(program)
        if isinstance(node, ast.ExceptHandler) and (node.type is None or dotted(node.type) in broad)
    ]
    assert found == ["src/noise2next/serving/following.py"] * 2  # whatever goes wrong there is logged, and it goes on


def test_the_folder_mlflow_has_no_python(repository):
    """With an __init__.py in it, `import mlflow` would find this folder."""
    assert list((repository / "mlflow").rglob("*.py")) == []


def test_tests_are_no_package(repository):
    """tests/orchestration would take the place of orchestration."""
    assert list((repository / "tests").rglob("__init__.py")) == []


def test_the_graph_keeps_its_real_annotations(repository):
    """Dagster reads types, not their text."""
    postponed = "from __future__ import annotations"
    assert [p.name for p in (repository / "orchestration").glob("*.py") if postponed in p.read_text()] == []


def test_only_the_workspace_spells_where_derived_files_lie(programs):
    spelled = ("artifacts/", "mlflow.db", "mlartifacts")
    found = [
        f"{path}:{node.lineno}"
        for path, program in programs.items()
        if path.startswith(("src/", "orchestration/")) and path != "src/noise2next/workspace.py"
        for node in ast.walk(program)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(spelled)
    ]
    assert found == []
