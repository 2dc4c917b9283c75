"""Runs a command that does not outlive the process that asked for it, however that ends.

A stage is DVC, a shell, the stage itself and its workers. A signal to one of them leaves the others behind, and a
process that is killed can send none. So the keeper stands beside them, and what it waits for is the end of its standard
input: a pipe whose other end only the asking process holds. The pipe ends when that closes it, and when it dies.

Started as a script, with nothing but the standard library: this costs each stage some hundredths of a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 10.0
"""Seconds between asking the command to stop (SIGINT, as Ctrl-C does) and killing what is left of it."""


_ending = threading.Lock()


def keep(command: list[str]) -> int:
    """Run the command in a process group of its own; its exit code, as a shell gives it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_the_pipe, args=(process.pid,), daemon=True).start()
    code = process.wait()
    end_group(process.pid)  # of a command that was killed the children may be left
    return code if code >= 0 else 128 - code


def _end_with_the_pipe(group: int) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    end_group(group)


def end_group(group: int, grace: float = GRACE) -> None:
    """Ask all processes of a group to stop, and kill those that have not after `grace` seconds."""
    with _ending:  # two threads may come here: one Ctrl-C is a request, a second one would cut the first's work short
        for ask in (signal.SIGINT, signal.SIGKILL):
            deadline = time.monotonic() + grace
            sign = int(ask)
            while time.monotonic() < deadline:
                try:
                    os.killpg(group, sign)
                except ProcessLookupError:  # nobody is left
                    return
                sign = 0  # from now on only look
                time.sleep(0.02)


if __name__ == "__main__":
    # Handlers, not SIG_IGN, which the command would inherit. What ends the command is the pipe alone.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.exit(keep(sys.argv[1:]))
