"""Worker processes end with the process that started them, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

GENERATING = """
import sys
from pathlib import Path
from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate

if __name__ == "__main__":
    generate(Path(sys.argv[1]), DemoConfig(clips=400, speakers=4), workers=2)
"""


def test_the_demos_workers_end_when_the_generator_is_killed(tmp_path):
    (tmp_path / "generating.py").write_text(GENERATING)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "generating.py"), str(tmp_path / "corpus")],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("*.mp4")):
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert not alive
