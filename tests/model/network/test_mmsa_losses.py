"""MISA, Self-MM and MAG-BERT against MMSA 2.2.1's own modules: same weights, same inputs, nothing padded.

Its losses and its generation of unimodal labels are part of its trainers, and are compared too.
"""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from model.config import MODALITIES, ModelConfig, TextConfig
from model.data.batch import Batch
from model.data.clips import ClipTable
from model.data.tokens import TextBackbone, train_tokenizer
from model.network.baselines.misa import difference_loss, reconstruction_loss, similarity_loss
from model.network.baselines.self_mm import STREAMS, SelfMMLoss
from model.network.registry import build_network
from tests.support.mmsa import MMSA, download_wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from model.data.info import DatasetInfo
    from model.network.recurrent import MaskedLSTM

pytestmark = pytest.mark.e2e

DIMS = {"text": 12, "audio": 5, "vision": 7}
CLIPS, STEPS, DIM = 6, 9, 16
WIDTHS = {"fusion": DIM, "text": 6, "audio": 4, "vision": 8}
TOLERANCE = 1e-5

KINDS = ("", ".singleTask", ".multiTask")
"""Packages of MMSA's networks and of their trainers."""


class HiddenStates(nn.Module):
    """Stands for MMSA's BERT: returns the hidden states that a test sets."""

    hidden: torch.Tensor

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.hidden


@pytest.fixture(scope="module")
def mmsa_source(tmp_path_factory) -> Path:
    return download_wheel(MMSA, tmp_path_factory.mktemp("mmsa"))


@pytest.fixture
def mmsa(mmsa_source, monkeypatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a module of MMSA without its packages' own imports, and with hidden states in place of BERT."""
    before = set(sys.modules)
    for name in ("MMSA", *(f"MMSA.{part}{kind}" for part in ("models", "trains") for kind in KINDS)):
        package = ModuleType(name)
        package.__path__ = [str(mmsa_source.joinpath(*name.split(".")))]
        monkeypatch.setitem(sys.modules, name, package)
    subnets, utils = ModuleType("MMSA.models.subNets"), ModuleType("MMSA.utils")
    subnets.__dict__["BertTextEncoder"] = HiddenStates
    utils.__dict__.update(MetricsTop=lambda mode: Namespace(getMetics=lambda dataset: None), dict_to_str=str)
    monkeypatch.setitem(sys.modules, subnets.__name__, subnets)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    yield lambda name: importlib.import_module(f"MMSA.{name}")
    for name in [name for name in sys.modules if name.startswith("MMSA.") and name not in before]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def info(dataset) -> DatasetInfo:
    return ClipTable.read(dataset, "train", 64).info


def copy(ours: nn.Module, theirs: nn.Module) -> None:
    ours.load_state_dict(theirs.state_dict())


def copy_lstm(ours: MaskedLSTM, theirs: nn.LSTM) -> None:
    for lstm, suffix in zip(ours.directions, ("", "_reverse"), strict=False):
        for name, parameter in lstm.named_parameters():
            parameter.copy_(getattr(theirs, name + suffix))


def make_batch() -> Batch:
    torch.manual_seed(1)
    values = {m: torch.randn(CLIPS, STEPS, dim) for m, dim in DIMS.items()}
    masks = {m: torch.ones(CLIPS, STEPS, dtype=torch.bool) for m in DIMS}
    return Batch(tuple("abcdef"), torch.zeros(CLIPS), torch.zeros(CLIPS, 3), values, masks)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < TOLERANCE and expected.std() > 1e-3


@torch.no_grad()
def test_misa_predicts_and_is_penalised_as_there(mmsa, info):
    torch.manual_seed(0)
    config = ModelConfig(name="misa", dim=DIM, heads=2, normalise=False)
    ours = build_network(config, info).eval()
    options = {"use_bert": True, "use_finetune": True, "transformers": "bert", "pretrained": "", "rnncell": "lstm"}
    sizes = {"feature_dims": tuple(DIMS.values()), "hidden_size": DIM, "dropout": 0.2}
    common = {"train_mode": "regression", "dataset_name": "", "use_cmd_sim": True}
    theirs = mmsa("models.singleTask.MISA").MISA(Namespace(**options, **sizes, **common)).eval()
    theirs.project_t.project_t = nn.Linear(DIMS["text"], DIM)  # built for BERT's width

    # Their final states are in the order forward 1, forward 2, backward 1, backward 2
    for m in ("audio", "vision"):
        stack, letter = ours.recurrent[m], m[0]
        copy_lstm(stack.first, getattr(theirs, f"{letter}rnn1"))
        copy_lstm(stack.second, getattr(theirs, f"{letter}rnn2"))
        copy(stack.norm, getattr(theirs, f"{letter}layer_norm"))
    for k, m in enumerate(MODALITIES):
        linear, _, norm = getattr(theirs, f"project_{m[0]}")
        copy(ours.project[m][0], linear)
        copy(ours.project[m][2], norm)
        if m != "text":
            forward_1, forward_2, backward_1, backward_2 = linear.weight.chunk(4, dim=1)
            ours.project[m][0].weight.copy_(torch.cat([forward_1, backward_1, forward_2, backward_2], dim=1))
        copy(ours.private[k], getattr(theirs, f"private_{m[0]}")[0])
        copy(ours.reconstruct[k], getattr(theirs, f"recon_{m[0]}")[0])
    copy(ours.shared, theirs.shared[0])
    copy(ours.fusion, theirs.transformer_encoder.layers[0])
    first, _, _, last = theirs.fusion
    copy(ours.predictor[0], first)
    copy(ours.predictor[3], last)
    # Their six vectors are in the order text, vision, audio
    private_t, private_v, private_a, shared_t, shared_v, shared_a = first.weight.chunk(6, dim=1)
    columns = (private_t, private_a, private_v, shared_t, shared_a, shared_v)
    ours.predictor[0].weight.copy_(torch.cat(columns, dim=1))

    batch = make_batch()
    theirs.bertmodel.hidden = batch.values["text"]
    expected = theirs(torch.ones(CLIPS, 3, STEPS), batch.values["audio"], batch.values["vision"])["M"]
    found = ours(batch)
    assert_equal(found.prediction, expected[:, 0])
    trainer = mmsa("trains.singleTask.MISA").MISA(Namespace(**common))
    trainer.model = Namespace(Model=theirs)
    x = found.auxiliary
    losses = {
        "diff": difference_loss(x["private"], x["shared"], x["present"]),
        "cmd": similarity_loss(x["shared"], x["present"], moments=5),
        "recon": reconstruction_loss(x["reconstructed"], x["hidden"], x["present"]),
    }
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(getattr(trainer, f"get_{name}_loss")().item(), abs=TOLERANCE), name


@torch.no_grad()
def test_self_mm_predicts_as_there(mmsa, info):
    torch.manual_seed(0)
    options = {"audio_width": 4, "vision_width": 5} | {f"{m}_features": WIDTHS[m] for m in MODALITIES}
    ours = build_network(ModelConfig(name="self_mm", dim=DIM, normalise=False, options=options), info).eval()
    arguments = {"need_data_aligned": False, "use_finetune": True, "transformers": "bert", "pretrained": ""}
    arguments |= {"feature_dims": tuple(DIMS.values()), "text_out": DIMS["text"], "audio_out": 4, "video_out": 5}
    for letter, width in (("a", 4), ("v", 5)):
        arguments |= {f"{letter}_lstm_hidden_size": width, f"{letter}_lstm_layers": 1, f"{letter}_lstm_dropout": 0.0}
    names = {"fusion": "fusion", "text": "text", "audio": "audio", "vision": "video"}
    for stream, name in names.items():
        arguments |= {f"post_{name}_dim": WIDTHS[stream], f"post_{name}_dropout": 0.1}
    theirs = mmsa("models.multiTask.SELF_MM").SELF_MM(Namespace(**arguments)).eval()
    for parameter in theirs.parameters():  # so that clips differ by more than the tolerance
        parameter.mul_(2)
    for m, subnet in (("audio", theirs.audio_model), ("vision", theirs.video_model)):
        copy_lstm(ours.recurrent[m], subnet.rnn)
        copy(ours.project[m], subnet.linear_1)
    for stream, name in names.items():
        head = ours.fusion if stream == "fusion" else ours.heads[stream]
        for number, layer in enumerate((head.features[1], head.predictor[0], head.predictor[2]), start=1):
            copy(layer, getattr(theirs, f"post_{name}_layer_{number}"))

    batch, lengths = make_batch(), torch.full((CLIPS,), STEPS)
    theirs.text_model.hidden = batch.values["text"]
    text = torch.ones(CLIPS, 3, STEPS)
    expected = theirs(text, (batch.values["audio"], lengths), (batch.values["vision"], lengths))
    found = ours(batch)
    assert_equal(found.prediction, expected["M"][:, 0])
    for k, m in enumerate(MODALITIES):
        assert_equal(found.unimodal[:, k], expected[m[0].upper()][:, 0])
    for stream in STREAMS:
        assert_equal(found.auxiliary[stream], expected[f"Feature_{stream[0]}"])


@torch.no_grad()
def test_self_mm_generates_the_labels_of_there(mmsa):
    clips, rng = 24, np.random.default_rng(0)
    arguments = {"train_mode": "regression", "dataset_name": "", "train_samples": clips, "device": "cpu"}
    arguments |= {"excludeZero": True, "H": 3.0}
    names = {"fusion": "fusion", "text": "text", "audio": "audio", "vision": "video"}
    arguments |= {f"post_{name}_dim": WIDTHS[stream] for stream, name in names.items()}
    trainer = mmsa("trains.multiTask.SELF_MM").SELF_MM(Namespace(**arguments))
    labels = torch.from_numpy(np.round(rng.uniform(-3, 3, clips), 1).astype(np.float32))
    trainer.init_labels(torch.arange(clips), labels)
    ours = SelfMMLoss(labels, 3.0, WIDTHS)
    for epoch in range(1, 6):
        for rows in map(torch.from_numpy, np.array_split(rng.permutation(clips), 4)):
            features = {s: torch.randn(len(rows), width) + labels[rows, None] for s, width in WIDTHS.items()}
            unimodal, present = torch.randn(len(rows), 3), torch.ones(len(rows), 3, dtype=torch.bool)
            expected = [
                trainer.weighted_loss(unimodal[:, k], trainer.label_map[m][rows], rows, m)
                for k, m in enumerate(MODALITIES)
            ]
            if epoch > 1:
                trainer.update_labels(*features.values(), epoch, rows, None)
            trainer.update_features(*features.values(), rows)
            trainer.update_centers()
            found = ours({**features, "unimodal": unimodal, "present": present}, rows, epoch)
            assert found.item() == pytest.approx(sum(expected).item(), abs=TOLERANCE)
        for k, stream in enumerate(STREAMS):
            assert_equal(ours.labels_SN[k], trainer.label_map[stream])
    assert (ours.labels_SN[1:] - labels).abs().max() > 0.5


@torch.no_grad()
def test_mag_bert_predicts_as_there(mmsa, info):
    from transformers import BertConfig

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["some words", "some words"], "subword", 64)
    tokenizer.enable_truncation(32)
    sizes = {"vocab_size": 50, "hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = BertConfig(intermediate_size=32, num_labels=1, **sizes)
    config = ModelConfig(name="mag_bert", normalise=False, text=TextConfig(mode="scratch"))
    ours = build_network(config, info, TextBackbone(tokenizer, shape)).eval()
    module = mmsa("models.singleTask.BERT_MAG")
    for kind in (module.MAG_BertModel, module.MAG_BertForSequenceClassification):
        # What transformers 5 no longer has; without padding there is nothing to mask
        kind.init_weights = kind.get_head_mask = kind.get_extended_attention_mask = lambda self, *_: None
    arguments = {"feature_dims": (DIM, DIMS["audio"], DIMS["vision"]), "beta_shift": 1, "dropout_prob": 0.3}
    theirs = module.MAG_BertForSequenceClassification(shape, args=Namespace(device="cpu", **arguments)).eval()
    encoder, gate = ours.token_encoder.encoder, theirs.bert.MAG
    copy(encoder.embeddings.embeddings, theirs.bert.embeddings)
    copy(encoder.encoder, theirs.bert.encoder)
    for m in ("audio", "vision"):
        copy(ours.gate.gates[m], getattr(gate, f"W_h{m[0]}"))
        copy(ours.gate.shifts[m], getattr(gate, f"W_{m[0]}"))
    copy(ours.gate.norm, gate.LayerNorm)
    copy(ours.pooler[0], theirs.bert.pooler.dense)
    copy(ours.predictor, theirs.classifier)

    batch = make_batch()
    ids, mask = torch.randint(0, 50, (CLIPS, STEPS)), torch.ones(CLIPS, STEPS)
    expected = theirs(ids, batch.values["vision"], batch.values["audio"], attention_mask=mask)[0]
    assert_equal(ours(batch.with_values("text", ids)).prediction, expected[:, 0])
