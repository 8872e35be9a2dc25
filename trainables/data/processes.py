"""What a process that works for another one keeps to."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def serve_parent() -> None:
    """From here on Ctrl-C is this process's parent's to handle, and this process ends when its parent has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True, name="end-with-parent").start()
