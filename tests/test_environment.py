"""What a checkout says of itself: pins in one place, workflows on the same targets, nothing of one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import igpt
from igpt.project import REPOSITORY

PINS = {
    canonicalize_name(name): pin
    for name, pin in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> list[Requirement]:
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group if not r.startswith("igpt")]
    return [Requirement(text) for text in PROJECT["dependencies"] + extras]


def test_every_line_of_the_constraints_is_an_exact_public_version() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(PINS)
    assert not [line for line in lines if "+" in line]


def test_every_requirement_is_pinned_and_its_pin_satisfies_it() -> None:
    for requirement in requirements():
        pin = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), requirement


def test_every_pin_takes_the_oldest_python_we_promise() -> None:
    oldest = "3.11.2"  # Debian 12's; a pin that wants 3.11.5 sent its resolver round in circles
    for name in PINS:
        wants = metadata(name).get("Requires-Python")
        assert not wants or SpecifierSet(wants).contains(oldest), (name, wants)


def test_what_is_installed_is_what_is_pinned() -> None:
    for requirement in requirements():
        installed = version(requirement.name).partition("+")[0]
        assert installed == PINS[canonicalize_name(requirement.name)], requirement.name


def test_conda_users_get_the_same_versions() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert [name.partition(">")[0] for name in conda] == ["python", "pip"]
    assert pip["pip"] == ["-r constraints.txt", "-e .[all]"]  # no version but those of the one file
    assert conda[0].removeprefix("python").startswith(PROJECT["requires-python"])


def test_the_workflow_builds_tests_and_publishes_with_the_make_targets() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    jobs = workflow["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert all(line.startswith("make ") for line in runs)
    assert {"make test", "make book"} <= set(runs)
    assert any(step.get("uses", "").startswith("actions/deploy-pages@") for step in jobs["publish"]["steps"])
    assert set(jobs["publish"]["needs"]) == {"test", "book"}


def test_version_address_and_licence_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["urls"]["Repository"] == REPOSITORY == citation["repository-code"]
    assert (citation["version"], citation["license"]) == (igpt.__version__, PROJECT["license"])
    theme = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["sphinx"]["config"]["html_theme_options"]
    assert theme["repository_url"] == REPOSITORY
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert path.stem == "config" or yaml.safe_load(path.read_text()).keys() == {"name", "description", "labels", "body"}


def test_science_needs_the_base_dependencies_alone() -> None:
    """What modules outside the companion import anywhere; the wheel's test tries the rest."""
    base = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    named = {"PIL": "pillow", "sklearn": "scikit-learn"}
    paths = [path for path in (ROOT / "igpt").rglob("*.py") if "companion" not in path.parts]
    imported = {(name, path.name) for path in paths for name in imports(path)}
    outside = {(name, path) for name, path in imported if canonicalize_name(named.get(name, name)) not in base}
    assert outside == {("onnx", "onnx.py")}  # of `igpt export --to onnx`, in an extra


def imports(path: Path) -> set[str]:
    """The packages that a module imports, but for igpt and Python's own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name.partition(".")[0] for name in found} - {"igpt"} - sys.stdlib_module_names


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file() and not (ROOT / line).is_symlink()]


def test_nothing_in_the_repository_speaks_of_one_machine_or_is_large() -> None:
    for path in tracked():
        published = path.is_relative_to(ROOT / "igpt" / "weights" / "published")  # the one large thing that is meant to be here
        assert path.stat().st_size < (20_000_000 if published else 1_000_000), path
        text = path.read_bytes().decode(errors="replace")
        if path != Path(__file__):
            assert not re.search(r"/root/|/home/\w|/work/|pypi\.org|pythonhosted|npmjs", text), path


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", "Makefile", ".ci/run", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md"]
)
def test_what_a_newcomer_looks_for_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 300


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split():
        assert f"make {target} " in listed
