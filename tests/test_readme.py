"""The README says what was measured, and names what is there."""

import importlib.util
import re

import pytest
from tests.shop import command


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def test_every_number_in_the_readme_was_written_by_its_program(repository, readme):
    specification = importlib.util.spec_from_file_location("readme", repository / "benchmarks" / "readme.py")
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    assert program.filled(readme) == readme


def test_every_file_that_the_readme_links_to_is_there(repository, readme):
    linked = re.findall(r"\]\(([^)#:]+)\)", readme)
    assert linked
    assert [path for path in linked if not (repository / path).exists()] == []


def test_every_command_that_the_readme_names_exists(readme, tmp_path):
    named = set(re.findall(r"noise2next ((?:datasets )?[a-z]+)", readme)) | {"run"}
    for one in sorted(named):
        assert command(tmp_path, *one.split(), "--help").returncode == 0, one


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile(repository, readme):
    makefile = (repository / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)", readme):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
