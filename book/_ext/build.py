"""Builds the book: `python book/_ext/build.py [--model NAME]`, which is `make book` once everything is installed.

Runs the tiny tier, makes the live panel, and calls jupyter-book. Where only records have changed since a build that
ended well, pages that do not read them are kept; after any other change the book is built anew.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from igpt.companion import cli
from igpt.project import Project

LEFT_OUT = ("_build", "records", "figures", "models", "__pycache__")  # of book/: results, and files with a check of their own


def build(root: Path, loaded: str) -> int:
    """Build the book of the project at ``root``; the exit code. Warnings are errors.

    loaded : digest of the code when this process started; pages made while code changed count as unfinished
    """
    from jupyter_book.cli.main import main

    folder = root / "book" / "_build"
    finished, state = folder / "finished", state_digest(root)
    if not finished.is_file() or finished.read_text() != state:
        shutil.rmtree(folder, ignore_errors=True)
    finished.unlink(missing_ok=True)
    code = run(main, "jupyter-book", "build", str(root / "book"), "-W", "--keep-going", "--quiet")
    if code_digest(root) != loaded:
        for path in (root / "book" / "figures").glob(".*.sha256"):
            path.unlink()
    elif code == 0:
        finished.write_text(state)
    return code


def state_digest(root: Path) -> str:
    """SHA-256 of all that decides the pages but the project's own records: code, chapters, notebooks, packages."""
    digest = hashlib.sha256(code_digest(root).encode())
    for path in sorted(files(root / "book")):
        digest.update(str(path).encode() + path.read_bytes())
    if readers := os.environ.get("IGPT_RECORDS"):
        for path in sorted(Path(readers).rglob("*.json")):  # which may be unreadable or large
            status = path.lstat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def code_digest(root: Path) -> str:
    """SHA-256 of the code, the notebooks and the state of the installed packages."""
    digest = hashlib.sha256(str(root).encode())
    digest.update(f"{sys.version} {Path(sysconfig.get_path('purelib')).stat().st_mtime_ns}".encode())
    for path in sorted([*files(Path(cli.__file__).parents[1]), *files(root / "notebooks"), *files(root / "book" / "_ext")]):
        digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


def files(folder: Path) -> Iterator[Path]:
    """The files below a folder."""
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.is_dir() and path.name not in LEFT_OUT and not path.is_symlink():
            yield from files(path)


def run(command, *words: str) -> int:
    """The exit code of a command line, run in this process."""
    sys.argv = list(words)
    try:
        command()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def main() -> int:
    """Run the tiny tier, make the live panel and build the book; the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="laptop-l", help="of the live panel: a name, or a folder of weights")
    model, loaded = parser.parse_args().model, code_digest(Project.here().root)
    for words in (["run", "--tier", "tiny"], ["run", "parameters", "--tier", "paper"], ["panel", "--model", model]):
        if code := run(cli.main, "igpt", *words):
            return code
    return build(Project.here().root, loaded)


if __name__ == "__main__":
    sys.exit(main())
