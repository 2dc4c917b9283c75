"""Worker processes that do not outlive the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading


def exit_with_parent() -> None:
    """Make this worker process exit as soon as its parent is gone. Call it once, when the worker starts.

    A killed parent cannot stop its workers, which would wait for work, or go on with it, for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is not a worker process"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
