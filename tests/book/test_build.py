"""The built book: what `make book` leaves, and how the build takes broken input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT, igpt

from igpt.companion.experiments.cells import experiments

pytestmark = pytest.mark.slow


def build(root: Path, code: str = "", loaded: str = "build.code_digest(root)") -> subprocess.CompletedProcess[str]:
    """Build the book of the project at ``root``, without running anything, in a process that first runs ``code``."""
    program = f"{code}\nimport sys\nfrom pathlib import Path\nsys.path.insert(0, {str(root / 'book' / '_ext')!r})\n"
    program += f"import build\nroot = Path({str(root)!r})\nsys.exit(build.build(root, {loaded}))"
    environment = {**os.environ, "IGPT_ROOT": str(root)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=PATIENCE)


NO_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch was imported by the book's build")
sys.meta_path.insert(0, NoTorch())
"""


def copy_to(root: Path) -> Path:
    """A project with the book's sources, the notebooks and no records."""
    ignore = shutil.ignore_patterns("_build", "figures", "live", "records", ".*")
    shutil.copytree(ROOT / "book", root / "book", ignore=ignore, symlinks=True)
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=ignore)
    (root / "book" / "records").mkdir()
    return root


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Such a project of the test's own."""
    return copy_to(tmp_path)


@pytest.fixture(scope="module")
def pending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book of such a project, built where there is no torch."""
    root = copy_to(tmp_path_factory.mktemp("pending"))
    done = build(root, NO_TORCH)
    assert done.returncode == 0, done.stderr
    return root / "book" / "_build" / "html"


class Text(HTMLParser):
    """Receipt buttons of a page: their text, and the receipts by id."""

    def __init__(self) -> None:
        super().__init__()
        self.buttons: list[tuple[str, str]] = []
        self.receipts: dict[str, str] = {}
        self._button: str | None = None
        self._receipt: str | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "button" and given.get("popovertarget"):
            self._button = given["popovertarget"]
        if "popover" in given:
            self._receipt = str(given["id"])
            self.receipts[self._receipt] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "button":
            self._button = None
        if tag == "span":
            self._receipt = None

    def handle_data(self, data: str) -> None:
        if self._button:
            self.buttons.append((self._button, data))
        if self._receipt:
            self.receipts[self._receipt] += data


def read(path: Path) -> Text:
    parsed = Text()
    parsed.feed(path.read_text())
    return parsed


def test_every_number_has_a_receipt_that_names_its_source(html: Path) -> None:
    measured = 0
    for page in sorted(html.glob("**/*.html")):
        parsed = read(page)
        assert {ident for ident, _ in parsed.buttons} == set(parsed.receipts), page
        assert len(parsed.receipts) == len(parsed.buttons), f"{page}: an id is there twice"
        for ident, text in parsed.buttons:
            receipt = parsed.receipts[ident]
            if "seeds)" in text:
                measured += 1
                for part in (
                    "Verdict",
                    "Commit",
                    "Parameters",
                    "Seeds",
                    "Hardware",
                    "Seconds",
                    "notebooks/",
                    "igpt run",
                    "Records",
                ):
                    assert part in receipt, (page, text, part)
            elif text == "pending":
                assert "Command" in receipt or "no experiment is declared" in receipt
    assert measured > 60


def test_a_number_can_be_walked_back_to_its_record_and_notebook(html: Path) -> None:
    """As a reader does by hand: page, receipt, record, notebook."""
    text = (html / "chapters" / "linear-probes.html").read_text()
    records = [*re.findall(r'href="(\.\./records/tiny/linear_probe,model=tiny-l,seed=\d\.json)"', text)]
    assert len(set(records)) == 3
    values = []
    for link in sorted(set(records)):
        record = json.loads((html / "chapters" / link).resolve().read_text())
        values.append(100 * record["values"]["accuracy"]["value"])
        assert (ROOT / record["receipt"]["notebook"]).exists()
        assert record["receipt"]["command"] == f"igpt run {record['stage']}"
    mean = sum(values) / 3
    shown = next(t for _, t in read(html / "chapters" / "linear-probes.html").buttons if "3 seeds" in t)
    assert abs(float(shown.split()[0]) - mean) <= 0.5
    assert (html / "notebooks" / "linear_probe.html").exists()


def test_the_scoreboard_has_every_published_number_of_ours(html: Path) -> None:
    text = (html / "index.html").read_text()
    for experiment in experiments():
        if experiment.published.ours:
            assert experiment.name in text, experiment.name


def test_no_tiny_cell_is_pending_after_make_book(html: Path) -> None:
    for page in sorted(html.glob("**/*.html")):
        for ident, receipt in read(page).receipts.items():
            assert "not run yet" not in receipt, (page, ident)
            assert "stale: made before" not in receipt or "=tiny-" not in receipt, (page, ident)


def test_tables_are_there_as_data(html: Path) -> None:
    for ending in ("csv", "md", "tex"):
        assert "96.3" in (html / "tables" / f"headline.{ending}").read_text()


def test_pages_name_no_other_host(html: Path) -> None:
    for page in html.glob("**/*.html"):
        loaded = re.findall(r'<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"', page.read_text())
        assert [tag for tag in loaded if 'rel="canonical"' not in tag] == [], page


def test_notebook_pages_link_to_binder_and_colab(html: Path) -> None:
    page = (html / "notebooks" / "linear_probe.html").read_text()
    for host in ("mybinder.org", "colab.research.google.com"):
        [path] = re.findall(rf'<a href="https://{host}/[^"]*igpt/(?:blob/)?main(?:\?urlpath=lab/tree)?/([^"]*)"', page)
        assert (ROOT / path).is_file()
    assert "mybinder.org" not in (html / "index.html").read_text()


def test_a_second_make_book_finds_nothing_to_run(html: Path) -> None:
    done = subprocess.run(["make", "book"], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing to run") == 2
    assert "index.html" in done.stdout


def test_without_records_and_without_torch_the_book_builds_and_all_is_pending(pending: Path) -> None:
    page = read(pending / "chapters" / "linear-probes.html")
    assert sum(text == "pending" for _, text in page.buttons) > 8
    assert "Pending: its records" in (pending / "chapters" / "depth.html").read_text()
    assert "built without its live panel" in (pending / "chapters" / "samples.html").read_text()


MISTAKES = (
    ("depth", "{igpt-table} depth", "{igpt-table} dept", "there is no table 'dept'"),
    ("bert", "{igpt-figure} bert\n:alt:", "{igpt-figure} bert\n:alt_:", "alt_"),
    ("low-data", "fact level", "fact lvl", "there is no fact 'lvl'"),
)


def test_mistakes_in_pages_and_a_broken_record_fail_the_build_and_all_are_named(copy: Path) -> None:
    toc = ["format: jb-book", "root: index", "chapters:", *(f"- file: chapters/{page}" for page, *_ in MISTAKES)]
    (copy / "book" / "_toc.yml").write_text("\n".join(toc))  # the rest of the book has no part in it
    broken = copy / "book" / "records" / "tiny" / "linear_probe,model=tiny-l,seed=0.json"
    broken.parent.mkdir()
    broken.write_text('{"schema_version": 99}')
    for page, old, new, _ in MISTAKES:
        path = copy / "book" / "chapters" / f"{page}.md"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    done = build(copy)
    assert done.returncode != 0
    messages = [*(message for *_, message in MISTAKES), f"{broken} has record schema 99, this version reads 1"]
    assert [message for message in messages if message not in done.stderr + done.stdout] == []
    broken.unlink()
    again = build(copy)  # a build that failed is not continued, which would find nothing to say
    assert [message for message in messages if message not in again.stderr + again.stdout] == messages[-1:]


def pages(html: Path) -> dict[str, bytes]:
    """A built book's files, less what only a second build has: digests in the addresses of its first one's files, and words
    of the search that are on no page any more.
    """
    files = {str(path.relative_to(html)): path for path in html.glob("**/*") if path.is_file() and path.name != ".buildinfo"}
    content = {name: re.sub(rb"\.(css|js)\?v=\w+", rb".\1", path.read_bytes()) for name, path in files.items()}
    index = json.loads(content["searchindex.js"].removeprefix(b"Search.setIndex(").removesuffix(b")"))
    for key in ("terms", "titleterms"):
        index[key] = {word: on for word, on in index[key].items() if on != []}
    return {**content, "searchindex.js": json.dumps(index, sort_keys=True).encode()}


def test_after_changed_and_removed_records_the_pages_are_those_of_a_fresh_build(copy: Path, pending: Path) -> None:
    """And two fresh builds are the same bytes, since `pending` is one and most pages here are from another."""
    records, html = copy / "book" / "records", copy / "book" / "_build" / "html"
    (records / "laptop").mkdir()
    for path in (ROOT / "book" / "records" / "laptop").glob("linear_probe,*"):
        shutil.copy(path, records / "laptop")
    assert build(copy, NO_TORCH).returncode == 0
    before = pages(html)
    probe = records / "laptop" / "linear_probe,dataset=cifar10,model=laptop-m,seed=0.json"
    record = json.loads(probe.read_text())
    record["values"]["accuracy"] |= {"value": 0.123, "low": 0.1, "high": 0.2}
    record["series"]["trained"][0]["accuracy"] = 0.123
    record["receipt"]["hardware"] = "another machine"
    probe.write_text(json.dumps(record))
    assert build(copy, NO_TORCH).returncode == 0
    after = pages(html)
    changed = {name for name in before if before[name] != after[name]}
    assert {"index.html", "chapters/provenance.html", "_images/laptop-depth-light.svg", f"records/laptop/{probe.name}"} <= changed
    assert not [name for name in changed if name.startswith("notebooks/") or "palette" in name]
    shutil.rmtree(records / "laptop")
    assert (copy / "book" / "_build" / "finished").exists()
    assert build(copy, NO_TORCH, loaded="'older code'").returncode == 0
    # Code changed while the process ran: nothing is kept for the next build.
    assert not (copy / "book" / "_build" / "finished").exists()
    assert not [*(copy / "book" / "figures").glob(".*.sha256")]
    fresh, after = pages(pending), pages(html)
    assert fresh.keys() - after.keys() == set()
    assert {name for name in after.keys() - fresh.keys() if not name.startswith("_images/")} == set()
    assert [name for name in fresh if fresh[name] != after[name]] == []


def test_igpt_table_prints_what_the_book_shows(html: Path) -> None:
    done = igpt("table", "headline", "--format", "csv", root=ROOT)
    assert done.stdout == (html / "tables" / "headline.csv").read_text()


def test_definition_lists_are_lists(html: Path) -> None:
    text = (html / "index.html").read_text()
    assert re.search(r"<dt>\s*Tiny tier", text)
    assert "Tiny tier :" not in text


def test_a_readers_records_stand_beside_ours_and_never_among_them(
    html: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "linear_probe,model=tiny-l,seed=0.json"
    mine, ours = copy / "mine", copy / "book" / "records" / "tiny"
    mine.mkdir()
    ours.mkdir()
    for seed in range(3):
        for folder in (mine, ours):
            shutil.copy(html / "records" / "tiny" / name.replace("seed=0", f"seed={seed}"), folder)
    record = json.loads((mine / name).read_text())
    record["values"]["accuracy"] |= {"value": 0.1, "low": 0.09, "high": 0.11}
    (mine / name).write_text(json.dumps(record))
    monkeypatch.setenv("IGPT_RECORDS", str(mine))
    done = build(copy)
    assert done.returncode == 0, done.stderr
    built = copy / "book" / "_build" / "html"
    page = (built / "chapters" / "linear-probes.html").read_text()
    assert "Yours (mine): Tiny tier (digits)" in page
    assert "disagrees with ours" in page
    assert f"../records/../yours/{name}" in page
    assert (built / "yours" / name).exists()
    assert sorted(path.name for path in (built / "records" / "tiny").iterdir()) == sorted(path.name for path in ours.iterdir())
    assert "1 value beyond the intervals" in (built / "chapters" / "provenance.html").read_text()
