"""What a cluster's users set, taken by a real SLURM: places and options by notebook, their shell, conda, containers; the doctor."""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from conftest import PATIENCE, ROOT

from igpt.companion.results.record import read_record
from igpt.companion.slurm.doctor import examine
from igpt.companion.slurm.status import cancel_targets
from igpt.companion.slurm.submit import resume, submit_targets

if TYPE_CHECKING:
    from slurm_checkout import Checkout, Cluster

pytest_plugins = ("slurm_checkout",)
pytestmark = [pytest.mark.slow, pytest.mark.slurm]

PROBE = "linear_probe,model=tiny-s,seed=0"
CHAPTER = ROOT / "book" / "chapters" / "slurm.md"
HELD = {"hold": True}


def job(checkout: Checkout, target: str) -> dict[str, str]:
    """What the scheduler knows of a job."""
    said = subprocess.check_output(["scontrol", "show", "job", str(checkout.job(target).number)], text=True)
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s\S+?=|\s*\n)", said))


def of_root(*command: str) -> None:
    """A change to the cluster that its administrators make."""
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def features(cluster: Cluster) -> None:
    of_root("scontrol", "update", "NodeName=n1", "AvailableFeatures=nvlink")


def test_each_notebooks_jobs_go_where_the_profile_sends_them(cluster: Cluster, checkout: Checkout, features: None) -> None:
    least = {"cpus": 1, "memory_gib": 1, "minutes": 10}
    stages = {
        "default": {**least, "partition": "low", "account": None},
        "pretrain": {
            **least,
            "gpus": 2,
            "partition": "high",
            "account": "lab",
            "constraint": "nvlink",
            "options": {"nice": 7, "comment": "a b"},
        },
    }
    profile = checkout.profile(account="lab", options={**HELD, "comment": "all"}, stages=stages)
    dry = submit_targets([PROBE], None, profile, dry_run=True, dirty=False)
    assert "--partition=high --account=lab --constraint=nvlink --comment='a b' --hold --nice=7" in dry
    assert dry.count("--partition=low --comment=all --hold ") == 2
    checkout.submit(PROBE, profile=profile)
    found = {name: job(checkout, name) for name in ("palette", "pretrain", "linear_probe")}
    places = {name: (each["Partition"], each["Account"], each["Features"], each["Comment"]) for name, each in found.items()}
    others = ("low", "(null)", "(null)", "all")
    assert places == {"palette": others, "pretrain": ("high", "lab", "nvlink", "a b"), "linear_probe": others}
    assert "gres/gpu=2" in found["pretrain"]["TRES"] or found["pretrain"]["TresPerNode"] == "gres:gpu:2"
    assert [found[name]["Nice"] for name in ("pretrain", "palette")] == ["7", "0"]
    cancel_targets([])


def test_the_options_that_the_chapter_prints_are_taken_as_they_stand(cluster: Cluster, checkout: Checkout) -> None:
    (printed,) = re.findall(r"```yaml\n(options:.*?)```", CHAPTER.read_text(), re.DOTALL)
    options = yaml.safe_load(printed)["options"]
    words = f"reservationname=course starttime=now duration=60 nodes=n1 users={getpass.getuser()} flags=ignore_jobs"
    of_root("scontrol", "create", "reservation", *words.split())
    try:
        checkout.submit("palette", profile=checkout.profile(options={**options, **HELD}))
        found = job(checkout, "palette")
    finally:
        cancel_targets([])
        of_root("scontrol", "delete", "reservationname=course")
    assert found["Reservation"] == options["reservation"]
    assert found["ExcNodeList"] == options["exclude"]
    assert found["MailUser"] == options["mail-user"]
    assert found["MailType"].replace("INVALID_DEPEND,", "") == options["mail-type"]
    assert (found["Comment"], found["Nice"]) == (options["comment"], str(options["nice"]))


SEEN = """
import os
parent = stage.parent("palette")
names = ("SLURM_NTASKS", "SLURM_MEM_PER_CPU", "CUDA_VISIBLE_DEVICES", "IGPT_DEVICES", "SRUN_CPUS_PER_TASK")
said = {name: os.environ.get(name, "none") for name in names} | {"where": os.environ["IGPT_DATA"]}
stage.write_record(values={"nothing": {"value": 0.0, "unit": "none"}}, series={"seen": [said]})
"""


def test_what_the_shell_exports_changes_no_job(
    cluster: Cluster, checkout: Checkout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shell = {
        **{"SBATCH_PARTITION": "nowhere", "SBATCH_TIMELIMIT": "1", "SBATCH_ACCOUNT": "x", "SBATCH_EXPORT": "NONE"},
        **{"SBATCH_OUTPUT": "/nowhere", "SBATCH_HOLD": "1", "SBATCH_ARRAY_INX": "0-99", "SBATCH_GRES": "gpu:9"},
        # As of an interactive job.
        **{"SLURM_JOB_ID": "1", "SLURM_NTASKS": "7", "SLURM_MEM_PER_CPU": "1", "SLURM_MEM_PER_NODE": "2", "SLURM_PROCID": "3"},
        **{"SLURM_CPU_BIND": "x", "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "n9", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "n9"},
        **{"CUDA_VISIBLE_DEVICES": "3", "IGPT_DEVICES": "9", "PMI_RANK": "3"},
        **{"SQUEUE_PARTITION": "nowhere", "SQUEUE_STATES": "FAILED", "SCANCEL_INTERACTIVE": "1", "SLURM_CLUSTERS": "other"},
        "IGPT_DATA": "data",
    }
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    checkout.write("pretrain", SEEN)
    stage = "pretrain,model=tiny-s,seed=0"
    checkout.submit(stage)
    assert checkout.submit(stage).startswith("nothing to submit")  # squeue's answer is whole
    row = checkout.wait_for(stage, "done", "failed", "lost", "cancelled")
    assert row.state == "done", (row, checkout.logs())
    record = read_record(checkout.folder(stage) / "record.json")
    assert record is not None
    (seen,) = record.series["seen"]
    assert seen.pop("SLURM_MEM_PER_CPU") != "1"
    assert seen == {
        **{"SLURM_NTASKS": "1", "CUDA_VISIBLE_DEVICES": "none", "IGPT_DEVICES": "none", "SRUN_CPUS_PER_TASK": "1"},
        "where": str(tmp_path / "elsewhere" / "data"),
    }
    del shell["IGPT_DATA"]
    assert {name: os.environ[name] for name in shell} == shell


def test_what_is_resumed_finds_the_data_of_its_submission(
    cluster: Cluster, checkout: Checkout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IGPT_DATA", str(tmp_path / "first"))
    checkout.submit("palette", profile=checkout.profile(options=HELD))
    monkeypatch.delenv("IGPT_DATA")
    for _ in range(2):
        cancel_targets([])
        assert resume([]).startswith("1 job submitted again")
        array = checkout.ledger.arrays()[-1]
        scripts = list((checkout.ledger.folder / array.token).glob("*submission*.sh"))
        assert scripts
        assert all(f"export IGPT_DATA={tmp_path}/first\n" in script.read_text() for script in scripts)
    cancel_targets([])


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for a site's programs: `module`, a conda installation, and apptainer, which runs a command as it is."""
    scratch, python = tmp_path / "scratch" / "me", Path(sys.executable).parent
    brought = tmp_path / "apptainer" / "bin"
    conda = tmp_path / "miniforge3" / "etc" / "profile.d"
    for folder in (scratch, brought, conda):
        folder.mkdir(parents=True)
    (scratch / "igpt.sif").touch()
    (brought / "apptainer").write_text(
        f"""#!/bin/bash
[[ "$1 $2 $3 $4 $5" == "exec --nv --bind {scratch} {scratch}/igpt.sif" ]] || {{ echo "apptainer: not so: $*" >&2; exit 255; }}
shift 5
PATH={python}:$PATH BROUGHT_BY=apptainer exec "$@"
"""
    )
    (brought / "apptainer").chmod(0o755)
    (conda / "conda.sh").write_text(
        f'conda() {{ [ "$1 $2" = "activate igpt" ] && export PATH={python}:$PATH BROUGHT_BY=conda; }}\n'
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    # As Lmod makes it known to batch scripts.
    monkeypatch.setenv("BASH_FUNC_module%%", f'() {{ [ "$1 $2" = "load apptainer" ] && export PATH={brought}:$PATH; }}')
    return scratch


BROUGHT = """
import os
parent = stage.parent("palette")
said = {"by": os.environ["BROUGHT_BY"]}
stage.write_record(values={"nothing": {"value": 0.0, "unit": "none"}}, series={"brought": [said]})
"""


def test_the_examples_of_conda_and_apptainer_run_and_variables_before_the_command_are_set(
    cluster: Cluster, checkout: Checkout, programs: Path
) -> None:
    checkout.write("pretrain", BROUGHT)
    submitted: list[tuple[Checkout, str, str]] = []  # all first, then looked at
    for srun in (True, False):
        for name in ("conda", "apptainer", "a b"):
            settings: dict[str, object] = {"python": f"BROUGHT_BY='{name}' {sys.executable} -s"}
            if name != "a b":
                example = (ROOT / "slurm" / "profiles" / f"{name}.yaml").read_text().replace("/scratch/me", str(programs))
                settings = {**yaml.safe_load(example), "partition": "main", "signal_seconds": 20}
                settings["stages"] = {"default": {"cpus": 1, "memory_gib": 1.5, "minutes": 30}}
            stage = f"pretrain,model=tiny-s,seed={len(submitted)}"
            checkout.submit(stage, profile=checkout.profile(srun=srun, **settings))
            submitted.append((type(checkout)(Path(str(settings.get("shared_folder", checkout.root)))), stage, name))
    for shared, stage, name in submitted:
        row = shared.wait_for(stage, "done", "failed", "lost", "cancelled")
        assert row.state == "done", (row, shared.logs())
        record = read_record(shared.folder(stage) / "record.json")
        assert record is not None
        assert record.series["brought"] == [{"by": name}]


def test_the_doctor_starts_python_on_a_node_and_looks_at_the_data_there(
    cluster: Cluster, checkout: Checkout, tmp_path: Path
) -> None:
    profile = checkout.profile(environment={"IGPT_DATA": str(tmp_path), "IGPT_WEIGHTS": str(tmp_path)})
    text, code = examine(profile, ["palette"])
    assert code == 0, text
    assert re.search(rf"^ok     node for default: Python: 3\.\d+\.\d+ at {sys.executable} on \S+, torch \d", text, re.MULTILINE)
    assert re.search(r"^ok     node for default: code: of [0-9a-f]{12}, as submitted$", text, re.MULTILINE)
    assert "ok     node for default: packages: the same as where you submit, for 1 stage" in text
    assert "ok     node for default: data set digits: comes with scikit-learn" in text
    assert list(checkout.project.runs.glob(".doctor/*")) == []
    text, code = examine(profile, ["palette,dataset=cifar10", "weights"])
    assert code == 1
    missing = "wrong  node for default: data set cifar10: CIFAR-10 is not here: `igpt data fetch cifar10` brings it into"
    assert f"{missing} {tmp_path}/" in text, text
    assert "wrong  node for default: weights igpt-s: " in text


def test_the_doctor_says_what_keeps_python_from_a_node(cluster: Cluster, checkout: Checkout) -> None:
    text, code = examine(checkout.profile(python="no-such-python", setup=["true"]), ["palette"])
    assert code == 1
    assert re.search(
        r"^wrong  node for default: job \d+ gave no answer, lost \(.*no-such-python.*\): see \S+$", text, re.MULTILINE
    )
    text, code = examine(checkout.profile(resources={"gpus": 1}), ["palette"])
    assert "wrong  node for default: GPU: torch" in text, text  # as they are pretended
    assert "sees none, though the job has one" in text
    text, code = examine(checkout.profile(python=f"{sys.executable} -E"), ["palette"])
    assert "wrong  node for default: code: it would run the code in" in text, text


def test_the_doctor_waits_no_longer_than_it_says_and_leaves_no_job(cluster: Cluster, checkout: Checkout) -> None:
    held = checkout.profile(options=HELD)
    text, code = examine(held, ["palette"], patience=0.01)
    assert code == 1
    still = re.search(r"^wrong  node for default: job (\d+) gave no answer, held \(.*JobHeldUser\)\): ", text, re.MULTILINE)
    assert still, text
    assert not at_work(still[1])
    assert "node for" not in examine(held, ["palette"], patience=0)[0]
    doctor = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "igpt", "doctor", "palette", "--profile", held],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert doctor.stderr is not None
    line = doctor.stderr.readline()
    looks = re.fullmatch(r"job (\d+) checks a node for default; up to 10 minutes\n", line)
    assert looks, line
    doctor.send_signal(signal.SIGINT)
    assert doctor.wait(timeout=PATIENCE) == 130
    assert not at_work(looks[1])
    assert list(checkout.project.runs.glob(".doctor/*"))  # the log that the first answer names


def at_work(number: str) -> str:
    """Whether a job is queued or running."""
    return subprocess.check_output(["squeue", "-h", "-j", number, "-t", "PENDING,RUNNING", "-o", "%T"], text=True)
