"""The command ``igpt``: parses and calls, decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from igpt.companion.experiments.tiers import TIERS
from igpt.errors import StageError, UsageError
from igpt.files import NO_ROOM
from igpt.seeds import MOST, check_seed
from igpt.text import visible

app = typer.Typer(
    name="igpt",
    help="Image GPT, made reproducible: plan, run and read the experiments of the book.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


data = typer.Typer(help="The data sets: list, fetch, check and tokenize them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")


class Tier(StrEnum):
    """How much of the paper a run is."""

    _ignore_ = ("name",)  # type: ignore[assignment]  # the loop's variable is no tier
    for name in TIERS:
        vars()[name] = name


class Format(StrEnum):
    """What a table is printed as."""

    md = "md"
    html = "html"
    csv = "csv"
    latex = "latex"


class WeightFormat(StrEnum):
    """Whose format weights are written in."""

    ours = "ours"
    huggingface = "huggingface"
    onnx = "onnx"


TARGETS = "Experiments (headline-001), tables (linear-probes) or stages; "
Targets = Annotated[list[str] | None, typer.Argument(help=f"{TARGETS}all of the tier if left out.")]
SEEDS = f"0..{MOST}"


def _seed(seed: int | None) -> int | None:
    """A seed, checked if there is one."""
    if seed is not None:
        check_seed(seed)
    return seed


MODELS = (
    "A trained recipe (tiny-l, laptop-l); a released model (igpt-s, igpt-s-bert, igpt-s@131000); a folder of weights; a"
    " TensorFlow prefix."
)
ModelOption = Annotated[str, typer.Option(help=MODELS)]
ModelArgument = Annotated[str, typer.Argument(help=MODELS)]
SeedOption = Annotated[int, typer.Option(metavar=SEEDS, callback=_seed, help="Of the sampler; the same seed, the same images.")]
TemperatureOption = Annotated[float, typer.Option(min=0, help="1 as published; 0 takes the likeliest token.")]
TopKOption = Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest tokens only.")]
TopPOption = Annotated[float | None, typer.Option(help="Draw from the fewest tokens that reach this probability.")]
OutOption = Annotated[Path, typer.Option(help="The PNG to write.")]
TAKES = " ".join(f"{tier.name}: {tier.takes}." for tier in TIERS.values())
TierOption = Annotated[Tier | None, typer.Option(help=f"{TAKES} Default: the smallest tier that has a run of the target.")]


@app.command()
def plan(
    targets: Annotated[list[str] | None, typer.Argument(help=f"{TARGETS}everything if left out.")] = None,
    tier: Annotated[
        Tier | None, typer.Option(help=f"{TAKES} Default: all tiers; with targets, the smallest that has them.")
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Name the inputs that changed since each record.")] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Show hours, memory, disk and downloads; without targets and tier, of every recipe.")
    ] = False,
) -> None:
    """List every cell and its stages: fresh, stale or missing. Nothing is run."""
    if cost and not (targets or tier):
        from igpt.companion.report.costs import memory_table, recipe_table
        from igpt.companion.report.formats import render
        from igpt.project import Project

        typer.echo("\n".join(render(table(Project.here()), "md") for table in (recipe_table, memory_table)))
        return
    from igpt.companion.report.plans import cost_text, plan_text
    from igpt.companion.run.command import plan_targets

    planned, signer = plan_targets(targets or [], tier)
    if cost:
        from igpt.companion.experiments.machines import CARDS, this_machine

        typer.echo(cost_text(planned, signer, [this_machine(), *CARDS]))
        return
    typer.echo(plan_text(planned, signer, why=why))


@app.command()
def run(
    targets: Targets = None,
    tier: TierOption = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME=VALUE", help="Give the stages another parameter; such records stay in runs/."),
    ] = None,
) -> None:
    """Run what is missing or stale, on this machine.

    The targets' dependencies run first. A second run does nothing; an interrupted one continues.
    Records go to book/records, artifacts to runs/. Of stages on released or own weights only those are run that this
    machine can hold, the cheapest first; the others are named with the reason, which is no failure.
    """
    from igpt.companion.run.command import run_targets

    with _stoppable():
        typer.echo(run_targets(targets or [], tier, parameters or []))


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="A table's name, such as headline or low-data.")],
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.md,
    records: Annotated[Path | None, typer.Option(help="A folder of your own records, shown in columns of their own.")] = None,
) -> None:
    """Print a table, published and reproduced side by side."""
    from igpt.companion.report.formats import render
    from igpt.companion.report.tables import result_table
    from igpt.companion.results.store import ReaderStore
    from igpt.project import Project

    yours = ReaderStore(Project.here(), records) if records else None
    typer.echo(render(result_table(name, Project.here(), yours), format.value), nl=False)


@app.command("samples", hidden=True)  # as it was called first
@app.command()
def sample(
    model: ModelOption = "laptop-l",
    n: Annotated[int, typer.Option(min=1, max=256, help="How many images.")] = 16,
    seed: SeedOption = 0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    out: OutOption = Path("samples.png"),
) -> None:
    """Draw images from a model, into one PNG."""
    from igpt.companion.run.samples import Draw, write_samples

    draw = Draw(n=n, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)
    with _stoppable():
        typer.echo(write_samples(model, draw, out=out))


@app.command()
def complete(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG, WebP and the like; their central squares are taken.")],
    model: ModelOption = "laptop-l",
    keep: Annotated[
        str, typer.Option(metavar="top|left|FRACTION", help="What is given: a half, or a part from the top.")
    ] = "top",
    n: Annotated[int, typer.Option(min=1, max=64, help="How many completions of each.")] = 4,
    seed: SeedOption = 0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    out: OutOption = Path("completions.png"),
) -> None:
    """Complete pictures from a part of them.

    Writes a row for each: what is given, its completions, the original. The model reads from the top left,
    row by row; with "left", each row's left half is given as it is reached.
    """
    from igpt.companion.run.samples import Draw, write_completions

    draw = Draw(n=n, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)
    with _stoppable():
        typer.echo(write_completions(model, images, draw, keep=keep, out=out))


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's name: igpt-s, -m, -l, -l-48, -xl; or small-s, laptop-s, tiny-s and their -m and -l.")
    ],
    store: Annotated[Path, typer.Option("--data", help="A train store of `igpt data tokenize`.")],
    out: Annotated[Path, typer.Option(help="The run's folder: checkpoints, weights, metrics.")],
    objective: Annotated[str, typer.Option(help="autoregressive or bert.")] = "autoregressive",
    steps: Annotated[int | None, typer.Option(min=1, help="A shorter run, its schedule with it.")] = None,
    seed: Annotated[int, typer.Option(metavar=SEEDS, callback=_seed, help="Of the first weights and of the batches.")] = 0,
    palette: Annotated[Path | None, typer.Option(help="The tokens' palette.npy; the released colours if left out.")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Images at once on a device; as many as fit if left out.")
    ] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Processes, one a GPU; all GPUs if left out.")] = None,
) -> None:
    """Pre-train a model on tokens, on the GPUs if there are any.

    The same command again continues. Ctrl-C, SIGTERM and SIGUSR1 write a checkpoint first; the exit code is then 75.
    """
    from igpt.companion.run.training import train

    with _stoppable():
        said, code = train(
            recipe,
            objective,
            data=store,
            out=out,
            steps=steps,
            seed=seed,
            palette=palette,
            micro_batch=micro_batch,
            devices=devices,
        )
    typer.echo(said, err=bool(code))
    raise typer.Exit(code)


@app.command("evaluate-loss")
def evaluate_loss(
    model: ModelArgument,
    tokens: Annotated[
        Path | None, typer.Option(help="A token store or .npy file; ImageNet's test tokens as released if left out.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="The first so many only.")] = None,
) -> None:
    """Measure a model's loss on tokens.

    `igpt evaluate-loss igpt-s` repeats a loss that was published with the weights, downloading both; without a GPU
    that takes hours.
    """
    from igpt.companion.run.loss import loss_line

    with _stoppable():
        typer.echo(loss_line(model, tokens, images))


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    to: Annotated[
        WeightFormat,
        typer.Option(help="Ours (safetensors and palette), transformers', or ONNX (one graph for prefill and step)."),
    ] = WeightFormat.huggingface,
    model: ModelOption = "laptop-l",
    half: Annotated[bool, typer.Option("--half", help="ONNX only: weights in half precision, half the size.")] = False,
) -> None:
    """Write weights as a folder that other programs open."""
    from igpt.companion.run.samples import export_weights

    with _stoppable():
        typer.echo(export_weights(model, folder, to=to.value, half=half))


@app.command()
def publish(model: Annotated[str, typer.Argument(help="A recipe that has been trained here, such as laptop-l.")]) -> None:
    """Publish a trained model with the package, with a card."""
    from igpt.companion.run.publish import publish

    typer.echo(publish(model))


@app.command()
def bench(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            help="sampling, features, quantise, tokenise, loading, tokens, training, training_s, tuning, probe; on a GPU"
            " sampling_gpu, features_gpu, training_gpu; all if left out."
        ),
    ] = None,
    toy: Annotated[bool, typer.Option("--toy", help="Tiny sizes, to see that it works; such records stay in runs/.")] = False,
) -> None:
    """Measure this machine's speed against the peers, in turns.

    Takes from a minute (quantise) to an hour (sampling). Leave the machine alone meanwhile.
    """
    from igpt.companion.report.formats import render
    from igpt.companion.report.speed import seconds_table, speed_table
    from igpt.companion.run.command import run_speed
    from igpt.project import Project

    with _stoppable():
        ran = run_speed(tasks or [], toy=toy)
    if toy:
        typer.echo(f"{', '.join(ran)} ran at toy size: nothing is to be read from its times")
        return
    for table in (speed_table(Project.here(), ran), seconds_table(Project.here(), ran)):
        typer.echo(render(table, "md"))


DatasetArgument = Annotated[str, typer.Argument(help="A data set's name; `igpt data list` shows them.")]


@data.command("list")
def list_() -> None:
    """Show each data set: size, download, whether it is here, terms."""
    from igpt.companion.run.datasets import list_datasets

    typer.echo(list_datasets())


@data.command()
def fetch(name: DatasetArgument) -> None:
    """Download a data set, verify and unpack it.

    It comes from its official address. Stopped or cut off, the same command continues. ImageNet can only be had
    from its owner: the message says what to put where.
    """
    from igpt.companion.run.datasets import fetch

    with _stoppable():
        typer.echo(fetch(name))


@data.command()
def check(name: DatasetArgument) -> None:
    """Look at a whole data set: sums, counts, splits, an image."""
    from igpt.companion.run.datasets import check

    with _stoppable():
        typer.echo(check(name))


@data.command()
def tokenize(
    name: DatasetArgument,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side; 32, or the images' own where that is less.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = 1,
    crops: Annotated[
        int, typer.Option(min=0, help="Random crops of each training image, for pre-training; 0 takes the central crop.")
    ] = 0,
    filter: Annotated[str, typer.Option(help="bicubic, box, bilinear or lanczos.")] = "bicubic",
    seed: Annotated[int, typer.Option(metavar=SEEDS, callback=_seed, help="Of the random crops.")] = 0,
    palette: Annotated[Path | None, typer.Option(help="A palette.npy; the released 512 colours if left out.")] = None,
) -> None:
    """Write a data set as tokens, once and for all readers.

    Training and features read them. Stopped or killed, the same command continues.
    """
    from igpt.companion.run.datasets import tokenize

    with _stoppable():
        typer.echo(tokenize(name, resolution=resolution, workers=workers, crops=crops, filter=filter, seed=seed, palette=palette))


@app.command()
def verify(
    record: Annotated[Path, typer.Argument(help="A record's JSON file, ours or anyone's.")],
    repeat: Annotated[bool, typer.Option("--repeat", help="Run its stage afresh, in a folder of its own, and compare.")] = False,
) -> None:
    """Check a record and list its problems; exit 1 if any.

    Compares its parameters, signature and receipt with this checkout, its values with their intervals, and the whole
    with its executed notebook where there is one. Only --repeat computes the values again.
    """
    from igpt.companion.run.verify import verify_record

    with _stoppable():
        said, undoubted = verify_record(record, repeat=repeat)
    typer.echo(said)
    raise typer.Exit(0 if undoubted else 1)


@app.command()
def panel(
    model: ModelOption = "laptop-l",
    measure: Annotated[bool, typer.Option("--measure", help="Instead, time the built one in Chromium, for a record.")] = False,
) -> None:
    """Make what the book's live panel loads; `make book` does.

    The model as ONNX, held-out images out of its record of samples, and the runtime that npm has installed.
    """
    from igpt.companion.run.live import prepare_live
    from igpt.companion.run.live_speed import measure_panel

    with _stoppable():
        typer.echo(measure_panel() if measure else prepare_live(model))


ProfileOption = Annotated[str, typer.Option(help="A cluster's settings: a name in slurm/profiles, or a YAML file.")]
SubmittedTargets = Annotated[
    list[str] | None, typer.Argument(help="Experiments, tables, stages or job numbers; all that was submitted if left out.")
]


@app.command()
def submit(
    profile: ProfileOption,
    targets: Targets = None,
    tier: TierOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which jobs, in which order, at what cost.")] = False,
    dirty: Annotated[bool, typer.Option("--dirty", help="Take uncommitted changes along; the receipts will say so.")] = False,
) -> None:
    """Submit what is missing or stale as jobs to SLURM.

    Jobs run the commit that is checked out now. What is finished, queued or running is not submitted again. The local
    profile runs the same plan here, without SLURM.
    """
    from igpt.companion.slurm.submit import submit_targets

    with _stoppable():
        typer.echo(submit_targets(targets or [], tier, profile, dry_run=dry_run, dirty=dirty))


@app.command()
def status(
    targets: SubmittedTargets = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until nothing is queued or running.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List finished jobs too, not only their number.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All jobs as one JSON document, for programs.")] = False,
) -> None:
    """Show the submitted jobs: state, step, loss, time left."""
    import click

    from igpt.companion.slurm.status import status_json, status_text, watch_status

    if as_json and watch:
        raise UsageError("--json prints one document and --watch prints again and again: leave one of the two out")
    with _stoppable():
        if as_json:
            typer.echo(status_json(targets or []))
            return
        if not watch:
            typer.echo(status_text(targets or [], every=every))
            return
        for text in watch_status(targets or [], every=every):
            if sys.stdout.isatty():
                click.clear()
            typer.echo(text)


@app.command()
def logs(
    target: Annotated[str, typer.Argument(help="An experiment, a table, a stage or a job's number.")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until its jobs end.")] = False,
) -> None:
    """Print what jobs wrote, and where a failed notebook lies."""
    from igpt.companion.slurm.status import log_lines

    with _stoppable():
        for line in log_lines(target, follow=follow):
            typer.echo(line)


@app.command()
def cancel(targets: SubmittedTargets = None) -> None:
    """Cancel queued and running jobs."""
    from igpt.companion.slurm.status import cancel_targets

    typer.echo(cancel_targets(targets or []))


@app.command()
def resume(targets: SubmittedTargets = None) -> None:
    """Queue failed, cancelled and lost jobs again.

    With the code they were first submitted with; training continues from its last checkpoint.
    """
    from igpt.companion.slurm.submit import resume

    typer.echo(resume(targets or []))


@app.command()
def collect() -> None:
    """Bring records of finished jobs into the book.

    Those of this checkout's code are taken; the others are another code's results.
    """
    from igpt.companion.slurm.status import collect

    typer.echo(collect())


@app.command()
def clean(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(help="stale, failed, snapshots, parts; unfinished only when it is named. The first four if left out."),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without it nothing is deleted.")] = False,
) -> None:
    """Say what old runs and code take; --delete deletes them.

    Never deletes what is fresh, published, another user's, or needed by what is at work.
    """
    from igpt.companion.slurm.clean import clean

    with _stoppable():
        typer.echo(clean(kinds or [], delete=delete))


@app.command()
def doctor(
    profile: ProfileOption,
    targets: Targets = None,
    tier: TierOption = None,
    patience: Annotated[float, typer.Option(min=0, help="Minutes to wait for short jobs on nodes; 0 submits none.")] = 10.0,
) -> None:
    """Say what would go wrong on a cluster.

    Short jobs start Python where the profile sends jobs, and look for the GPU, and for the data sets and weights that
    the targets need.
    """
    from igpt.companion.slurm.doctor import examine

    with _stoppable():
        text, code = examine(profile, targets or [], tier, patience=patience)
    typer.echo(text)
    raise typer.Exit(code)


@app.command()
def drill(
    profile: ProfileOption,
    seed: Annotated[
        int | None, typer.Option(metavar=SEEDS, callback=_seed, help="Of the step at which the job is stopped; any if left out.")
    ] = None,
) -> None:
    """Kill a short training; show that it continues exactly.

    Trains the smallest model twice on processors, one of the two stopped through the scheduler at a random step, and
    compares the weights to the bit. Takes some minutes beside the queue's.
    """
    from igpt.companion.slurm.drill import run_drill

    with _stoppable():
        typer.echo(run_drill(profile, seed=seed))


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit 2, failed work one sentence and exit 1."""
    try:
        app(args=[_from_home(word) for word in sys.argv[1:]])
    except UsageError as error:
        sys.exit(_say(error, 2))
    except StageError as error:
        sys.exit(_say(error, 1))
    except OSError as error:
        if error.errno is None or (error.filename is None and error.errno not in NO_ROOM):
            raise
        where = f"{error.filename}: " if error.filename else ""  # standard output, say
        sys.exit(_say(f"{where}{error.strerror}; earlier results are as they were", 1))


def _from_home(word: str) -> str:
    """A word of the command line with the home folder put into ``~/x`` and ``--out=~/x``, which shells pass on as they are."""
    option, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{sign}{Path(value).expanduser()}" if value.startswith("~/") else word


@contextmanager
def _stoppable() -> Iterator[None]:
    """Answer Ctrl-C in a sentence; Typer would end without one."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(_say("stopped; the same command continues", 130)) from None


def _say(message: object, code: int) -> int:
    """Print one sentence on stderr; the exit code."""
    print(f"igpt: {visible(str(message))}", file=sys.stderr)
    return code
