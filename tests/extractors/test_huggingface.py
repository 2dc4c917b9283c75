"""Pre-trained models: no code of their own is run, and nothing is downloaded that the user did not ask for."""

from __future__ import annotations

import ast
import json
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from extractors.base import Source
from extractors.huggingface import downloads, find_model, load_model, load_part
from extractors.inference.feature_maker import FeatureMaker
from extractors.text.transformer import TransformerText
from extractors.transcripts.asr import Recogniser

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]

HOSTILE = """
from pathlib import Path

Path({marker!r}).write_text("ran")

from transformers import BertConfig, BertModel, BertTokenizerFast, Wav2Vec2FeatureExtractor


class HostileConfig(BertConfig):
    model_type = "hostile"


class HostileModel(BertModel):
    config_class = HostileConfig


class HostileTokenizer(BertTokenizerFast):
    pass


class HostileExtractor(Wav2Vec2FeatureExtractor):
    pass
"""

AUTO_MAP = {
    "AutoConfig": "hostile.HostileConfig",
    "AutoModel": "hostile.HostileModel",
    "AutoTokenizer": ["hostile.HostileTokenizer", "hostile.HostileTokenizer"],
    "AutoFeatureExtractor": "hostile.HostileExtractor",
}


def _change(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


@pytest.fixture
def hostile(minilm, tmp_path, monkeypatch) -> Callable[..., tuple[Path, Path]]:
    """Makes a model folder that asks transformers to import its Python file, which writes a marker."""
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")  # a user who agrees to all that transformers asks
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))

    def make(**config: Any) -> tuple[Path, Path]:
        folder, marker = tmp_path / "hostile", tmp_path / "marker"
        shutil.copytree(minilm.folder, folder)
        (folder / "hostile.py").write_text(HOSTILE.format(marker=str(marker)))
        _change(folder / "config.json", auto_map=AUTO_MAP, **config)
        _change(folder / "tokenizer_config.json", auto_map=AUTO_MAP)
        _change(folder / "preprocessor_config.json", auto_map=AUTO_MAP, feature_extractor_type="HostileExtractor")
        return folder, marker

    return make


@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoFeatureExtractor"])
def test_a_model_of_its_own_type_is_refused_and_its_code_is_not_run(hostile, auto_class):
    folder, marker = hostile(model_type="hostile")
    with pytest.raises(ValueError, match="needs its own Python code to load, which is never run here; choose"):
        load_part(folder, auto_class)
    assert not marker.exists()


def test_a_model_of_a_known_type_loads_without_its_code(hostile):
    folder, marker = hostile()
    extractor = TransformerText(model=str(folder))
    (sequence,) = extractor.extract([Source("a", None, "good", "en", 1.0)])
    assert len(sequence) == 3 and type(extractor.model).__name__ == "BertModel" and not marker.exists()
    assert type(load_model(folder)).__module__.startswith("transformers.models")


def test_every_call_that_loads_a_model_refuses_its_code():
    found = 0
    for package in ("media", "corpora", "extractors", "model", "flows"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name not in ("from_pretrained", "from_config", "pipeline"):
                    continue
                trusted = [k.value for k in node.keywords if k.arg == "trust_remote_code"]
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert len(trusted) == 1, f"{where}: {name} without trust_remote_code=False"
                assert isinstance(trusted[0], ast.Constant) and trusted[0].value is False, where
                found += 1
    assert found >= 5


@pytest.fixture
def requests(monkeypatch, tmp_path) -> list[Any]:
    """Attempts to reach another machine, in a process that may use the network and has no model in its cache."""
    attempts: list[Any] = []

    def refuse(*address: Any, **options: Any) -> Any:
        attempts.append(address)
        raise OSError("no network in tests")

    import huggingface_hub.constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def dataset(**entry: Any) -> dict[str, Any]:
    """What a checkpoint says of a dataset of one modality."""
    text = {"extractor": "text.transformer", "options": {}, "signature": "x", "dim": 16} | entry
    modalities = dict.fromkeys(("text", "audio", "vision"), text)
    return {"mode": "unaligned", "mask_invalid": [], "language": "en", "modalities": modalities}


def test_prediction_sends_no_request_for_a_model_that_a_checkpoint_names(requests):
    named = dataset(options={"model": "someone/encoder"})
    with pytest.raises(ValueError, match=r"'someone/encoder' is neither .* allow it with --allow-download") as refused:
        FeatureMaker(named, ("text",))
    assert requests == [] and "\n" not in str(refused.value)


def test_prediction_sends_no_request_for_a_recogniser(requests):
    with pytest.raises(ValueError, match=r"'someone/whisper' is neither .* allow it with --allow-download"):
        FeatureMaker(dataset(), ("text",), tokens=True, recogniser="someone/whisper")
    assert requests == []


def test_prediction_asks_the_hub_where_the_user_allows_it(requests):
    named = dataset(options={"model": "someone/encoder"})
    with pytest.raises(ValueError, match="could not be reached or does not have it"):
        FeatureMaker(named, ("text",), allow_download=True)
    assert requests


def test_stages_may_ask_the_hub_and_local_models_need_no_request(requests):
    with pytest.raises(ValueError, match="could not be reached"):
        find_model("someone/encoder")
    assert requests
    requests.clear()
    with downloads(False), pytest.raises(ValueError, match="allow-download"):
        Recogniser("someone/whisper")
    assert requests == []
