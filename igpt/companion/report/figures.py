"""The book's figures as functions of records: a notebook draws its own run, the book all seeds.

Lines are means over seeds; bars are 95 % Student intervals over seeds, absent for a single seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from igpt.companion.experiments.published import curve_points
from igpt.companion.experiments.tiers import tier_of
from igpt.companion.report.style import BASELINE, colour, marker, theme
from igpt.companion.results.record import Record
from igpt.companion.stage import Stage
from igpt.data import data_card
from igpt.measure import mean_interval
from igpt.train.recipe import training_flops
from igpt.train.recipes import recipe

# Inputs of a probe without a network: label and line style.
INPUTS = {
    "pixels": ("raw pixels", ":"),
    "colours": ("palette colours", "-."),
    "indices": ("palette indices, counted", (0, (1, 4))),
}


def palette(record: Record) -> Figure:
    """The palette's colours, and validation images before and after quantisation."""
    centres = np.array([row["centre"] for row in record.series["centres"]], dtype=np.uint8)
    examples = record.series["examples"]
    figure = _figure(7, 3.4)
    swatch, *rest = figure.subplot_mosaic(
        [["s"] * len(examples), [f"o{i}" for i in range(len(examples))], [f"q{i}" for i in range(len(examples))]],
        height_ratios=[0.5, 1, 1],
    ).values()
    _show(swatch, centres[None])
    swatch.set_title(f"{len(centres)} colours, darkest first", loc="left")
    for axes, example in zip(rest[: len(examples)], examples, strict=True):
        _show(axes, _square(np.array(example["original"], dtype=np.uint8).reshape(-1, centres.shape[1])))
    for axes, example in zip(rest[len(examples) :], examples, strict=True):
        _show(axes, _square(centres[np.array(example["tokens"])]))
    rest[0].set_title("as they are", loc="left")
    rest[len(examples)].set_title("in the palette", loc="left")
    return figure


def losses(records: Sequence[Record]) -> Figure:
    """Training and validation loss along pre-training, one panel per objective."""
    rows = [
        {"model": _model(record), "objective": record.parameters["objective"], **point}
        for record in records
        for point in record.series["losses"]
    ]
    data = pd.DataFrame(rows).melt(["model", "objective", "step"], ["validation", "train"], "loss of", "nats")
    objectives = list(dict.fromkeys(data["objective"]))
    colours = {model: colour(model) for model in dict.fromkeys(data["model"])}
    figure = _figure(3.6 * len(objectives) + 0.6, 3.3)
    for axes, objective in zip(_panels(figure, len(objectives)), objectives, strict=True):
        part = data[data["objective"] == objective]
        sns.lineplot(part, x="step", y="nats", hue="model", style="loss of", palette=colours, errorbar=_interval, ax=axes)
        axes.set(title=str(objective), xlabel="step", ylabel="loss (nats per token)")
        axes.legend(fontsize=9)
    return figure


def compute(records: Sequence[Record]) -> Figure:
    """Held-out loss over training operations so far, one line per model; shows the best size for a budget."""
    figure = _figure(5.5, 3.3)
    axes = figure.subplots()
    for record in records:
        plan = recipe(_model(record), "autoregressive")
        rows = [row for row in record.series["losses"] if float(row["step"]) > 0]  # type: ignore[arg-type]
        spent = [training_flops(plan.shape, plan.batch * float(row["step"])) for row in rows]  # type: ignore[arg-type]
        losses = [row["validation"] for row in rows]
        axes.plot(spent, losses, color=colour(plan.name), marker=marker(plan.name), label=plan.name)
    axes.set(xscale="log", xlabel="operations of training so far", ylabel="held-out loss (nats per token)")
    axes.legend(fontsize=9)
    return figure


def depth(records: Sequence[Record]) -> Figure:
    """Probe accuracy by layer, trained and untrained, and baselines without a network as lines; one panel per model."""
    models = list(dict.fromkeys(map(_model, records)))
    figure = _figure(2.5 * len(models) + 1, 3.3)
    for axes, model in zip(_panels(figure, len(models), share=True), models, strict=True):
        of_model = [record for record in records if _model(record) == model]
        data = pd.DataFrame([{"network": k, **row} for r in of_model for k in ("trained", "untrained") for row in r.series[k]])
        data["percent"] = 100 * data["accuracy"]
        for network, style in (("trained", "-"), ("untrained", "--")):
            sns.lineplot(
                data[data["network"] == network],
                x="layer",
                y="percent",
                color=colour(model) if network == "trained" else BASELINE,
                marker=marker(model),
                linestyle=style,
                errorbar=_interval,
                err_style="bars",
                label=network,
                legend=False,
                ax=axes,
            )
        measured = {name: look for name, look in INPUTS.items() if all(name in record.values for record in of_model)}
        for name, (label, line) in measured.items():  # data sets of tokens alone have fewer baselines
            mean = 100 * float(np.mean([record.values[name].value for record in of_model]))
            axes.axhline(mean, color=BASELINE, linestyle=line, label=label)
        axes.set(title=model, xlabel="layer", ylabel="test accuracy (%)", xticks=sorted(set(data["layer"])))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def probe_settings(record: Record) -> Figure:
    """Validation accuracy over the probe's C, by scaling and solver; bars are intervals over the validation images."""
    figure = _figure(5.5, 3.3)
    axes = figure.subplots()
    data = pd.DataFrame(record.series["settings"])
    for (scaling, solver), rows in data.groupby(["scaling", "solver"], sort=False):
        bars = 100 * np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]])
        axes.errorbar(
            rows["strength"],
            100 * rows["value"],
            bars,
            color=colour(_model(record)) if scaling == "standardised" else BASELINE,
            linestyle="-" if solver == "optimum" else "--",
            marker="o" if solver == "optimum" else "s",
            label=f"{scaling} features, {'the optimum' if solver == 'optimum' else 'scikit-learn as it comes'}",
        )
    axes.set(xscale="log", xlabel="strength C", ylabel="validation accuracy (%)", title=_model(record))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def rate_search(records: Sequence[Record]) -> Figure:
    """Held-out loss of short runs over the learning rate, one line per model and objective."""
    figure = _figure(5.5, 3.3)
    axes = figure.subplots()
    for record in records:
        rows = pd.DataFrame(record.series["rates"]).sort_values("rate")
        bert = record.parameters["objective"] == "bert"
        axes.plot(
            rows["rate"],
            rows["loss"],
            color=colour(_model(record)),
            marker=marker(_model(record)),
            linestyle="--" if bert else "-",
            label=_model(record),
        )
    axes.set(xscale="log", xlabel="learning rate", ylabel="held-out loss (nats per token)")
    rates = sorted({float(row["rate"]) for record in records for row in record.series["rates"]})  # type: ignore[arg-type]
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.legend(fontsize=9)
    return figure


def published_depth(records: Sequence[Record]) -> Figure:
    """The paper's Figure 2, digitised, thin and grey: iGPT-L's probes by layer; our records, if any, over it."""
    digitised = _digitised("figure-2")
    lines = dict(zip(digitised["dataset"].unique(), ("-", "--", ":"), strict=True))
    figure = _figure(6, 3.9)
    axes = figure.subplots()
    for dataset, points in digitised.groupby("dataset", sort=False):
        low, high = points["y"] - points["uncertainty"], points["y"] + points["uncertainty"]
        axes.fill_between(points["x"], low, high, color=BASELINE, alpha=0.3, linewidth=0)
        name = data_card(str(dataset)).title
        axes.plot(points["x"], points["y"], color=BASELINE, linewidth=0.9, linestyle=lines[dataset], label=name)
    for record in records:
        rows = pd.DataFrame(record.series["trained"])
        line = lines[record.parameters["dataset"]]
        axes.plot(rows["layer"], 100 * rows["accuracy"], color=colour("iGPT-L"), linestyle=line)
    if records:
        axes.plot([], [], color=colour("iGPT-L"), label="reproduced")
    axes.set(xlabel="layer", ylabel="test accuracy (%)", title="iGPT-L")
    _say_digitised(figure, axes, digitised, "Figure 2")
    return figure


def published_loss(records: Sequence[Record]) -> Figure:
    """The paper's Figure 3, digitised, thin and grey: probe accuracy over loss; our records, if any, over it."""
    digitised = _digitised("figure-3")
    figure = _figure(6, 3.9)
    axes = figure.subplots()
    for model, points in digitised.groupby("model", sort=False):
        look = {"color": BASELINE, "linewidth": 0.9, "marker": marker(str(model)), "markersize": 4}
        axes.errorbar(points["x"], points["y"], points["uncertainty"], label=str(model), **look)  # type: ignore[arg-type]
    for record in records:
        name, rows = _model(record), pd.DataFrame(record.series["milestones"])
        axes.plot(rows["loss"], 100 * rows["accuracy"], color=colour(name), marker=marker(name), label=f"{name}, reproduced")
    axes.set(xlabel="validation loss (nats per token)", ylabel="test accuracy on CIFAR-10 (%)")
    axes.invert_xaxis()
    _say_digitised(figure, axes, digitised, "Figure 3")
    return figure


def _digitised(curve: str) -> pd.DataFrame:
    """The digitised points of one of the paper's figures, without those outside of its range."""
    return pd.DataFrame([asdict(point) for point in curve_points() if point.curve == curve]).dropna(subset="y")


def _say_digitised(figure: Figure, axes: Axes, digitised: pd.DataFrame, name: str) -> None:
    """Add a legend below that explains the grey lines and gives the digitising error in points."""
    low, high = digitised["uncertainty"].min(), digitised["uncertainty"].max()
    error = f"±{low:g}" if low == high else f"±{low:g} to {high:g}"
    title = f"grey: digitised from the paper's {name} ({error} points)"
    legend = axes.get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=4 if len(legend[0]) <= 4 else 2, fontsize=9, title=title)


def loss_against_probe(records: Sequence[Record]) -> Figure:
    """Probe accuracy over generative loss along pre-training, one line per model."""
    figure = _figure(5, 3.5)
    axes = figure.subplots()
    for model in dict.fromkeys(map(_model, records)):
        curves = [record.series["milestones"] for record in records if _model(record) == model]
        for index in range(len(curves[0])):
            loss, low, high = mean_interval([float(m[index]["loss"]) for m in curves])  # type: ignore[arg-type]
            mean, below, above = mean_interval([100 * float(m[index]["accuracy"]) for m in curves])  # type: ignore[arg-type]
            axes.errorbar(
                loss,
                mean,
                xerr=None if math.isinf(low) else [[loss - low], [high - loss]],
                yerr=None if math.isinf(below) else [[mean - below], [above - mean]],
                color=colour(model),
                marker=marker(model),
                label=model if index == 0 else None,
            )
        means = np.mean([[(p["loss"], 100 * float(p["accuracy"])) for p in m] for m in curves], axis=0)  # type: ignore[arg-type]
        axes.plot(means[:, 0], means[:, 1], color=colour(model))
    tier = tier_of(Stage.of("loss_against_probe", **records[0].parameters))
    title = f"{tier} tier, {records[0].parameters['dataset']}"
    axes.set(title=title, ylabel="probe accuracy on test (%)", xlabel="validation loss (nats per token)")
    axes.invert_xaxis()
    axes.legend(fontsize=9, loc="lower right")
    return figure


def low_data(records: Sequence[Record]) -> Figure:
    """Accuracy over the number of labels, for features and both baselines; bars over draws."""
    data = pd.DataFrame([row for record in records for row in record.series["draws"] if row["strength"] == 1.0])
    # The draws are the same for every seed: one value per draw, its mean over seeds.
    data = data.groupby(["input", "labels", "draw"])["accuracy"].mean().reset_index()
    data["percent"] = 100 * data["accuracy"].astype(float)
    names = {"features": "pre-trained features", "pixels": "raw pixels", "untrained": "untrained network"}
    figure = _figure(5.5, 3.4)
    axes = figure.subplots()
    for key, (style, mark) in {"features": ("-", "D"), "pixels": (":", "s"), "untrained": ("--", "o")}.items():
        sns.lineplot(
            data[data["input"] == key],
            x="labels",
            y="percent",
            color=colour("tiny-l") if key == "features" else BASELINE,
            linestyle=style,
            marker=mark,
            errorbar=_interval,
            err_style="bars",
            label=names[key],
            ax=axes,
        )
    axes.set(xscale="log", xlabel="labels (logarithmic)", ylabel="test accuracy (%)", xticks=sorted(set(data["labels"])))
    axes.set_xticks(sorted(set(data["labels"])), labels=[str(n) for n in sorted(set(data["labels"]))])
    axes.minorticks_off()
    axes.legend(fontsize=9)
    return figure


# Baselines of pre-training by stage and value: label and line style.
CONTROLS = {
    ("linear_probe", "untrained"): ("before training", "--"),
    ("linear_probe", "pixels"): ("raw pixels", ":"),
    ("fine_tune", "from_scratch"): ("from scratch, with labels", "-."),
}


def bert(records: Sequence[Record]) -> Figure:
    """Autoregressive and BERT, with one mask and five, by linear probe and fine-tuning; the counterpart of Figure 4."""
    rows = []
    for record in records:
        evaluation = {"linear_probe": "linear probe", "fine_tune": "fine-tuning"}[record.stage.split(",")[0]]
        objective = str(record.parameters["objective"])
        keys = {"accuracy": "BERT, one mask", "accuracy_voted": "BERT, five masks"} if objective == "bert" else {}
        for key, label in (keys or {"accuracy": "autoregressive"}).items():
            rows.append({"evaluation": evaluation, "objective": label, "percent": 100 * record.values[key].value})
    figure = _figure(5.5, 3.4)
    axes = figure.subplots()
    colours = [colour("tiny-l"), colour("tiny-l BERT"), "#e3b6ce"]
    order = ["autoregressive", "BERT, one mask", "BERT, five masks"]
    sns.barplot(
        pd.DataFrame(rows), x="evaluation", y="percent", hue="objective", hue_order=order, palette=colours,
        errorbar=_interval, err_kws={"color": BASELINE}, capsize=0.1, ax=axes,
    )  # fmt: skip
    for (stage, key), (label, line) in CONTROLS.items():
        values = [r.values[key].value for r in records if r.stage.startswith(stage) and r.parameters["objective"] != "bert"]
        index = ["linear_probe", "fine_tune"].index(stage)
        axes.hlines(100 * float(np.mean(values)), index - 0.4, index + 0.4, BASELINE, linestyle=line, label=label)
    axes.set(ylim=(0, 100), xlabel="", ylabel="test accuracy (%)")
    axes.legend(fontsize=9, loc="lower right", title=None, frameon=True, facecolor="none")
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1))
    return figure


def search(record: Record) -> Figure:
    """Validation accuracy by epoch, one line per learning rate."""
    data = pd.DataFrame(record.series["search"])
    data["percent"] = 100 * data["validation"]
    data["learning rate"] = data["learning_rate"].map("{:.2g}".format)
    figure = _figure(5, 3.2)
    axes = figure.subplots()
    sns.lineplot(data, x="epoch", y="percent", style="learning rate", color=colour("tiny-l"), markers=True, ax=axes)
    axes.set(ylabel="validation accuracy (%)", xticks=sorted(set(data["epoch"])))
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1))
    return figure


def own_pictures(record: Record) -> Figure:
    """Test accuracy of the fine-tuned classifier, of features, of pixels, and of the commonest class, with intervals."""
    figure = _figure(5, 2.4)
    axes = figure.subplots()
    rows = {"fine_tuned": "fine-tuned classifier", "features": "features, middle layer", "pixels": "raw pixels"}
    rows["commonest"] = "always the commonest class"
    for place, key in enumerate(reversed(rows)):
        value = record.values[key]
        assert value.low is not None and value.high is not None
        bars = [[100 * (value.value - value.low)], [100 * (value.high - value.value)]]
        ours = key in ("fine_tuned", "features")
        look = {"color": colour(_model(record)) if ours else BASELINE, "marker": "o" if ours else "s", "linestyle": ""}
        axes.errorbar([100 * value.value], [place], xerr=bars, capsize=3, **look)  # type: ignore[arg-type]
    axes.set_yticks(range(len(rows)), list(reversed(rows.values())))
    axes.set(xlabel="accuracy on new pictures (%)", title=_model(record))
    return figure


SHOWN = 8  # images in a figure's row of samples, or in its rows of completions


def samples(record: Record, page: int = 0) -> Figure:
    """Unconditional samples, unselected: page 0 is the first row, pages from 1 on have two rows each."""
    images = [row["tokens"] for row in record.series["samples"]]
    rows = [images[start : start + SHOWN] for start in range(0, len(images), SHOWN)]
    return _grid(record, rows[2 * page - 2 : 2 * page] if page else rows[:1], [])


def completions(record: Record, page: int = 1) -> Figure:
    """One row per image: the given half, its completions, the original."""
    rows = record.series["completions"]
    columns = []
    images = list(dict.fromkeys(row["image"] for row in rows))
    for image in images[SHOWN * (page - 1) : SHOWN * page]:
        completed = [row for row in rows if row["image"] == image]
        kept, original = int(completed[0]["kept"]), completed[0]["original"]  # type: ignore[arg-type]
        assert isinstance(original, list)
        prompt = [*original[:kept], *[-1] * (len(original) - kept)]
        columns.append([prompt, *(row["tokens"] for row in completed), original])
    return _grid(record, columns, ["given", *["completed"] * (len(columns[0]) - 2), "original"])


def _grid(record: Record, rows: Sequence[Sequence[object]], titles: Sequence[str]) -> Figure:
    """Token images in rows and columns; token -1 is a pixel that is not given, and is transparent."""
    colours = np.array([row["centre"] for row in record.series["palette"]], dtype=np.uint8)
    height, width = len(rows), len(rows[0])
    side = math.isqrt(len(rows[0][0]))  # type: ignore[arg-type]
    step = side + 1  # a transparent pixel between images
    sheet = np.zeros((height * step - 1, width * step - 1, 4), dtype=np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            tokens = np.array(image)
            pixels = np.repeat(colours[tokens], 4 - colours.shape[1] if colours.shape[1] == 1 else 1, axis=-1)
            opaque = np.where(tokens < 0, 0, 255).astype(np.uint8)[:, None]
            sheet[y * step : y * step + side, x * step : x * step + side] = _square(np.concatenate([pixels, opaque], axis=1))
    figure = _figure(0.95 * width, 0.95 * height + (0.3 if titles else 0))
    axes = figure.subplots()
    _show(axes, sheet)
    for x, title in enumerate(titles):
        axes.text(x * step + (side - 1) / 2, -1, title, ha="center", va="bottom", fontsize=9)
    return figure


def _figure(width: float, height: float) -> Figure:
    """An empty figure, size in inches; sets the book's light theme if it is not active."""
    if plt.rcParams["svg.hashsalt"] != "igpt":
        with theme():
            return plt.figure(figsize=(width, height), layout="constrained")
    return plt.figure(figsize=(width, height), layout="constrained")


def _panels(figure: Figure, count: int, *, share: bool = False) -> list[Axes]:
    """Axes side by side."""
    return list(figure.subplots(1, count, sharey=share, squeeze=False)[0])


def _show(axes: Axes, image: NDArray[np.uint8]) -> None:
    """Show pixels (H, W, channels) without axes."""
    grey = image.shape[-1] == 1
    axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()


def _square(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels (positions, channels) in raster order as a square image."""
    side = math.isqrt(len(pixels))
    return pixels.reshape(side, side, -1)


def _model(record: Record) -> str:
    """The model's name in figures."""
    return f"{record.parameters['model']}{' BERT' if record.parameters.get('objective') == 'bert' else ''}"


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Error bar for seaborn: the 95 % interval over seeds, of length zero for a single seed."""
    mean, low, high = mean_interval(list(values))
    return (mean, mean) if math.isinf(low) else (low, high)
