"""`igpt doctor`: what would go wrong on a cluster, asked before the queue finds it out."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from igpt.companion.results.plan import PlannedStage
from igpt.companion.run.local import plan_stages
from igpt.companion.run.targets import find_stages
from igpt.companion.slurm.ledger import Array, Ledger, Listed, homes, last_word, scheduler_word, user
from igpt.companion.slurm.node import Answer, NodeCheck, ask, data_questions
from igpt.companion.slurm.profile import FOLDERS, Profile, Resources, find_profile
from igpt.companion.slurm.scheduler import SECONDS, call, cancel, job_parameters, look, require, submit, trouble_in
from igpt.companion.slurm.shell import plain_shell
from igpt.companion.slurm.snapshot import check_clean, take_snapshot
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.machine import cores, gpus
from igpt.project import Project
from igpt.text import counted

FREE_GIB = 5.0  # below which a folder is said to be nearly full


def examine(
    profile_name: str, targets: Sequence[str] = (), tier: str | None = None, *, patience: float = 10.0
) -> tuple[str, int]:
    """One line a question, and the exit code: 0 when nothing is wrong, 1 otherwise.

    targets, tier : what would be submitted, whose data and weights are looked for where it would run
    patience : minutes to wait for the jobs that look at a node; none are submitted for 0

    Raises UsageError for a bad profile or an unknown target.
    """
    project = Project.here()
    profile = find_profile(project, profile_name)
    os.environ.update({name: profile.environment[name] for name in FOLDERS if name in profile.environment})
    todo = [planned for planned in plan_stages(project, find_stages(list(targets), tier, project)) if planned.state != "fresh"]
    found = ask(
        [
            ("checkout", lambda: check_clean(project, dirty=False)[:12]),
            ("shared folder", lambda: _folder(profile.home(project).runs)),
            ("earlier jobs", lambda: _unread(project)),
        ]
    )
    if profile.scheduler == "local":
        found += ask([("this machine", lambda: f"{counted(cores(), 'core')}, {counted(len(gpus()), 'GPU')}")])
        found += ask(data_questions(planned.stage for planned in todo))
    else:
        found += ask([("scheduler", _answers)])
        if found[-1][0]:  # or each would only say so again
            found += ask(
                [
                    ("array size", lambda: _array_size(profile)),
                    ("queue again", _requeue),
                    ("accounting", _accounting),
                    *((f"a job of {name}", partial(_try, project, profile, name)) for name in profile.stages),
                ]
            )
            found += _on_nodes(project, profile, todo, patience)
    lines = [f"{'ok   ' if well else 'wrong'}  {what}: {said}" for well, what, said in found]
    wrong = sum(not well for well, _, _ in found)
    lines.append(f"{wrong} of {len(lines)} answers are wrong" if wrong else "nothing is wrong")
    return "\n".join(lines), int(bool(wrong))


def _on_nodes(project: Project, profile: Profile, todo: list[PlannedStage], patience: float) -> list[Answer]:
    """The answers of short jobs, one for each place that the profile sends jobs to; they are cancelled if it takes too long."""
    if not patience:
        return []
    places: dict[Resources, list[str]] = {}
    for notebook in profile.stages:
        places.setdefault(_small(profile, Stage.of(notebook)), []).append(notebook)
    home = Project(profile.home(project).runs / ".doctor" / secrets.token_hex(4))
    ledger = Ledger(home)
    waiting: dict[Resources, Array] = {}
    found: list[Answer] = []
    keep = True
    try:
        code = take_snapshot(project, profile.home(project), check_clean(project, dirty=True))
        for place, notebooks in places.items():
            stages = tuple((p.stage, p.signature) for p in todo if _small(profile, p.stage) == place)
            array = _array(place, code)
            check = NodeCheck(stages, code.root, place.cpus, place.gpus, ledger.logs(array.token) / "answers.json")
            try:
                job = submit(ledger, array, [check], profile, place, root=code)
            except UsageError as error:
                found.append((False, f"node for {', '.join(notebooks)}", str(error)))
                continue
            waiting[place] = array.model_copy(update={"job": job})
            print(f"job {job} looks at a node for {', '.join(notebooks)}; up to {patience:g} minutes", file=sys.stderr)
        found += _await(ledger, waiting, places, patience)
    except UsageError as error:  # no snapshot, or no scheduler any more
        found.append((False, "node", str(error)))
    except KeyboardInterrupt:
        keep = False
        raise
    finally:
        with suppress(UsageError):
            cancel(str(array.job) for array in waiting.values())
        if not keep or all(well for well, _, _ in found):  # else the logs that are named lie there
            shutil.rmtree(home.root, ignore_errors=True)
    return found


def _await(ledger: Ledger, waiting: dict[Resources, Array], places: dict[Resources, list[str]], patience: float) -> list[Answer]:
    """The answers as they come; each job that has given its own is taken out of ``waiting``."""
    found: list[Answer] = []
    ended: set[Resources] = set()
    until, pause = time.monotonic() + 60 * patience, 1.0
    while waiting:
        queue = look(ledger, list(waiting.values()))
        late = time.monotonic() > until
        for place, array in list(waiting.items()):
            what = f"node for {', '.join(places[place])}"
            answers, job = ledger.logs(array.token) / "answers.json", queue.find(array, 0)
            if answers.exists():
                found += [(well, f"{what}: {asked}", said) for well, asked, said in json.loads(answers.read_text())]
            elif (job is None or job.over) and place not in ended:
                ended.add(place)  # another look, since a shared disk may show the answers late
                continue
            elif job is None or job.over:
                log = ledger.log(array, 0)
                said = scheduler_word(log) or last_word(log) or "it left no word"
                where = log or ledger.logs(array.token)
                found.append((False, what, f"job {array.job} ended without an answer ({said}): {where} may say more"))
            elif late:
                why = f"{job.state.lower()}{f' ({job.reason})' if job.reason else ''}"
                if job.held:
                    said = f"job {array.job} would never begin ({job.reason or job.state}), and was cancelled: change the profile"
                else:
                    said = (
                        f"job {array.job} was still {why}, and was cancelled: give --patience more minutes, or another partition"
                    )
                found.append((False, what, said))
                continue  # to be cancelled
            else:
                continue
            del waiting[place]
        if late:
            break
        time.sleep(pause if waiting else 0)
        pause = min(pause * 1.5, 15.0)
    return found


def _small(profile: Profile, stage: Stage) -> Resources:
    """A job where the stage would run, that asks for as little as can show the node: such start soonest."""
    asked = profile.resources(stage)
    less = {
        "cpus": min(asked.cpus, 2),
        "gpus": min(asked.gpus, 1),
        "nodes": 1,
        "memory_gib": min(asked.memory_gib, 4.0) if asked.memory_gib else None,
        "minutes": min(asked.minutes, 5 + profile.signal_seconds // 60),
    }
    return asked.model_copy(update=less)


def _array(place: Resources, code: Project) -> Array:
    """What the job goes by; the ledger of stages never sees it."""
    return Array(
        token=secrets.token_hex(6),
        number=0,
        job=None,
        profile="",
        snapshot=str(code.root),
        submitted=datetime.now(UTC).isoformat(timespec="milliseconds"),
        by=f"{user()} on {platform.node()}",
        gpus=place.gpus,
        nodes=1,
        minutes=place.minutes,
        stages=(Listed(name="doctor", folder="doctor", planned=0.0),),
    )


def _folder(runs: Path) -> str:
    """Whether the folder of runs can be written and locked, and how much fits into it."""
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=runs, prefix=".doctor") as stream:
        stream.write(b"x")
        os.fsync(stream.fileno())
    with Ledger(Project(runs.parent)).alone():
        pass
    stat = os.statvfs(runs)
    free = stat.f_bavail * stat.f_frsize / 2**30
    if free < FREE_GIB:
        raise UsageError(
            f"{runs} has {free:.1f} GiB left: free some (`igpt clean` says what can go), or set shared_folder to another disk"
        )
    return f"{runs} can be written and locked, {free:,.0f} GiB are free"


def _unread(project: Project) -> str:
    """Whether the files about jobs can be read, and the records that they left."""
    ledgers = [Ledger(home) for home in homes(project)]
    damaged = [path for ledger in ledgers for folder in ledger.latest() if (path := ledger.damaged(folder))]
    if damaged:
        raise UsageError(f"{damaged[0]} is not a valid record ({len(damaged)} in all): `igpt resume` runs their stages again")
    return f"{sum(len(ledger.arrays()) for ledger in ledgers)} arrays were submitted from here"


def _answers() -> str:
    """The scheduler's version, and what its controller says of its nodes."""
    require()
    states = [line for line in call("sinfo", "-h", "-o", "%D %T").splitlines() if line]
    return f"{call('sinfo', '--version').strip()}, {', '.join(states)} nodes"


def _settings() -> dict[str, str]:
    """The scheduler's settings by name."""
    return dict(re.findall(r"^(\w+)\s*= (.*)$", call("scontrol", "show", "config"), re.MULTILINE))


def _array_size(profile: Profile) -> str:
    """Whether the cluster takes arrays as large as the profile makes them."""
    most = int(_settings().get("MaxArraySize", "1001")) - 1
    if profile.array_size > most:
        raise UsageError(f"array_size is {profile.array_size} and the cluster takes {most}: lower it in the profile")
    return f"{profile.array_size} of at most {most}"


def _requeue() -> str:
    """How jobs are queued again; jobs ask for it by themselves."""
    held = re.search(r"cred_expire=(\d+)", _settings().get("AuthInfo", ""))
    return f"a job that is queued again waits some {held[1] if held else 120} seconds first"


def _accounting() -> str:
    """Whether sacct answers. It is never needed, so nothing is wrong without it."""
    try:
        with plain_shell():
            done = subprocess.run(["sacct", "-n", "-X", "-S", "now"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "none, which is no trouble: jobs say themselves what becomes of them"
    return "there" if done.returncode == 0 else "none, which is no trouble: jobs say themselves what becomes of them"


def _try(project: Project, profile: Profile, notebook: str) -> str:
    """Whether the scheduler would take such a job, and when it would start: asked without submitting."""
    resources = profile.resources(Stage.of(notebook))
    array = _array(resources, project)
    from submitit.slurm.slurm import _make_sbatch_string

    with tempfile.TemporaryDirectory() as folder:
        parameters = job_parameters(array, profile, resources, after=(), root=project)
        script = Path(folder) / "job.sh"
        script.write_text(_make_sbatch_string("true", folder, **parameters))  # type: ignore[arg-type]
        try:
            with plain_shell():
                done = subprocess.run(["sbatch", "--test-only", str(script)], capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise UsageError(f"sbatch has not answered for {SECONDS:g} s: try again later") from None
    said = " ".join(done.stderr.split()).removeprefix("sbatch: ").removeprefix("allocation failure: ")
    if done.returncode:
        raise UsageError(trouble_in(done.stderr) or f"{said}: mend the profile")
    start = re.search(r"to start at (\S+)", said)
    return f"would start at {start[1]}" if start else said
