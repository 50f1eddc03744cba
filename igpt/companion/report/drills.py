"""The table of drills: trainings that a cluster's scheduler killed, held against the same ones left alone."""

from __future__ import annotations

from igpt.companion.report.tables import Cell, ResultTable
from igpt.companion.results.record import usable_record
from igpt.project import Project


def drills_table(project: Project) -> ResultTable:
    """One row a drill."""
    rows = []
    for path in sorted(project.records.glob("drill/*.json")):
        record = usable_record(path)
        if record is None:
            continue
        receipt = record.receipt
        lines = (("Command", receipt.command), ("Hardware", receipt.hardware), ("Finished", receipt.finished))
        where = Cell(str(record.parameters["profile"]), lines, "measured", (str(path.relative_to(project.records)),))
        steps = f"{record.values['killed'].value:,.0f} of {record.values['steps'].value:,.0f}"
        equal = "equal to the bit" if record.values["equal"].value == 1 else "different"
        rows.append((where, Cell(str(record.parameters["model"])), Cell(steps), Cell(equal)))
    if not rows:
        rows.append((Cell("none", (("Command", "igpt drill --profile NAME"),), "pending"), Cell("–"), Cell("–"), Cell("pending")))
    columns = ("Profile", "Model", "Killed after step", "The two runs' weights")
    return ResultTable("drills", "Trainings that a scheduler killed and queued again", columns, tuple(rows))
