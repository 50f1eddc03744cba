"""``python -m igpt`` is the command ``igpt``."""

from igpt.cli import main

main()
