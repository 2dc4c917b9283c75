"""MAG-BERT against plain implementations: its gate, the steps beside each token, and the encoder around the gate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import ModelConfig, TextConfig
from model.data.clips import ClipTable
from model.data.tokens import TextBackbone, prepare_text, train_tokenizer
from model.network.baselines.mag_bert import AdaptationGate, Options, align_steps
from model.network.layers import MaskedSequence
from model.network.registry import build_network

DIMS = {"audio": 5, "vision": 7}
SCRATCH_CONFIG = TextConfig(mode="scratch", width=16, heads=2, layers=1, vocabulary=64)


def plain_gate(gate, text, others, limit):
    """Of one token."""
    shift = torch.zeros_like(text)
    for m, x in others.items():
        weight = torch.relu(gate.gates[m].weight @ torch.cat([x, text]) + gate.gates[m].bias)
        shift = shift + weight * (gate.shifts[m].weight @ x + gate.shifts[m].bias)
    scale = min(1.0, (limit * text.norm() / (shift.norm() + 1e-6)).item())
    assert (scale * shift).norm() <= limit * text.norm() * (1 + 1e-9)
    shifted = text + scale * shift
    centred = shifted - shifted.mean()
    return centred / (centred.square().mean() + gate.norm.eps).sqrt() * gate.norm.weight + gate.norm.bias


@pytest.mark.parametrize("limit", [0.5, 1.0, 50.0])  # always, sometimes and never too long a shift
@torch.inference_mode()
def test_the_gate_shifts_each_token_as_the_paper_describes(limit):
    torch.manual_seed(0)
    gate = AdaptationGate(8, DIMS, Options(shift=limit)).double().eval()
    gate.norm.weight += torch.randn(8)
    text, others = torch.randn(2, 3, 8).double(), {m: 3 * torch.randn(2, 3, d).double() for m, d in DIMS.items()}
    found = gate(text, others)
    for b in range(2):
        for k in range(3):
            torch.testing.assert_close(
                found[b, k], plain_gate(gate, text[b, k], {m: x[b, k] for m, x in others.items()}, limit)
            )


def test_a_token_that_nothing_shifts_has_a_finite_gradient():
    gate = AdaptationGate(8, DIMS, Options()).eval()
    text, zeros = torch.randn(1, 2, 8, requires_grad=True), {m: torch.zeros(1, 2, d) for m, d in DIMS.items()}
    for linear in gate.shifts.values():
        linear.bias.data.zero_()
    result = gate(text, zeros)
    torch.testing.assert_close(result, gate.norm(text))
    result.sum().backward()
    assert text.grad.isfinite().all()


def plain_steps(values, tokens):
    """Average V steps over each of the tokens, by cutting both into K V pieces of equal duration."""
    pieces = np.repeat(values, tokens, axis=0)
    return pieces.reshape(tokens, len(values), -1).mean(axis=1)


@pytest.mark.parametrize(("steps", "tokens"), [(6, 6), (7, 3), (3, 7), (1, 4), (9, 1), (500, 37)])
def test_each_token_averages_the_steps_beside_it_wherever_padding_is(steps, tokens):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(steps, 2))
    shown = np.sort(rng.permutation(steps + 4)[:steps])  # padding in front, inside or behind
    read = np.sort(rng.permutation(tokens + 3)[:tokens])
    padded, mask, token_mask = (
        np.full((1, steps + 4, 2), 9.0),
        np.zeros((1, steps + 4), bool),
        np.zeros((1, tokens + 3), bool),
    )
    padded[0, shown], mask[0, shown], token_mask[0, read] = values, True, True
    sequence = MaskedSequence(torch.from_numpy(padded), torch.from_numpy(mask))
    found = align_steps(sequence, torch.from_numpy(token_mask))[0].numpy()
    assert np.allclose(found[read], plain_steps(values, tokens), atol=1e-12)
    assert not np.delete(found, read, axis=0).any()
    if steps == tokens:
        assert np.array_equal(found[read], values)


@pytest.fixture(scope="module")
def spoken(dataset_writer, tmp_path_factory):
    """A dataset with transcripts of different lengths; every seventh clip has none."""
    words = ["the", "room", "was", "lovely", "and", "quiet", "but", "our", "breakfast", "came", "late"]

    def change(split, table):
        texts = ["" if i % 7 == 0 else " ".join(words[i % 5 : i % 5 + 2 + i % 4]) for i in range(len(table))]
        return table.set_column(table.schema.get_field_index("text"), "text", [texts])

    return dataset_writer(tmp_path_factory.mktemp("spoken"), change=change)


def token_network(spoken, **options):
    config = ModelConfig(name="mag_bert", max_positions=64, dropout=0.0, text=SCRATCH_CONFIG, options=options)
    text = prepare_text(config, spoken)
    torch.manual_seed(0)
    clips = ClipTable.read(spoken, "train", 64, text=text)
    return build_network(config, clips.info, text).eval(), clips


@torch.inference_mode()
def test_the_encoder_around_the_gate_is_the_whole_encoder(spoken):
    """Embeddings that nothing shifts give the encoder's own hidden states; shifted ones do not."""
    network, clips = token_network(spoken)
    batch = clips.batch(np.arange(8))
    ids, mask = batch.values["text"], batch.masks["text"]
    encoder = network.token_encoder
    (embedded,) = encoder.hidden([ids], [mask])
    plain = network.text.build()
    weights = {
        name.replace("embeddings.embeddings.", "embeddings."): w for name, w in encoder.encoder.state_dict().items()
    }
    plain.load_state_dict(weights)
    plain.eval()
    expected = plain(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    real = mask.any(dim=1)
    found = encoder.encode(embedded, mask)
    assert (found - expected)[real][mask[real]].abs().max() < 1e-6
    torch.testing.assert_close(embedded, plain.embeddings(input_ids=ids))
    shifted = network.gate(embedded, {m: align_steps(network.inputs(batch)[m], mask) for m in DIMS})
    torch.testing.assert_close(
        network(batch).prediction[real], network.predictor(network.pooler(encoder.encode(shifted, mask)[:, 0]))[real, 0]
    )


@torch.inference_mode()
def test_without_an_encoder_the_mean_of_the_shifted_features_is_read(dataset):
    clips = ClipTable.read(dataset, "train", 64)
    torch.manual_seed(0)
    network = build_network(ModelConfig(name="mag_bert", max_positions=64), clips.info).eval().double()
    together = network(clips.batch(np.arange(len(clips))))
    for row in range(len(clips)):
        batch, x = clips.batch(np.array([row])), {}
        for m in ("text", *DIMS):
            inputs, seen = network.text_input if m == "text" else network.inputs.of[m], batch.masks[m]
            x[m] = (batch.values[m][seen].double() - inputs.mean) / inputs.std
            if not seen.any():
                x[m] = inputs.missing_embedding[None]
        beside = {m: torch.from_numpy(plain_steps(x[m].numpy(), len(x["text"]))) for m in DIMS}
        shifted = [
            plain_gate(network.gate, text, {m: beside[m][k] for m in DIMS}, 1.0) for k, text in enumerate(x["text"])
        ]
        pooled = network.pooler(torch.stack(shifted).mean(dim=0))
        torch.testing.assert_close(together.prediction[row], network.predictor(pooled)[0])


@torch.inference_mode()
def test_in_an_aligned_dataset_each_token_reads_its_own_step():
    text_mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    values = torch.randn(2, 5, 4)
    changed = values.clone()
    changed[:, 2] += 1
    before, after = (align_steps(MaskedSequence(x, text_mask), text_mask) for x in (values, changed))
    assert (before != after).any(dim=2).nonzero().tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("kind", ["t5", "albert"])
def test_encoders_without_embeddings_of_their_own_or_of_another_width_are_refused(dataset, kind):
    from transformers import AlbertConfig, T5Config

    tokenizer = train_tokenizer(["some words", "some words"], "subword", 64)
    tokenizer.enable_truncation(16)
    small = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = AlbertConfig(embedding_size=8, intermediate_size=16, **small) if kind == "albert" else T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )  # fmt: skip
    clips = ClipTable.read(dataset, "train", 64)
    config = ModelConfig(name="mag_bert", text=SCRATCH_CONFIG)
    with pytest.raises(ValueError, match=rf"model\.text\.encoder is a {kind}: mag_bert shifts .* frozen"):
        build_network(config, clips.info, TextBackbone(tokenizer, shape))


def test_a_shift_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"model\.options\.shift is 0: it must be positive"):
        Options(shift=0)
