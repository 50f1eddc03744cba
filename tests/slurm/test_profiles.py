"""Profiles: the examples, what is refused, and the sbatch files that they come to."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.errors import UsageError
from igpt.project import Project
from igpt.slurm.ledger import Array
from igpt.slurm.profile import Profile, find_profile, read_profile
from igpt.slurm.scheduler import job_parameters, python_command
from igpt.stage import Stage

EXAMPLES = sorted(path.stem for path in (ROOT / "slurm" / "profiles").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "golden"
ARRAY = Array(
    token="0a1b2c",
    number=1,
    job=None,
    profile="any",
    snapshot="/code",
    submitted="",
    by="",
    gpus=0,
    nodes=1,
    minutes=1,
    stages=(),
)


@pytest.fixture(autouse=True)
def no_data_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where data lie here is no part of the golden files."""
    for name in ("IGPT_DATA", "IGPT_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


def test_the_examples_that_the_book_promises_are_there() -> None:
    assert {"plain", "no-accounting", "gres-only", "local", "local-cluster"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_comes_to_the_sbatch_files_kept_for_it(name: str) -> None:
    from submitit.slurm.slurm import _make_sbatch_string

    profile = find_profile(Project(ROOT), name)
    if profile.scheduler == "local":
        return
    for notebook, resources in profile.stages.items():
        given = job_parameters(ARRAY, profile, resources, after=["7_0", "7_1", "9"], root=Project(Path("/code")))
        text = _make_sbatch_string(f"{python_command(profile)} -u -m submitit.core._submit /runs", "/runs", map_count=3, **given)
        kept = GOLDEN / f"{name}-{notebook}.sh"
        assert text.replace(sys.executable, "python") == kept.read_text(), f"if that is meant: write it to {kept}"


def test_the_profile_that_the_book_prints_is_one() -> None:
    chapter = (ROOT / "book" / "chapters" / "slurm.md").read_text()
    (printed,) = re.findall(r"```yaml\n(.*?)```", chapter, re.DOTALL)
    assert read_profile(printed.encode(), Path("printed.yaml")).partition == "gpu"


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {
        f"{name}-{notebook}.sh"
        for name in EXAMPLES
        if (profile := find_profile(Project(ROOT), name)).scheduler == "slurm"
        for notebook in profile.stages
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("partitions: gpu", r"partitions: there is no such setting; did you mean partition"),
        ("stages: {default: {cpu: 4}}", r"stages.default.cpu: there is no such setting; did you mean cpus"),
        ("stages: {default: {cpus: 0}}", "stages.default.cpus: Input should be greater than or equal to 1"),
        ("stages: {default: {cpus: four}}", "stages.default.cpus: Input should be a valid integer"),
        ("stages: {pretrain: {}}", "stages has no entry 'default'"),
        ("srun: false\nstages: {default: {nodes: 2}}", "stages.default asks for 2 nodes, which only srun can start"),
        ("stages: {default: {minutes: 1}}", "stages.default has 1 minutes and needs more than signal_seconds"),
        ("partition: 'gpu\n#SBATCH --uid=0'", "partition: String should match pattern"),
        ("environment: {A-B: c}", "environment.A-B"),
        ("- a list", "is no list of settings"),
        ("a: [", "is not YAML"),
        ("", "is no list of settings"),
        ("\x00", "is not YAML"),
    ],
)
def test_what_is_no_profile_is_refused_in_a_sentence(content: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_profile(content.encode(), Path("mine.yaml"))
    assert str(caught.value).startswith("mine.yaml ")
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*Profile.model_fields, "unknown"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(FIELDS, VALUES, max_size=4))
def test_any_settings_are_a_profile_or_a_sentence(content: dict[str, object]) -> None:
    try:
        profile = read_profile(yaml.safe_dump(content).encode(), Path("any.yaml"))
    except UsageError as error:
        assert "\n" not in str(error).replace("\\n", "")
    else:
        assert profile.resources(Stage.of("pretrain")).cpus >= 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_profile_or_a_sentence(content: bytes) -> None:
    try:
        read_profile(content, Path("any.yaml"))
    except UsageError:
        pass


def test_an_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"there is no profile 'plane'; did you mean plain\?; write .*plane.yaml after"):
        find_profile(Project(ROOT), "plane")
