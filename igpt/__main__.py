"""``python -m igpt`` is the command ``igpt``."""

from igpt.companion.cli import main

main()
