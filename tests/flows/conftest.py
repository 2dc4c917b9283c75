"""What several tests of the flows need."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, ExitStack, chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from starlette.testclient import TestClient

from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate
from corpora.manifest import write_manifest
from corpora.readers.raw import read_raw
from extractors.dataset.align import align
from extractors.dataset.align_clip import AlignConfig
from extractors.execution import units
from extractors.transcripts.transcribe import TranscribeConfig, transcribe
from flows.orchestration import prefect_server, settings
from flows.serving.app import create_app
from flows.serving.security import LOOPBACK, Rules
from flows.serving.worker import Model
from flows.serving.worker_pool import Limits, ScoringPool
from model.config import ModelConfig, TrainConfig
from tests.support.clips import join_clips
from tests.support.corpora import make_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]

EXTRACTORS = {
    "text": ("text.transformer", {"model": "minilm"}),
    "audio": ("audio.librosa", {"hop_seconds": 0.064}),
    "vision": ("vision.face_landmarker", {"fps": 10}),
}
SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, fusion_layers=1)
SHORT = TrainConfig(epochs=1, warmup_epochs=0, batch_size=8, device="cpu", modality_dropout=0.2)


@contextmanager
def run_server() -> Iterator[str]:
    """Address of a Prefect server that runs as long as the block."""
    port = prefect_server.free_port()
    supervisor = prefect_server.start(psutil.Process(), port)
    api_url = f"http://127.0.0.1:{port}/api"
    try:
        assert prefect_server.wait_until_healthy(api_url, supervisor, 300), (settings.STATE / "server.log").read_text()
        yield api_url
    finally:
        supervisor.terminate()
        supervisor.wait(timeout=20)


@pytest.fixture(scope="session")
def running_server() -> Callable[[], AbstractContextManager[str]]:
    """`run_server`."""
    return run_server


@pytest.fixture(scope="session")
def api_url(tmp_path_factory) -> Iterator[str]:
    """Address of a Prefect server that several modules share."""
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as running:
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        with chdir(folder):  # not for longer: tests of other modules follow while it runs
            url = running.enter_context(run_server())
        yield url


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with the project's parameters and presets, as the working directory."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write_corpus(folder: Path) -> None:
    from model.train import train  # loads torch, which most tests here do without

    generate(folder / "media", DemoConfig(clips=16, speakers=8, seed=3))
    manifest, _ = read_raw(folder / "media", corpus="demo_en", language="en", label_range=(-3, 3))
    write_manifest(manifest, folder / "manifest.parquet")
    transcribe(folder / "manifest.parquet", folder / "transcripts.parquet", TranscribeConfig(), folder / "scratch", 60)
    for m, (name, options) in EXTRACTORS.items():
        units.extract_unit(manifest.clips, folder / "media", name, options, folder / "scratch")
        meta = units.describe(name, options)
        units.assemble(manifest.clips, folder / "media", meta, folder / "scratch", folder / "features" / m)
    features = {m: folder / "features" / m for m in EXTRACTORS}
    for mode in ("unaligned", "aligned"):
        tables = folder / "manifest.parquet", folder / "transcripts.parquet"
        align(*tables, features, folder / mode, AlignConfig(mode=mode, mask_invalid=("audio", "vision")))
        train(folder / mode, folder / f"models-{mode}", SMALL, SHORT, seed=0)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A generated corpus of 16 clips, with a dataset and a checkpoint of each mode, made by the stages' functions."""
    return make_once(tmp_path_factory, "corpus", _write_corpus)


@pytest.fixture(scope="session")
def clip(corpus) -> Path:
    """A clip of the corpus's test split, of a few seconds."""
    return sorted((corpus / "media/Raw").glob("*/0001.mp4"))[-1]


@pytest.fixture(scope="session")
def long_clip(corpus, tmp_path_factory) -> Path:
    """About 25 s: long enough for a time line, and for being caught in the midst of its scoring."""
    clips = sorted((corpus / "media/Raw").glob("*/*.mp4"))[:8]
    return join_clips(clips, tmp_path_factory.mktemp("long") / "long.mp4")


@pytest.fixture(scope="session")
def scoring_pool(corpus, tmp_path_factory) -> Iterator[ScoringPool]:
    """One worker that scores with the corpus's checkpoint; it takes clips of a minute and of 4 MiB."""
    limits = Limits(size=4 << 20, length=60.0, scoring_seconds=100.0, waiting=8)
    model = Model(corpus / "models-unaligned/best", device="cpu")
    started = ScoringPool(model, limits, 1, tmp_path_factory.mktemp("scoring_pool"))
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture
def uploads(tmp_path) -> Path:
    """Where uploads lie while they are scored."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture
def new_client(scoring_pool, uploads) -> Callable[..., TestClient]:
    """Makes a client of the server's application on loopback; `rules` change the guard's."""

    def make(**rules: Any) -> TestClient:
        size = scoring_pool.limits.size
        chosen = {"hosts": LOOPBACK, "names": (), "token": "", "size": size, "seconds": 60.0} | rules
        return TestClient(create_app(scoring_pool, Rules(**chosen), uploads), base_url="http://127.0.0.1:8000")

    return make


@pytest.fixture
def client(new_client) -> TestClient:
    """Of a server that asks for no token."""
    return new_client()
