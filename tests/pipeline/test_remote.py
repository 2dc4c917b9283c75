"""Another clone gets features, model and figures from a remote instead of computing them: a folder, and real S3."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

RESULTS = ["data/features", "data/dataset", "data/manifest.parquet", "models", "metrics", "predictions.parquet"]


@pytest.fixture(scope="module")
def finished(project, first_run):
    """The project as its first run left it."""
    project.restore()
    return project


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    """Address of an S3 server on loopback, with a bucket `dashfusion` and credentials in the environment."""
    pytest.importorskip("dvc_s3", reason="S3 remotes need pip install -e '.[s3]'")
    boto3 = pytest.importorskip("boto3", reason="the S3 server needs pip install 'moto[server]'")
    server = pytest.importorskip("moto.server", reason="the S3 server needs pip install 'moto[server]'")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    try:
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="dashfusion")
        yield f"http://{host}:{port}"
    finally:
        running.stop()


def contents(folder: Path) -> dict[str, str]:
    """The results' SHA-256, by path."""
    paths = [path for name in RESULTS for path in (folder / name, *(folder / name).rglob("*"))]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def push_and_pull(project, clone: Path, url: str, *options: str):
    """Push what the project's stages made, and pull it into a new clone; the clone."""
    subprocess.run(["git", "clone", "-q", str(project.folder), str(clone)], check=True)
    copy = replace(project, folder=clone)
    for place in (project, copy):
        place.dvc("remote", "add", "--local", "--force", "store", url)
        if options:
            place.dvc("remote", "modify", "--local", "store", *options)
    project.dvc("push", "-r", "store")
    assert not (clone / "models").exists()
    copy.dvc("pull", "-r", "store")
    return copy


def test_a_clone_pulls_from_a_folder_and_has_nothing_to_run(finished, tmp_path):
    clone = push_and_pull(finished, tmp_path / "clone", str(tmp_path / "store"))
    assert "up to date" in clone.dvc("status")
    assert clone.repro() == []
    assert contents(clone.folder) == contents(finished.folder)
    assert {"predictions.parquet", "metrics/test.json", "models/seed-0/best/model.safetensors"} < {
        *contents(clone.folder)
    }


def test_a_clone_pulls_from_an_s3_server_and_has_nothing_to_run(finished, bucket, tmp_path):
    clone = push_and_pull(finished, tmp_path / "clone", "s3://dashfusion/store", "endpointurl", bucket)
    assert "up to date" in clone.dvc("status")
    assert contents(clone.folder) == contents(finished.folder)
