"""`igpt doctor`: check a cluster and a profile before jobs are submitted."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import igpt
from igpt.companion.experiments.protocols import protocol
from igpt.companion.results.plan import PlannedStage
from igpt.companion.results.signature import Signature, Signer
from igpt.companion.run.local import plan_stages
from igpt.companion.run.targets import find_stages
from igpt.companion.slurm.ledger import Array, Job, Ledger, Listed, new_array
from igpt.companion.slurm.profile import Profile, Resources, find_profile
from igpt.companion.slurm.scheduler import call, cancel, job_parameters, require, submit, trial
from igpt.companion.slurm.snapshot import check_clean, take_snapshot
from igpt.companion.slurm.status import look_at
from igpt.companion.stage import Stage
from igpt.data.cards import check_present, data_card
from igpt.errors import UsageError
from igpt.files import write_text
from igpt.machine import cores, gpus
from igpt.progress import tell
from igpt.project import Project
from igpt.text import counted
from igpt.weights.released import Released, at_hand, released_at

FREE_GIB = 5.0  # free space below which a disk counts as nearly full
ANSWERS = "answers.json"
Question = tuple[str, Callable[[], str]]
Answer = tuple[bool, str, str]  # whether the check passed, the question, the answer


def examine(
    profile_name: str, targets: Sequence[str] = (), tier: str | None = None, *, patience: float = 10.0
) -> tuple[str, int]:
    """A report with one line per check, and the exit code: 0 if all checks pass, else 1.

    targets, tier : what would be submitted; its data and weights are checked where it would run
    patience : minutes to wait for the jobs that check nodes; at 0 no jobs are submitted

    Raises UsageError for a bad profile or an unknown target.
    """
    project = Project.here()
    profile = find_profile(project, profile_name)
    os.environ.update(profile.folders)
    todo = [planned for planned in plan_stages(project, find_stages(list(targets), tier, project)) if planned.state != "fresh"]
    answers = answer(
        [
            ("checkout", lambda: check_clean(project, dirty=False)[:12]),
            ("shared folder", lambda: _folder(profile.run_root(project).runs)),
        ]
    )
    if profile.scheduler == "local":
        answers += answer([("this machine", lambda: f"{counted(cores(), 'core')}, {counted(len(gpus()), 'GPU')}")])
        answers += answer(data_questions(planned.stage for planned in todo))
    else:
        answers += answer([("scheduler", _scheduler)])
        if answers[-1][0]:  # without a scheduler all further checks fail alike
            answers += answer(
                [
                    ("array size", lambda: _array_size(profile)),
                    *((f"a job of {name}", partial(_trial, project, profile, name)) for name in profile.stages),
                ]
            )
            answers += _on_nodes(project, profile, todo, patience) if patience else []
    lines = [f"{'ok   ' if passed else 'wrong'}  {question}: {text}" for passed, question, text in answers]
    wrong = sum(not passed for passed, _, _ in answers)
    lines.append(f"{wrong} of {len(lines)} answers are wrong" if wrong else "nothing is wrong")
    return "\n".join(lines), int(bool(wrong))


def answer(questions: Iterable[Question]) -> list[Answer]:
    """Run checks and return their answers; a check that raises UsageError or OSError has failed."""
    answers = []
    for question, function in questions:
        try:
            answers.append((True, question, function()))
        except (UsageError, OSError) as error:
            answers.append((False, question, str(error)))
    return answers


def data_questions(stages: Iterable[Stage]) -> list[Question]:
    """Checks that the data sets and released weights of ``stages`` are present."""
    signer = Signer(Project.here().notebooks)
    datasets: set[str] = set()
    weights: dict[str, Released] = {}  # by the name of the stage that fetches them
    for stage in stages:
        given = signer.parameters(stage)
        datasets |= set(protocol(stage.notebook).prior_datasets(given))
        if stage.notebook == "weights" and given["weights"] == "released":
            weights[stage.name] = released_at(str(given["model"]), str(given["objective"]), int(given["step"]))

    def present(name: str) -> str:
        check_present(name)
        return "comes with scikit-learn" if name == "digits" else f"in {data_card(name).folder}"

    def fetched(stage: str, model: Released) -> str:
        if not at_hand(model):
            raise UsageError(f"not in {model.prefix.parent}: `igpt run {stage}`, where there is internet, fetches them")
        return f"in {model.prefix.parent}"

    return [
        *((f"data set {name}", partial(present, name)) for name in sorted(datasets)),
        *((f"weights {model.label}", partial(fetched, name, model)) for name, model in sorted(weights.items())),
    ]


@dataclass(frozen=True)
class NodeCheck:
    """A short job that checks its node; pickled by submitit, by reference to the snapshot's code.

    stages : the stages that would run on such a node, with their signatures on the submitting machine
    asked : the resources of the job
    """

    stages: tuple[tuple[Stage, Signature], ...]
    asked: Resources
    job: Job

    def __call__(self) -> str:
        """Run the checks on the node and write their answers to the job's folder."""
        questions = [("Python", _python), ("code", self._code), ("packages", self._packages)]
        if self.asked.gpus:
            questions.append(("GPU", _gpu))
        write_text(self.job.logs / ANSWERS, json.dumps(answer([*questions, *data_questions(stage for stage, _ in self.stages)])))
        return "answered"

    def _code(self) -> str:
        here, code = Path(igpt.__file__).resolve().parents[1], Path(self.job.array.snapshot)
        if here != code.resolve():
            raise UsageError(f"it would run the code in {here}, not the snapshot {code}: let python use PYTHONPATH")
        return f"of {code.name[:12]}, as submitted"

    def _packages(self) -> str:
        plan = plan_stages(Project.here(), [stage for stage, _ in self.stages])
        differing = {part for stage, signed in self.stages for part in plan[stage].signature.difference(signed.parts)}
        if differing:
            raise UsageError(
                f"{', '.join(sorted(differing))} differ from those where you submit: have the same packages and data on both"
            )
        if not self.stages:
            return "not compared: no stage of the targets would run here"
        return f"the same as where you submit, for {counted(len(self.stages), 'stage')}"


def _python() -> str:
    import torch

    return f"{platform.python_version()} at {sys.executable} on {platform.node()}, torch {torch.__version__}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            f"torch {torch.__version__} sees none, though the job has one: install the build of torch for the node's driver,"
            " or let the container see it (apptainer exec --nv)"
        )
    return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"


def _on_nodes(project: Project, profile: Profile, todo: list[PlannedStage], patience: float) -> list[Answer]:
    """The answers of short jobs, one for each kind of resources in the profile; late jobs are cancelled."""
    notebooks: dict[Resources, list[str]] = {}
    for notebook in profile.stages:
        notebooks.setdefault(_smallest(profile, Stage.of(notebook)), []).append(notebook)
    ledger = Ledger(Project(profile.run_root(project).runs / ".doctor" / secrets.token_hex(4)))
    jobs: dict[str, Job] = {}  # by question
    answers: list[Answer] = []
    try:
        code = take_snapshot(project, profile.run_root(project), check_clean(project, dirty=True))
        for resources, names in notebooks.items():
            question = f"node for {', '.join(names)}"
            job = Job(ledger, _array(resources, code), 0)
            stages = tuple((p.stage, p.signature) for p in todo if _smallest(profile, p.stage) == resources)
            try:
                number = submit(job, [NodeCheck(stages, resources, job)], profile, resources)
            except UsageError as error:
                answers.append((False, question, str(error)))
                continue
            jobs[question] = replace(job, array=job.array.model_copy(update={"job": number}))
            tell(f"job {number} checks a {question}; up to {patience:g} minutes")
        answers += _await(jobs, patience)
    except UsageError as error:  # no snapshot
        answers.append((False, "node", str(error)))
    finally:
        with suppress(UsageError):
            cancel(str(job.number) for job in jobs.values())
        if all(passed for passed, _, _ in answers):  # else the answers name logs in this folder
            shutil.rmtree(ledger.run_root.root, ignore_errors=True)
    return answers


def _await(jobs: dict[str, Job], patience: float) -> list[Answer]:
    """Wait for the answers of the jobs; for a job without answers, a failed answer with the reason."""
    answers: list[Answer] = []
    waiting, ended = dict(jobs), set[str]()
    deadline, pause = time.monotonic() + 60 * patience, 1.0
    while waiting:
        late = time.monotonic() > deadline
        for (question, job), row in zip(list(waiting.items()), look_at(list(waiting.values())).rows, strict=True):
            active = row.state in ("queued", "running", "unknown")
            if (job.logs / ANSWERS).exists():
                on_node = json.loads((job.logs / ANSWERS).read_text())
                answers += [(passed, f"{question}: {check}", text) for passed, check, text in on_node]
            elif active and not late:
                continue
            elif not active and row.state != "held" and question not in ended:
                ended.add(question)  # look once more: a shared disk may show the answers late
                continue
            else:
                todo = "give --patience more minutes, or another partition" if active else f"see {job.log() or job.logs}"
                answers.append((False, question, f"job {row.job} gave no answer, {row.state} ({row.why}): {todo}"))
            del waiting[question]
        time.sleep(pause if waiting else 0)
        pause = min(pause * 1.5, 15.0)
    return answers


def _smallest(profile: Profile, stage: Stage) -> Resources:
    """The resources of a stage reduced to a minimum, so that a job with them starts soon on the same kind of node."""
    resources = profile.resources(stage)
    reduced = {
        "cpus": min(resources.cpus, 2),
        "gpus": min(resources.gpus, 1),
        "nodes": 1,
        "memory_gib": min(resources.memory_gib, 4.0) if resources.memory_gib else None,
        "minutes": min(resources.minutes, 5 + profile.signal_seconds // 60),
    }
    return resources.model_copy(update=reduced)


def _array(asked: Resources, code: Project) -> Array:
    return new_array([Listed(name="doctor", folder="doctor", planned=0.0)], asked, number=0, profile="", snapshot=code)


def _folder(runs: Path) -> str:
    """Check that the folder of runs can be written and locked and has free space. Raises UsageError or OSError."""
    with Ledger(Project(runs.parent)).alone():
        write_text(runs / ".doctor-test", "x")  # an exceeded quota shows only when bytes are written
        (runs / ".doctor-test").unlink()
    free = shutil.disk_usage(runs).free / 2**30
    if free < FREE_GIB:
        raise UsageError(
            f"{runs} has {free:.1f} GiB left: free some (`igpt clean` says what can go), or set shared_folder to another disk"
        )
    return f"{runs} can be written and locked, {free:,.0f} GiB are free"


def _scheduler() -> str:
    """The version of SLURM, and the states of its nodes."""
    require()
    states = [line for line in call("sinfo", "-h", "-o", "%D %T").splitlines() if line]
    return f"{call('sinfo', '--version').strip()}, {', '.join(states)} nodes"


def _array_size(profile: Profile) -> str:
    """Check that the cluster accepts arrays of the profile's size. Raises UsageError otherwise."""
    setting = re.search(r"^MaxArraySize\s*= (\d+)$", call("scontrol", "show", "config"), re.MULTILINE)
    most = int(setting[1] if setting else 1001) - 1
    if profile.array_size > most:
        raise UsageError(f"array_size is {profile.array_size} and the cluster takes {most}: lower it in the profile")
    return f"{profile.array_size} of at most {most}"


def _trial(project: Project, profile: Profile, notebook: str) -> str:
    """When a job of a notebook would start. Raises UsageError if the scheduler would refuse it."""
    resources = profile.resources(Stage.of(notebook))
    return trial(job_parameters(_array(resources, project), profile, resources))
