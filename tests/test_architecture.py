"""ARCHITECTURE.md names the tree as it is, and the layers that the import contract has."""

from __future__ import annotations

import re
import tomllib

from conftest import ROOT

LAYERS, BESIDE = re.findall(r"```text\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL)


def names(block: str) -> list[str]:
    """The files and folders of a block, one per line, each with a description."""
    return [re.fullmatch(r"(\S+) {2,}\S.*", line)[1] for line in block.splitlines() if line]  # type: ignore[index]


def test_the_page_names_every_folder_and_top_level_module() -> None:
    package = ROOT / "igpt"
    paths = [*package.iterdir(), *(package / "companion").iterdir()]
    modules = {str(path.relative_to(package)) for path in paths if path.suffix == ".py" and not path.name.startswith("__")}
    folders = {f"{path.relative_to(package)}/" for path in paths if (path / "__init__.py").exists()}
    assert sorted(names(LAYERS)) == sorted(modules | folders - {"companion/"})


def test_the_page_has_the_layers_of_the_import_contract() -> None:
    [contract, *_] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    page = [{f"igpt.{name.removesuffix('.py').strip('/').replace('/', '.')}" for name in names(b)} for b in LAYERS.split("\n\n")]
    assert page == [set(re.split(r" [|:] ", layer)) for layer in contract["layers"]]


def test_what_is_named_beside_the_package_is_there() -> None:
    assert all((ROOT / name).is_dir() for name in names(BESIDE) if name != "runs/")
