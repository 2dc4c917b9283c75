"""System libraries that wheels do not contain are named before a stage fails for want of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from flows import check
from flows.config.params import load_params
from tests.support.project import ROOT


def test_missing_system_libraries_are_named_in_a_line_with_their_packages(project, monkeypatch):
    monkeypatch.setattr(check, "LIBRARIES", {"libno-gl.so.1": "libno-gl1", "libc.so.6": "libc6"})
    monkeypatch.setattr(sys, "platform", "linux")
    params = load_params()
    with pytest.raises(ValueError, match=r"need libno-gl\.so\.1 of the system: install libno-gl1 \(Debian") as refused:
        check.check_libraries(params)
    assert "\n" not in str(refused.value)
    check.check_libraries(replace(params, prepare=replace(params.prepare, layout="csd")))  # brings its features


def test_the_image_has_every_system_library():
    dockerfile = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    assert [package for package in check.LIBRARIES.values() if f" {package} " not in dockerfile] == []


def test_settings_are_read_without_opencv_whose_libraries_may_be_missing():
    code = "import sys, flows.check; sys.exit('cv2' in sys.modules or 'mediapipe' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
