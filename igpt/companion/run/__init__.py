"""Carrying out a plan; and what a notebook says to take part in one."""

from igpt.companion.run.notebook import open_stage as open_stage
