"""The command ``igpt``: parses the command line, calls the rest of the package, prints what it returns."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from importlib.metadata import requires
from pathlib import Path
from typing import Annotated, Literal, ParamSpec

import typer

from igpt.companion.experiments.tiers import TIERS
from igpt.errors import StageError, UsageError
from igpt.files import NO_ROOM
from igpt.project import Project
from igpt.seeds import MOST, check_seed

P = ParamSpec("P")
Output = str | tuple[str | None, int] | None

app = typer.Typer(
    name="igpt",
    help="Image GPT, made reproducible: use the model, run the experiments of the book.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="List, download, check and tokenize data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")


def command(
    name: str | None = None, *, group: typer.Typer = app, checkout: bool = True, hidden: bool = False
) -> Callable[[Callable[P, Output]], Callable[P, Output]]:
    """Register a function as a command: its returned text is printed, its returned code is the exit code.

    Ctrl-C exits with 130 and one sentence on stderr.

    checkout : whether the command needs a checkout; checked first, since its imports may need the extras of a checkout
    """

    def decorate(function: Callable[P, Output]) -> Callable[P, Output]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> None:
            if checkout:
                Project.here()
            try:
                output = function(*args, **kwargs)
            except KeyboardInterrupt:
                raise typer.Exit(_report("stopped; the same command continues", 130)) from None
            text, code = output if isinstance(output, tuple) else (output, 0)
            if text is not None:
                printed = text.encode(errors="backslashreplace").decode()  # names of files that are not UTF-8
                typer.echo(printed, nl=not text.endswith("\n"))
            raise typer.Exit(code)

        group.command(name, hidden=hidden)(called)
        return function

    return decorate


class Tier(StrEnum):
    """The names of the tiers, as choices of ``--tier``."""

    _ignore_ = ("name",)  # type: ignore[assignment]
    for name in TIERS:
        vars()[name] = name


def _seed(seed: int | None) -> int | None:
    """Check the range of a seed. Raises UsageError outside it."""
    return seed if seed is None else check_seed(seed)


TARGETS = "Experiments (headline-001), tables (linear-probes) or stages."
TAKES = " ".join(f"{tier.name}: {tier.takes}." for tier in TIERS.values())
MODELS = (
    "A trained recipe (tiny-l, laptop-l), a released model (igpt-s, igpt-s-bert, igpt-s@131000), a folder of weights, the"
    " folder of an `igpt train`, or a TensorFlow checkpoint without .index."
)
PARAMETERS = "A parameter of the stages. Their records stay in runs/."
SEED = {"metavar": f"0..{MOST}", "callback": _seed}

Targets = Annotated[list[str] | None, typer.Argument(help=f"{TARGETS} Default: everything in the tier.")]
TierOption = Annotated[Tier | None, typer.Option(help=f"{TAKES} Default: the smallest tier that has the target.")]
ModelOption = Annotated[str, typer.Option(help=MODELS)]
SeedOption = Annotated[int, typer.Option(**SEED, help="Of the random draws; the same seed gives the same images.")]
TemperatureOption = Annotated[float, typer.Option(min=0, help="1 samples as published; 0 takes the likeliest token.")]
TopKOption = Annotated[int | None, typer.Option(min=1, help="Sample from the k likeliest tokens only.")]
TopPOption = Annotated[float | None, typer.Option(help="Sample from the fewest tokens that reach this probability.")]
OutOption = Annotated[Path, typer.Option(help="The PNG to write.")]
PaletteOption = Annotated[Path | None, typer.Option(help="A palette.npy. Default: the released 512 colours.")]
Dataset = Annotated[str, typer.Argument(help="A data set's name; see `igpt data list`.")]
ResizeOption = Annotated[
    Literal["crop", "squeeze"],
    typer.Option(help="crop takes the central square, as the paper; squeeze the whole picture, as transformers."),
]
SkipOption = Annotated[bool, typer.Option("--skip-broken", help="Leave out pictures that cannot be read, and name them.")]
PicturesArgument = Annotated[list[Path], typer.Argument(help="Pictures, and folders of them.")]
ProfileOption = Annotated[str, typer.Option(help="A cluster's settings: a name in slurm/profiles, or a YAML file.")]
Submitted = Annotated[
    list[str] | None, typer.Argument(help="Experiments, tables, stages or job numbers. Default: all submitted jobs.")
]


@command()
def plan(
    targets: Annotated[list[str] | None, typer.Argument(help=f"{TARGETS} Default: all.")] = None,
    tier: Annotated[Tier | None, typer.Option(help=f"{TAKES} Default: all; for targets, the smallest that has them.")] = None,
    why: Annotated[bool, typer.Option("--why", help="Name the inputs that changed since each record.")] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Show hours, memory, disk and downloads; alone, of every recipe.")] = False,
) -> str:
    """List every cell and its stages: fresh, stale or missing.

    A cell is one number of a table. Nothing is run.
    """
    if cost and not (targets or tier):
        from igpt.companion.report.costs import memory_table, recipe_table
        from igpt.companion.report.tables import render

        return "\n".join(render(table(Project.here()), "md") for table in (recipe_table, memory_table))
    from igpt.companion.report.plans import cost_text, plan_text
    from igpt.companion.run.command import plan_targets

    planned, signer = plan_targets(targets or [], tier)
    if cost:
        from igpt.companion.experiments.machines import CARDS, this_machine

        return cost_text(planned, signer, [this_machine(), *CARDS])
    return plan_text(planned, signer, why=why)


@command()
def run(
    targets: Targets = None,
    tier: TierOption = None,
    parameters: Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help=PARAMETERS)] = None,
) -> str:
    """Run what is missing or stale, on this machine.

    Dependencies run first. Run it again to resume; finished stages are not run twice. Records go to book/records, artifacts
    to runs/. Stages on released weights or your own run from the cheapest on; those too large for this machine are listed
    with the reason, and the exit code stays 0.
    """
    from igpt.companion.run.command import run_targets

    return run_targets(targets or [], tier, parameters or [])


@command()
def table(
    name: Annotated[
        str | None, typer.Argument(help="A table's name, such as headline or low-data. Default: all values of --records.")
    ] = None,
    format: Annotated[Literal["md", "html", "csv", "latex"], typer.Option(help="Output format.")] = "md",
    records: Annotated[Path | None, typer.Option(help="A folder of your own records, shown in columns of their own.")] = None,
) -> str:
    """Print a table of published and reproduced numbers.

    `igpt table --records runs` prints the values of your own runs, also of those on your own pictures.
    """
    from igpt.companion.report.tables import render, result_table, table_names, values_table
    from igpt.companion.results.store import ReaderStore, RecordStore

    yours = ReaderStore(Project.here(), records) if records else None
    if name is None and yours is None:
        raise UsageError(f"name a table, one of {', '.join(table_names())}, or a folder of your records by --records")
    table = result_table(name, RecordStore(Project.here()), yours) if name else values_table(yours)  # type: ignore[arg-type]
    return render(table, format)


@command("samples", checkout=False, hidden=True)  # the former name of `sample`
@command(checkout=False)
def sample(
    model: ModelOption = "laptop-l",
    n: Annotated[int, typer.Option(min=1, help="How many images; into one PNG up to 256.")] = 16,
    seed: SeedOption = 0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    format: Annotated[Literal["npz", "png"] | None, typer.Option(help="Write a folder: an npz, or a PNG per image.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The PNG to write; with --format, the folder. Default: samples.png; samples.")
    ] = None,
) -> str:
    """Draw images from a model, into one PNG or a folder.

    From a folder (--format) other programs compute an FID. npz: samples.npz with the array arr_0, uint8 (images, height, width,
    channels), as guided-diffusion's evaluator reads it; it takes colour only. png: 00000.png and so on, for programs that read
    a folder, such as pytorch-fid. Run it again to resume; with a larger --n, images are added to those that are there.
    """
    from igpt.companion.run.samples import Draw, write_samples

    draw = Draw(n, seed, temperature, top_k, top_p)
    if format is None:
        return write_samples(model, draw, out=out or Path("samples.png"))
    from igpt.companion.run.sample_folder import write_sample_folder

    return write_sample_folder(model, draw, format=format, out=out or Path("samples"))


@command(checkout=False)
def complete(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG, WebP and the like.")],
    model: ModelOption = "laptop-l",
    keep: Annotated[
        str, typer.Option(metavar="top|left|right|bottom|FRACTION|MASK", help="The given part; a fraction is from the top.")
    ] = "top",
    n: Annotated[int, typer.Option(min=1, max=64, help="How many completions per image.")] = 4,
    seed: SeedOption = 0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    resize: ResizeOption = "crop",
    out: OutOption = Path("completions.png"),
) -> str:
    """Complete pictures from a part of them.

    Writes one row per picture: the given part, its completions, the original. A mask is an image file: white is given, black
    is drawn; greys count as the nearer of the two, and what is transparent as black. It becomes square as
    the pictures do, and is reduced to the model's pixels by nearest neighbour.

    The model draws from the top left, row by row, and looks back only: a given pixel changes what is drawn after it, and
    nothing before it. With "left", the left half of each row is given when the model reaches it. With "bottom", the top is
    drawn as if nothing were given, and with "right" each row's left half without its right one, so that they may not fit.
    """
    from igpt.companion.run.samples import Draw, write_completions

    return write_completions(model, images, Draw(n, seed, temperature, top_k, top_p), keep=keep, out=out, resize=resize)


@command(checkout=False)
def train(
    recipe: Annotated[
        str,
        typer.Argument(help="igpt-s, -m, -l, -l-48, -xl; small-s, laptop-s, tiny-s and their -m and -l; or a file, RECIPE.yaml."),
    ],
    store: Annotated[Path, typer.Option("--data", help="A train store of `igpt data tokenize`.")],
    out: Annotated[Path, typer.Option(help="The run's folder: checkpoints, weights, metrics.")],
    begin_from: Annotated[str | None, typer.Option("--from", help=f"Weights to begin from. {MODELS} Default: none.")] = None,
    objective: Annotated[str | None, typer.Option(help="autoregressive or bert. Default: autoregressive, or the file's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="A shorter run with a schedule of this length.")] = None,
    seed: Annotated[int, typer.Option(**SEED, help="Of the initial weights and the batches.")] = 0,
    palette: Annotated[
        Path | None, typer.Option(help="A palette.npy. Default: that of --from, or the released 512 colours.")
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Images per device and pass. Default: as many as fit.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Processes, one per GPU. Default: all GPUs.")] = None,
) -> tuple[str | None, int]:
    """Pre-train a model on tokens, on GPUs where there are any.

    Run it again to resume. Ctrl-C, SIGTERM and SIGUSR1 write a checkpoint first; the exit code is then 75. While it runs, and
    afterwards, commands that take a model take the run's folder. card.json beside the last weights says how they were made.

    RECIPE.yaml has one "name: value" a line: layers, width, heads, side (pixels), colours, batch, steps, warmup and
    learning_rate; or "base: igpt-s" and the changes to it. It may have objective, betas, mask_rate, and classes, a list such
    as [cat, dog] of the only ones to train on.
    """
    from igpt.companion.run.training import train

    return train(
        recipe,
        objective,
        data=store,
        out=out,
        begin_from=begin_from,
        steps=steps,
        seed=seed,
        palette=palette,
        micro_batch=micro_batch,
        devices=devices,
    )


@command("fine-tune", checkout=False)
def fine_tune(
    dataset: Dataset,
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    model: ModelOption = "laptop-l",
    epochs: Annotated[int, typer.Option(min=1, help="At most; the best number is chosen on held-out pictures.")] = 10,
    seed: Annotated[int, typer.Option(**SEED, help="Of the batches.")] = 0,
) -> tuple[str | None, int]:
    """Train a classifier of a data set.

    It begins from weights that exist. All weights are trained, at several learning rates; the test part is used once, at the
    end. The folder opens here and in transformers, and its README.md says how it was made. Run it again to resume.
    """
    from igpt.companion.run.fine_tune import fine_tune_on

    return fine_tune_on(dataset, model, out=out, epochs=epochs, seed=seed)


@command(checkout=False)
def classify(
    images: Annotated[list[Path], typer.Argument(help="Pictures, and folders of them.")],
    model: Annotated[Path, typer.Option(help="A folder of `igpt fine-tune`, or a classifier that transformers has written.")],
    out: Annotated[Path | None, typer.Option(help="A .csv, or a .png of up to 100 pictures. Default: a table here.")] = None,
    skip_broken: SkipOption = False,
) -> str:
    """Name the class of each picture, with its probability.

    Pictures become square as they did when the classifier was trained. Run it again to resume.
    """
    from igpt.companion.run.classify import classify

    return classify(model, images, out=out, skip=skip_broken)


@command(checkout=False)
def features(
    images: PicturesArgument,
    out: Annotated[Path, typer.Option(help="The .parquet or .npz file to write.")],
    model: ModelOption = "laptop-l",
    layers: Annotated[str, typer.Option(help="Some, such as 12,16 or 10-14; a model of L blocks has 0 to L.")] = "all",
    resize: ResizeOption = "crop",
    skip_broken: SkipOption = False,
) -> str:
    """Write features of pictures, a row each.

    The columns are file, label (the folder that a picture is in, in a given folder) and layer_12 for layer 12, and so on.
    Read them back with pandas.read_parquet("x.parquet") and numpy.stack(frame["layer_12"]), or with
    numpy.load("x.npz")["layer_12"]. Features are averages over positions, as the linear probe takes them; a GPU computes them
    in half precision. Pictures are turned upright as EXIF says. laptop-l is a small model of 16 x 16 pixels that comes with the
    package; igpt-s is OpenAI's smallest. Run it again to resume.
    """
    from igpt.companion.run.features import write_features

    return write_features(model, images, layers=layers, out=out, resize=resize, skip=skip_broken)


@command(checkout=False)
def score(
    images: PicturesArgument,
    out: Annotated[Path, typer.Option(help="The .csv file to write.")],
    model: ModelOption = "laptop-l",
    resize: ResizeOption = "crop",
    skip_broken: SkipOption = False,
) -> str:
    """Write how likely a model finds each picture, as a table.

    The least likely comes first. The columns are file, label (the folder that a picture is in, in a given folder),
    nats_per_token and bits_per_pixel. A token is a pixel, so bits a pixel are bits a token: of palette colours, not of RGB
    values. Compare them only between models of one palette and size. laptop-l is a small model of 16 x 16 pixels that comes
    with the package; igpt-s is OpenAI's smallest. Run it again to resume.
    """
    from igpt.companion.run.score import write_scores

    return write_scores(model, images, out=out, resize=resize, skip=skip_broken)


@command("evaluate-loss", checkout=False)
def evaluate_loss(
    model: Annotated[str, typer.Argument(help=MODELS)],
    tokens: Annotated[Path | None, typer.Option(help="A token store or .npy file. Default: ImageNet's released ones.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Use the first n images only.")] = None,
) -> str:
    """Measure a model's loss on tokens.

    `igpt evaluate-loss igpt-s` repeats a loss published with the weights; it downloads both, and takes hours without a GPU.
    """
    from igpt.companion.run.loss import loss_line

    return loss_line(model, tokens, images)


@command(checkout=False)
def export(
    folder: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    to: Annotated[Literal["ours", "huggingface", "onnx"], typer.Option(help="The format.")] = "huggingface",
    model: ModelOption = "laptop-l",
    half: Annotated[bool, typer.Option("--half", help="ONNX only: weights in half precision, half the size.")] = False,
) -> str:
    """Write weights in a format that other programs read.

    ours: safetensors and palette. huggingface: for transformers. onnx: one graph for prefill and steps.
    """
    from igpt.companion.run.samples import export_weights

    return export_weights(model, folder, to=to, half=half)


@command()
def publish(model: Annotated[str, typer.Argument(help="A recipe that was trained here, such as laptop-l.")]) -> str:
    """Publish a trained model with the package, with a card."""
    from igpt.companion.run.publish import publish

    return publish(model)


@command()
def bench(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            help="sampling, features, pictures, quantise, tokenise, loading, tokens, training, training_s, tuning, probe; on a"
            " GPU sampling_gpu, features_gpu, training_gpu. Default: all."
        ),
    ] = None,
    toy: Annotated[bool, typer.Option("--toy", help="Tiny sizes, to check that it works; such records stay in runs/.")] = False,
) -> str:
    """Compare this code's speed with others', on this machine.

    Takes from a minute (quantise) to an hour (sampling). Run nothing else meanwhile.
    """
    from igpt.companion.report.speed import seconds_table, speed_table
    from igpt.companion.report.tables import render
    from igpt.companion.results.store import RecordStore
    from igpt.companion.run.command import run_speed

    ran = run_speed(tasks or [], toy=toy)
    if toy:
        return f"{', '.join(ran)} ran at toy size: toy timings are meaningless"
    return "\n".join(render(table(RecordStore(Project.here()), ran), "md") for table in (speed_table, seconds_table))


@command("list", group=data, checkout=False)
def list_() -> str:
    """Show each data set: size, download, whether it is here, terms."""
    from igpt.companion.run.datasets import list_datasets

    return list_datasets()


@command(group=data, checkout=False)
def add(
    name: Annotated[str, typer.Argument(help="The name to use: small letters, digits, - and _.")],
    source: Annotated[Path, typer.Argument(help="A folder of train/CLASS/ and test/CLASS/, or of CLASS/; a .csv or .npz file.")],
    resize: ResizeOption = "crop",
    skip_broken: SkipOption = False,
) -> str:
    """Register pictures of your own as a data set.

    They stay where they are. Without test/, a fifth of each class becomes it, chosen by SHA-256. A .csv file names the
    columns file and label, and may name split. An .npz file holds images (uint8) and labels. Pictures are turned upright as
    EXIF says. Run it again after they have changed.
    """
    from igpt.companion.run.datasets import add

    return add(name, source, resize=resize, skip=skip_broken)


@command(group=data, checkout=False)
def fetch(name: Dataset) -> str:
    """Download a data set, verify and unpack it.

    It comes from its official address. Run it again to resume. ImageNet comes from its owner only: the message says which
    files to put where.
    """
    from igpt.companion.run.datasets import fetch

    return fetch(name)


@command(group=data, checkout=False)
def check(name: Dataset) -> str:
    """Check a whole data set: checksums, counts, splits, an image."""
    from igpt.companion.run.datasets import check

    return check(name)


@command(group=data, checkout=False)
def tokenize(
    name: Dataset,
    resolution: Annotated[int | None, typer.Option(min=1, help="Pixels per side. Default: 32, or the images' if fewer.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = 1,
    crops: Annotated[int, typer.Option(min=0, help="Random crops per training image; 0 takes the central crop.")] = 0,
    filter: Annotated[str, typer.Option(help="bicubic, box, bilinear or lanczos.")] = "bicubic",
    seed: Annotated[int, typer.Option(**SEED, help="Of the random crops.")] = 0,
    palette: PaletteOption = None,
) -> str:
    """Write a data set's tokens to disk, for training and features.

    Run it again to resume.
    """
    from igpt.companion.run.datasets import tokenize

    return tokenize(name, resolution=resolution, workers=workers, crops=crops, filter=filter, seed=seed, palette=palette)


@command(group=data, checkout=False)
def palette(
    name: Dataset,
    colours: Annotated[int, typer.Option(min=1, max=65536, help="How many colours.")] = 512,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("palette.npy"),
    resolution: Annotated[int | None, typer.Option(min=1, help="Pixels per side. Default: 32, or the images' if fewer.")] = None,
    seed: Annotated[int, typer.Option(**SEED, help="Of k-means and of the pixels it takes.")] = 0,
) -> str:
    """Fit colours to a data set's training images, for --palette.

    Of sets that are larger than memory, 10,000 images are drawn.
    """
    from igpt.companion.run.datasets import fit_palette

    return fit_palette(name, colours=colours, out=out, resolution=resolution, seed=seed)


@command()
def verify(
    record: Annotated[Path, typer.Argument(help="A record's JSON file, ours or anyone's.")],
    repeat: Annotated[bool, typer.Option("--repeat", help="Also run its stage again in a new folder, and compare.")] = False,
) -> tuple[str, int]:
    """Check a record and list its problems; exit 1 if any.

    Compares its parameters, signature and receipt with this checkout, its values with their intervals, and all of it with
    the executed notebook where there is one. Only --repeat computes the values again.
    """
    from igpt.companion.run.verify import verify_record

    text, valid = verify_record(record, repeat=repeat)
    return text, 0 if valid else 1


@command()
def panel(
    model: ModelOption = "laptop-l",
    measure: Annotated[bool, typer.Option("--measure", help="Time the built panel in Chromium instead, for a record.")] = False,
) -> str:
    """Make the files of the book's live panel.

    These are the model as ONNX, held-out images from its record of samples, and the runtime that npm installed. `make book`
    runs this.
    """
    from igpt.companion.run.live import prepare_live
    from igpt.companion.run.live_speed import measure_panel

    return measure_panel() if measure else prepare_live(model)


@command()
def submit(
    profile: ProfileOption,
    targets: Targets = None,
    tier: TierOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the jobs, their order and cost; submit none.")] = False,
    dirty: Annotated[bool, typer.Option("--dirty", help="Include uncommitted changes; the receipts note it.")] = False,
) -> str:
    """Submit what is missing or stale as jobs to SLURM.

    Jobs run the commit that is checked out now. What is finished, queued or running is not submitted again. The profile
    `local` runs the same plan here, without SLURM.
    """
    from igpt.companion.slurm.submit import submit_targets

    return submit_targets(targets or [], tier, profile, dry_run=dry_run, dirty=dirty)


@command()
def status(
    targets: Submitted = None,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until nothing is queued or running.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List finished jobs too, not only their number.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All jobs as one JSON document, for programs.")] = False,
) -> str | None:
    """Show the submitted jobs: state, step, loss, time left."""
    from igpt.companion.slurm.status import status_json, status_text, watch_status

    if as_json and watch:
        raise UsageError("--json prints one document and --watch prints again and again: leave one of the two out")
    if as_json:
        return status_json(targets or [])
    if not watch:
        return status_text(targets or [], every=every)
    for text in watch_status(targets or [], every=every):
        if sys.stdout.isatty():
            typer.echo("\033[2J\033[H", nl=False)  # clear the screen
        typer.echo(text)
    return None


@command()
def logs(
    target: Annotated[str, typer.Argument(help="An experiment, a table, a stage or a job number.")],
    follow: Annotated[bool, typer.Option("--follow", help="Continue until its jobs end.")] = False,
) -> None:
    """Print the output of jobs, and where a failed notebook is."""
    from igpt.companion.slurm.status import log_lines

    for line in log_lines(target, follow=follow):
        typer.echo(line)


@command()
def cancel(targets: Submitted = None) -> str:
    """Cancel queued and running jobs."""
    from igpt.companion.slurm.status import cancel_targets

    return cancel_targets(targets or [])


@command()
def resume(targets: Submitted = None) -> str:
    """Queue failed, cancelled and lost jobs again.

    They run the code they were submitted with; training continues from its last checkpoint.
    """
    from igpt.companion.slurm.submit import resume

    return resume(targets or [])


@command()
def collect() -> str:
    """Copy records of finished jobs into the book.

    Records that other code made are left out.
    """
    from igpt.companion.slurm.status import collect

    return collect()


@command()
def clean(
    kinds: Annotated[
        list[str] | None, typer.Argument(help="stale, failed, snapshots, parts, unfinished. Default: the first four.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them. Without it nothing is deleted.")] = False,
) -> str:
    """List what old runs and code take on disk, or delete it.

    Never deletes what is fresh, published, another user's, or needed by running jobs.
    """
    from igpt.companion.slurm.clean import clean

    return clean(kinds or [], delete=delete)


@command()
def doctor(
    profile: ProfileOption,
    targets: Targets = None,
    tier: TierOption = None,
    patience: Annotated[float, typer.Option(min=0, help="Minutes to wait for test jobs; 0 submits none.")] = 10.0,
) -> tuple[str, int]:
    """Check a cluster before jobs are submitted.

    Short test jobs start Python as the profile says, and look for the GPU and for the data sets and weights that the
    targets need.
    """
    from igpt.companion.slurm.doctor import examine

    return examine(profile, targets or [], tier, patience=patience)


@command()
def drill(
    profile: ProfileOption,
    seed: Annotated[int | None, typer.Option(**SEED, help="Of the step at which the job is stopped. Default: random.")] = None,
) -> str:
    """Stop a short training; check that it resumes exactly.

    Trains the smallest model twice on CPUs, stops one of the two through the scheduler at a random step, and compares the
    weights bit by bit. Takes some minutes, and the time in the queue.
    """
    from igpt.companion.slurm.drill import run_drill

    return run_drill(profile, seed=seed)


def main() -> None:
    """Entry point. Usage errors exit with 2, failed runs with 1, each with one sentence on stderr; bugs show a traceback."""
    try:
        app(args=[_expand_home(word) for word in sys.argv[1:]])
    except UsageError as error:
        sys.exit(_report(error, 2))
    except StageError as error:
        sys.exit(_report(error, 1))
    except ModuleNotFoundError as error:
        extra = _extra_of(error.name or "")
        if extra is None:
            raise
        sys.exit(_report(f'this command needs {error.name}, which is not installed: pip install "igpt[{extra}]"', 2))
    except OSError as error:
        if error.errno is None or (error.filename is None and error.errno not in NO_ROOM):
            raise
        where = f"{error.filename}: " if error.filename else ""  # errors on standard output have no file name
        sys.exit(_report(f"{where}{error.strerror}; earlier results are as they were", 1))


def _extra_of(module: str) -> str | None:
    """The first extra of igpt that installs a module; None if no extra does."""
    lines = "\n".join(requires("igpt") or [])
    match = re.search(rf"^{re.escape(module)}\b.*extra == ['\"](\w+)['\"]", lines, re.MULTILINE)
    return match and match[1]


def _expand_home(word: str) -> str:
    """Expand ``~/x`` and ``--out=~/x``, which some shells do not expand."""
    option, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{sign}{Path(value).expanduser()}" if value.startswith("~/") else word


def _report(message: object, code: int) -> int:
    """Print one sentence on stderr and return ``code``."""
    from igpt.progress import tell

    tell(f"igpt: {message}")
    return code
