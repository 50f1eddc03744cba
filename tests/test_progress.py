from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

PROGRAM = """
from igpt.progress import Bar, tell
with Bar("work", " images") as bar:
    for done in (1, 40, 80):
        bar(done, 80, "loss 3")
    tell("igpt: a line with \\x1b[31m")
print("result")
"""


def test_a_terminal_gets_a_bar_with_rate_and_time_left_and_a_log_gets_the_lines() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TQDM_MININTERVAL": "0"}
    )
    os.close(theirs)
    shown = os.read(ours, 2**16).decode()
    os.close(ours)
    assert done.returncode == 0 and done.stdout == b"result\n"
    assert "work:" in shown and "80/80 [00:00<00:00" in shown and "images/s, loss 3" in shown
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result\n", "igpt: a line with \\x1b[31m\n")
