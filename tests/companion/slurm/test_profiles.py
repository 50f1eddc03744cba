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

from igpt.companion.slurm.ledger import Array
from igpt.companion.slurm.profile import Profile, find_profile, known_as, read_profile
from igpt.companion.slurm.scheduler import job_parameters, python_command
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project

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
    """Where data and the checkout lie here is no part of the golden files."""
    monkeypatch.setenv("IGPT_ROOT", str(ROOT))
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
    for notebook in profile.stages:
        given = job_parameters(ARRAY, profile, profile.resources(Stage.of(notebook)), after=["7_0", "7_1", "9"])
        text = _make_sbatch_string(f"{python_command(profile)} -u -m submitit.core._submit /runs", "/runs", map_count=3, **given)
        kept = GOLDEN / f"{name}-{notebook}.sh"
        text = text.replace(sys.executable, "python").replace(str(ROOT), "/checkout")
        assert text == kept.read_text(), f"if that is meant: write it to {kept}"


def test_what_the_book_prints_of_profiles_is_taken() -> None:
    chapter = (ROOT / "book" / "chapters" / "slurm.md").read_text()
    whole, *parts = [
        read_profile(printed.encode(), Path("printed.yaml")) for printed in re.findall(r"```yaml\n(.*?)```", chapter, re.DOTALL)
    ]
    assert whole.partition == "gpu"
    assert len(parts) == 3
    assert parts[0].resources(Stage.of("pretrain")).qos == "long"
    assert parts[2].resources(Stage.of("weights")).partition == "transfer"


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
        ("stages: {default: {cpus: four}}", "stages.default.cpus: it is four: Input should be a valid integer"),
        ("stages: {pretrain: {}}", "stages has no entry 'default'"),
        ("srun: false\nstages: {default: {nodes: 2}}", "stages.default asks for 2 nodes, which only srun can start"),
        (
            "stages: {default: {minutes: 1}}",
            r"stages.default.minutes is 1, which must be more than signal_seconds \(90 s\): raise it",
        ),
        ("partition: 'gpu\n#SBATCH --uid=0'", "partition: it has a character that is not allowed there"),
        ("environment: {A-B: c}", "environment.A-B"),
        ("- a list", "is no list of settings"),
        ("a: [", "is not YAML"),
        ("", "is no list of settings"),
        ("\x00", "is not YAML"),
        ('environment: {"a\\nb": c}', "environment.a b"),
        ("stages: {default: {minutes: 24:00:00}}", "stages.default.minutes: it is 24:00:00: Input should be a valid integer"),
        ("stages: {default: {minutes: 0600}}", "stages.default.minutes: it is 0600: Input should be a valid integer"),
        ("stages: {default: {minutes: 60.5}}", "stages.default.minutes: Input should be a valid integer"),
        ("stages: {default: {cpus: 010}}", "stages.default.cpus: it is 010: Input should be a valid integer"),
        ("stages: {default: {cpus: 0x10}}", "stages.default.cpus: it is 0x10: Input should be a valid integer"),
        ("stages: {default: {memory_gib: 1_0}}", "stages.default.memory_gib: it is 1_0: Input should be a valid number"),
        ("array_size: 1:30", "array_size: it is 1:30: Input should be a valid integer"),
        ("srun: off", "srun: it is off: Input should be a valid boolean"),
        ("environment: {IGPT_DATA: ~}", "environment.IGPT_DATA: Input should be a valid string"),
        ("partition: a\npartition: b", "partition is given twice"),
        ("stages: {default: {gpus: 1, cpus: 2, gpus: 2}}", "gpus is given twice"),
        ("stages: {default: {}, default: {cpus: 2}}", "default is given twice"),
        (
            "options: {array: 1-3}",
            "options.array is set by igpt: write the settings array_size and at_once",
        ),
        ("options: {time: '10'}", "options.time is set by igpt: write stages.NOTEBOOK.minutes"),
        ("options: {dependency: 'afterok:1'}", "options.dependency is set by igpt: leave it out, since igpt finds its jobs by"),
        ("options: {no-requeue: true}", "options.no-requeue is set by igpt: leave it out, since a job that reaches its limit"),
        ("options: {job: mine}", "options.job is set by igpt: leave it out, since igpt finds its jobs by these"),
        ("options: {part: gpu}", "options.part is set by igpt: write the setting of that name"),
        ("shared_folder: ~", "shared_folder is ~, which YAML reads as null: write the whole path"),
        ("setup: !!set {a, b}", "is not YAML"),
        ("partition: !!timestamp 2001-01-01", "is not YAML"),
        ("options: &x {a: *x}", "is not YAML"),
        ("options: {gres: 'gpu:2'}", "options.gres is set by igpt: write stages.NOTEBOOK.gpus"),
        ("options: {exclusive: false}", "options.exclusive is false, which sbatch does not know: leave it out"),
        ("stages: {default: {partitoin: a}}", "stages.default.partitoin: there is no such setting; did you mean partition"),
        ("stages: {default: {setup: [a]}}", "stages.default.setup: counts for all jobs: write it outside of stages"),
        ("minutes: 10", "minutes: goes under stages.NOTEBOOK"),
        ("stages: {default: {qos: a b}}", "stages.default.qos: it has a character that is not"),
        ("stages: {default: {options: {time: 1}}}", "stages.default.options.time is set by igpt: write stages.NOTEBOOK.minutes"),
        ("stages: {default: {options: {exclusive: false}}}", "stages.default.options.exclusive is false, .* write null"),
        ("stages: {default: {options: {Nice: 1}}}", "stages.default.options.Nice"),
        ("stages: {default: {gpu_type: 'a100:2'}}", "stages.default.gpu_type: it has a character that is not"),
        ('options: {comment: "a\\n#SBATCH --uid=0"}', "options.comment"),
    ],
)
def test_what_is_no_profile_is_refused_in_a_sentence(content: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_profile(content.encode(), Path("mine.yaml"))
    assert str(caught.value).startswith("mine.yaml ")
    assert "\n" not in str(caught.value)


def test_a_notebooks_own_place_wins_over_the_profiles_and_null_is_none() -> None:
    profile = read_profile(
        b"""
partition: main
account: lab
gpu_type: a100
options: {reservation: course, nice: 100, mail-type: END}
stages:
  default: {}
  pretrain: {partition: h100, qos: long, account: lab-gpu, constraint: nvlink, gpu_type: h100, gpus: 8, options: {exclusive: true}}
  parameters: {partition: cpu, account: ~, options: {reservation: null, nice: 5}}
""",
        Path("mine.yaml"),
    )
    place = ("partition", "account", "qos", "constraint", "gpu_type", "options")
    found = {n: [getattr(profile.resources(Stage.of(n)), p) for p in place] for n in ("palette", "pretrain", "parameters")}
    options = {"reservation": "course", "nice": 100, "mail-type": "END"}
    assert found == {
        "palette": ["main", "lab", None, None, "a100", options],
        "pretrain": ["h100", "lab-gpu", "long", "nvlink", "h100", {**options, "exclusive": True}],
        "parameters": ["cpu", None, None, None, "a100", {"nice": 5, "mail-type": "END"}],
    }
    kept = read_profile(profile.model_dump_json(exclude_unset=True).encode(), Path("kept.json"))
    for notebook in found:
        assert kept.resources(Stage.of(notebook)) == profile.resources(Stage.of(notebook))
        assert hash(kept.resources(Stage.of(notebook))) == hash(profile.resources(Stage.of(notebook)))


def test_what_yaml_reads_otherwise_is_read_as_it_is_written() -> None:
    content = b"account: 2026-11-26\noptions: {begin: 10:00}\nsetup: [on]\nenvironment: {FLAG: no, ON: text, OCTAL: 010}"
    profile = read_profile(content, Path("mine.yaml"))
    assert (profile.account, profile.options, profile.setup) == ("2026-11-26", {"begin": "10:00"}, ("on",))
    assert profile.environment == {"FLAG": "no", "ON": "text", "OCTAL": "010"}


def test_options_that_only_place_a_job_are_taken() -> None:
    content = (
        "{hold: true, begin: now+1hour, mail-type: END, mail-user: me, reservation: mine, exclusive: true, nice: 100, nodelist: n1,"
        " mem-per-cpu: 4G, comment: a b, gres: 'craynetwork:0', exclude: n2, licenses: a, prefer: a100, wait-all-nodes: 1}"
    )
    profile = read_profile(f"options: {content}".encode(), Path("mine.yaml"))
    assert len(profile.options) == 15


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stages: {default: {}, pretrian: {}}", r"stages.pretrian: there is no such notebook; did you mean pretrain"),
        ("stages: {defualt: {}, default: {}}", r"stages.defualt: there is no such notebook; did you mean default\?"),
        ("python: /nowhere/bin/python", "python: /nowhere/bin/python is not an executable file on this machine"),
        ("python: nowhere/bin/python -s", "python: .*/nowhere/bin/python is not an executable file on this machine"),
        ("python: /", "python: / is not an executable file on this machine"),
        ("python: no-such-python", "python: there is no program no-such-python on PATH, and no setup line that could provide it"),
        ("python: '  '", "python is empty"),
        (
            "python: module load x && python3",
            "python is one command that ends in Python's own: put what is to come before it into",
        ),
        ("python: python3; true", "python is one command that ends in Python's own"),
        ("python: 'python3 # of conda'", "python is one command that ends in Python's own"),
        ("python: python3 'a b", "python is python3 'a b, which the shell cannot read"),
        (
            "shared_folder: $NO_SUCH_VARIABLE/runs",
            "shared_folder is .NO_SUCH_VARIABLE/runs, which names an unknown variable or user",
        ),
        ("shared_folder: ~no-such-user/runs", "shared_folder is ~no-such-user/runs, which names an unknown variable or user"),
        (
            "environment: {IGPT_DATA: $NO_SUCH_VARIABLE}",
            "environment.IGPT_DATA is .NO_SUCH_VARIABLE, which names an unknown variable",
        ),
    ],
)
def test_a_profile_that_does_not_fit_this_checkout_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=f"mine.yaml is not a valid profile .{message}"):
        find_profile(Project(ROOT), str(path))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("env A=1 python3 -s", "env A=1 python3 -s"),
        ("A=1 sh python", "env A=1 sh python"),
        ("programs/python -s", "{root}/programs/python -s"),
        ("A=b/c ./programs/python x/y", "env A=b/c {root}/programs/python x/y"),
        ("~/programs/python", "{root}/programs/python"),
        ("$CONDA_PREFIX/bin/python", "$CONDA_PREFIX/bin/python"),
        ("'a b/python'", "'a b/python'"),
    ],
)
def test_the_program_of_jobs_has_a_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, found: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "programs" / "python"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"python": given}))
    assert find_profile(Project(tmp_path), str(path)).python == found.format(root=tmp_path)


def test_a_program_that_setup_brings_is_the_jobs_to_find(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("python: no-such-python -s\nsetup: [module load python]")
    assert find_profile(Project(ROOT), str(path)).python == "no-such-python -s"


def test_paths_in_a_profile_are_from_the_checkout_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMEWHERE", "/scratch")
    monkeypatch.setenv("HOME", "/users/me")
    folder = tmp_path / "slurm" / "profiles"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "shared_folder: ../runs\nenvironment: {IGPT_DATA: ~/data, IGPT_WEIGHTS: $SOMEWHERE/w, A: x/y}"
    )
    for place in (tmp_path, folder):
        monkeypatch.chdir(place)
        profile = find_profile(Project(tmp_path), "mine")
        assert profile.run_root(Project(tmp_path)).root == tmp_path.parent / "runs"
        assert profile.environment == {"IGPT_DATA": "/users/me/data", "IGPT_WEIGHTS": "/scratch/w", "A": "x/y"}


def test_data_folders_of_the_shell_are_handed_on_as_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.setenv("IGPT_DATA", "mydata/../data")
    monkeypatch.setenv("IGPT_WEIGHTS", "~/weights")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("partition: gpu")
    found = find_profile(Project(ROOT), "mine.yaml").environment
    assert found == {"IGPT_DATA": f"{tmp_path}/data", "IGPT_WEIGHTS": "/users/me/weights"}
    (tmp_path / "mine.yaml").write_text("environment: {IGPT_DATA: /scratch/data}")
    assert find_profile(Project(ROOT), "mine.yaml").environment["IGPT_DATA"] == "/scratch/data"


def test_a_profile_is_known_by_what_finds_it_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path)
    assert known_as(project, "mine") == "mine"
    assert known_as(project, "mine.yaml") == f"{tmp_path}/mine.yaml"
    assert known_as(project, "slurm/../slurm/profiles/mine.yaml") == "mine"
    assert known_as(project, "slurm/../mine.yaml") == f"{tmp_path}/mine.yaml"
    monkeypatch.chdir("/")
    assert known_as(project, str(tmp_path / "mine.yml")) == f"{tmp_path}/mine.yml"


def test_a_profile_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UsageError, match="folder.yaml cannot be read .Is a directory.: give a file that can"):
        find_profile(Project(ROOT), str(tmp_path / "folder.yaml"))


def test_a_profile_reads_back_as_it_was_kept_with_its_jobs(tmp_path: Path) -> None:
    for name in EXAMPLES:
        profile = find_profile(Project(ROOT), name)
        assert read_profile(profile.model_dump_json(indent=1, exclude_unset=True).encode(), tmp_path) == profile


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
    with pytest.raises(
        UsageError,
        match=r"there is no profile 'plane' \(to make it, copy .*plain.yaml to .*plane.yaml .*\); did you mean plain\?",
    ):
        find_profile(Project(ROOT), "plane")
