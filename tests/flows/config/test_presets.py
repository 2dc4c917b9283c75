"""The presets of conf/ and what is chosen from them: `dvc repro` and `dvc exp run` begin with the same parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from flows.config import undo as undo_module
from flows.config.composition import chosen, presets
from flows.config.params import ParamsError, load_params
from flows.config.presets import apply, compose, hand_edits, save, undo
from model.network.baselines.late_fusion import LateFusion

ROOT = Path(__file__).parents[3]
OPTIONS = "extract.audio.options"


def params(project: Path) -> dict:
    return yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))


def edit(project: Path, before: str, after: str) -> None:
    """Change a line of params.yaml as a hand does."""
    text = (project / "params.yaml").read_text(encoding="utf-8")
    assert before in text
    (project / "params.yaml").write_text(text.replace(before, after), encoding="utf-8")


def test_the_committed_parameters_are_the_composed_default(project):
    assert compose() == params(project)
    assert chosen() == ({}, {}), "a choice was committed: dashfusion use --reset"


def test_recipes_set_the_features_of_their_name_and_are_taken_back(project):
    apply(["recipe=sims_33"])
    assert load_params().extract.audio.extractor == "audio.sims_33"
    assert params(project)[OPTIONS.split(".")[0]]["audio"]["options"] == {"hop_seconds": 0.02322}
    apply(["recipe=mosi_covarep5"])
    assert load_params().align.columns.audio == "covarep_5" and load_params().align.columns.vision == "all"
    assert load_params().extract.audio.extractor == "audio.librosa"
    apply(["recipe=default"])
    assert params(project) == compose()


def test_every_key_is_described_once_in_conf():
    """Keys of config.yaml, which has the comments, are all keys of the parameters."""
    described = yaml.safe_load((ROOT / "conf/config.yaml").read_text(encoding="utf-8"))
    del described["defaults"]

    def keys(values: dict, prefix: str = "") -> set[str]:
        names = set()
        for key, value in values.items():
            names |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}"}
        return names

    assert keys(compose((), ROOT / "conf")) - keys(described) == {"extract.text.options.model"}


def test_use_changes_the_values(project):
    changed = apply(["corpus=mmsa", "prepare.root=/videos/mosi"]).changes
    assert changed["prepare.root"] == ("corpora/demo", "/videos/mosi")
    assert load_params().prepare.layout == "mmsa"
    assert "conf/config.yaml describes every key" in (project / "params.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "choices",
    [
        ["train.epochs=3"],
        ["corpus=mmsa", "prepare.root=/videos/mosi", "prepare.label_range=[-1,1]"],
        ["corpus=demo_zh", "text=minilm"],
        ["experiment=[fast,in_batch]", "model.dropout=0.3"],
        ["experiment=finetune", "train.text_learning_rate=1.0e-5"],
        ["~experiment", "align.mask_invalid=[]"],
        ["extract.audio.extractor=audio.opensmile", f"~{OPTIONS}"],
        ["extract.audio.extractor=audio.transformer", f"~{OPTIONS}", f"+{OPTIONS}={{model:/models/wav2vec2}}"],
        [f"+{OPTIONS}.model='a b: {{c}}'", "~train.patience", "~train.mining.positives"],
        ["prepare.corpus='007'", "transcribe.model=openai/whisper-small", 'extract.address=""'],
    ],
    ids=lambda choices: " ".join(choices),
)
def test_what_is_used_is_what_conf_composes_to_ever_after(project, choices):
    apply(["train.seeds=[1,2]", "corpus=mmsa"])
    apply(choices, reset=True)
    assert params(project) == compose() != yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert hand_edits() == {}
    assert params(project)["train"]["seeds"] == [0]


def test_what_is_not_named_stays(project):
    apply(["corpus=mmsa", "prepare.root=/videos/mosi", "experiment=in_batch"])
    before = params(project)
    done = apply(["extract.max_failed_fraction=0.1"])
    assert done.changes == {"extract.max_failed_fraction": (0.02, 0.1)} and not done.dropped
    before["extract"]["max_failed_fraction"] = 0.1
    assert params(project) == before == compose()
    assert apply(["corpus=mmsa", "train.epochs=5"]).changes == {"train.epochs": (16, 5)}  # the same corpus once more


def test_another_corpus_keeps_what_fits_and_lists_what_it_drops(project):
    apply(["corpus=folder", "prepare.root=/a", "prepare.columns.label=score", "transcribe.model=tiny"])
    apply(["text=bert_base_uncased", "model.text.max_tokens=64", "train.epochs=5", "model.dim=64"])
    apply(["extract.vision.options.fps=5", "align.mode=aligned"])
    done = apply(["corpus=demo_zh"])
    assert (params(project)["train"]["epochs"], params(project)["model"]["dim"]) == (5, 64)
    assert (
        params(project)["extract"]["vision"]["options"] == {"fps": 5} and params(project)["align"]["mode"] == "aligned"
    )
    assert params(project)["extract"]["text"] == {"extractor": "text.words", "options": {}}
    assert params(project)["transcribe"]["model"] is None
    assert done.overruling["train.epochs"] == (5, 30)
    assert done.dropped == {
        "prepare.root": ("/a", "of the earlier corpus"),
        "prepare.columns.label": ("score", "of the earlier corpus"),
        "transcribe.model": ("tiny", "of the earlier corpus"),
        "text": ("bert_base_uncased", "chosen for language en, not zh"),
        "model.text.max_tokens": (64, "chosen for language en, not zh"),
    }
    assert compose() == params(project)


def test_the_same_preset_with_another_root_is_another_corpus(project):
    apply(["corpus=folder", "prepare.root=/a", "prepare.columns.label=score"])
    assert "prepare.columns.label" not in apply(["prepare.root=/b"]).dropped  # the folder was moved
    assert list(apply(["corpus=folder", "prepare.root=/c"]).dropped) == ["prepare.columns.label"]
    edit(project, "  layout: folder", "  layout: mmsa")
    assert "prepare.layout" in apply(["corpus=folder"]).changes


def test_a_named_preset_sets_its_values_and_leaves_the_others(project):
    apply(["train.epochs=5", "train.seeds=[1,2]"])
    done = apply(["experiment=fast"])
    assert done.dropped == {"train.epochs": (5, "set by experiment=fast")}
    assert (params(project)["train"]["epochs"], params(project)["train"]["seeds"]) == (2, [1, 2])
    apply(["experiment=default"])
    assert (params(project)["train"]["epochs"], params(project)["train"]["seeds"]) == (16, [1, 2])


def test_options_go_with_their_extractor(project):
    apply([f"{OPTIONS}.hop_seconds=0.1"])
    apply(["extract.audio.extractor=audio.opensmile"])
    assert params(project)["extract"]["audio"] == {"extractor": "audio.opensmile", "options": {}}
    apply(["corpus=sims", "text=characters"])  # whose preset has options of another extractor
    assert params(project)["extract"]["audio"] == {"extractor": "audio.opensmile", "options": {}} and not hand_edits()


def test_choices_that_the_new_presets_do_not_allow_are_dropped_with_the_reason(project):
    apply(["model.unimodal_heads=true", "train.seeds=[3]"])
    done = apply(["experiment=published"])
    value, reason = done.dropped["model.unimodal_heads"]
    assert value is True and reason.startswith("does not fit: model")
    assert params(project)["train"]["seeds"] == [1, 12, 123, 1234] and compose() == params(project)


def test_undo_brings_back_the_exact_bytes_and_again_takes_that_back(project):
    files = [project / "params.yaml", project / "conf/chosen.yaml", project / "conf/emptied.yaml"]
    content = files[0].read_bytes().replace(b"epochs: 16", b"epochs: 40  # mine, \xc3\xa9\r")
    files[0].write_bytes(content + b"# \xff\n".replace(b"\xff", b"end"))
    files[2].unlink()
    before = [path.read_bytes() for path in files[:2]]
    done = apply([f"~{OPTIONS}"])
    assert done.comments and done.edits == {"train.epochs": (16, 40)} and params(project)["train"]["epochs"] == 40
    changed = [path.read_bytes() for path in files]
    apply([])  # changes nothing, and is nothing to undo
    assert undo() == {f"{OPTIONS}.hop_seconds": (None, 0.064)}
    assert [path.read_bytes() for path in files[:2]] == before and not files[2].exists()
    undo()
    assert [path.read_bytes() for path in files] == changed


def test_without_a_change_there_is_nothing_to_undo(project):
    with pytest.raises(ValueError, match="nothing to undo"):
        undo()
    apply(["train.epochs=3"])
    (project / ".dashfusion/undo.json").write_text('{"params.yaml": 5}')
    with pytest.raises(ValueError, match=r"undo.json: not a record"):
        undo()
    assert params(project)["train"]["epochs"] == 3


@pytest.mark.parametrize("content", [b"train: [", b"\xff\xfe", b"- a\n"])
def test_a_file_that_cannot_be_read_is_not_overwritten_but_by_a_reset(project, content):
    (project / "params.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"(?s)params.yaml: .*--reset"):
        apply(["train.epochs=3"])
    assert (project / "params.yaml").read_bytes() == content
    apply(["train.epochs=3"], reset=True)
    undo()
    assert (project / "params.yaml").read_bytes() == content


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_killed_change_loses_nothing(project, monkeypatch, written):
    edit(project, "batch_size: 16", "batch_size: 8")
    write, calls = undo_module._write, []

    def die(path: Path, content: bytes | None) -> None:
        calls.append(path)
        if len(calls) > written:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(undo_module, "_write", die)
        with pytest.raises(KeyboardInterrupt):
            apply(["train.epochs=3", f"~{OPTIONS}"])
    assert params(project)["train"]["epochs"] == (3 if written > 1 else 16)
    apply(["model.dim=64"])
    assert params(project)["train"]["batch_size"] == 8 and params(project)["model"]["dim"] == 64
    assert params(project)["train"]["epochs"] == (3 if written > 1 else 16)
    assert compose() == params(project)
    undo()
    assert params(project)["train"]["batch_size"] == 8 and params(project)["model"]["dim"] == 128


def test_options_go_with_their_network(project, monkeypatch):
    @dataclass(frozen=True)
    class Options:
        rank: int = 4

    monkeypatch.setattr(LateFusion, "options_class", Options)
    apply(["model.name=late_fusion", "train.contrastive.weight=0", "model.options.rank=8"])
    assert params(project)["model"]["options"] == {"rank": 8} and not hand_edits()
    apply(["model.options.rank=2", "model.dim=64"])
    assert params(project)["model"]["options"] == {"rank": 2} and compose() == params(project)
    with pytest.raises(ParamsError, match=r"model\.options\.rnk .*did you mean 'rank'"):
        apply(["model.options.rnk=8"])
    apply(["model.name=dashfusion"])
    assert params(project)["model"]["options"] == {} and compose() == params(project)


def test_a_replaced_block_takes_further_settings_as_any_other(project):
    apply(["extract.audio.extractor=audio.transformer", f"~{OPTIONS}", f"+{OPTIONS}={{model:/models/a}}"])
    assert compose([f"{OPTIONS}.model=/models/b"])["extract"]["audio"]["options"] == {"model": "/models/b"}


def test_a_preset_named_with_dvcs_own_command_wins_over_the_chosen_one(project):
    apply(["corpus=mmsa", "experiment=in_batch", "train.epochs=3"])
    composed = compose(["corpus=demo_en", "experiment=default"])
    assert composed["prepare"]["layout"] == "demo" and composed["train"]["contrastive"]["scope"] == "retrieved"
    assert composed["train"]["epochs"] == 3


def test_going_to_presets_and_back_leaves_every_file_as_it_was(project):
    files = [project / "params.yaml", *(project / "conf").rglob("*.yaml")]
    before = {path: path.read_text(encoding="utf-8") for path in files}
    apply(["corpus=demo_zh", "prepare.demo.clips=48", "align.mask_invalid=[]"])
    apply(["corpus=folder", "prepare.root=/videos/mine"])
    apply(["corpus=mmsa", "prepare.label_range=[-1,1]", f"~{OPTIONS}", f"+{OPTIONS}={{model:x}}"])
    apply([], reset=True)
    assert {path: path.read_text(encoding="utf-8") for path in files} == before


def test_a_hand_edit_is_seen_and_kept_on_demand(project):
    apply(["corpus=mmsa", "prepare.root=/videos/mosi"])
    edit(project, "epochs: 16", "epochs: 40")
    edit(project, "      hop_seconds: 0.064", "      model: /models/wav2vec2")
    expected = {"train.epochs": (16, 40), f"{OPTIONS}.hop_seconds": (0.064, None)}
    expected |= {f"{OPTIONS}.model": (None, "/models/wav2vec2")}
    assert hand_edits() == expected == save()
    assert hand_edits() == {} and compose() == params(project)
    assert chosen()[0] == {"corpus": "mmsa"} and chosen()[1]["prepare.root"] == "/videos/mosi"


def test_a_hand_edit_that_is_no_parameter_is_not_kept(project):
    edit(project, "  epochs: 16", "  epoch: 16")
    with pytest.raises(ParamsError, match=r"train.epoch: no such key; did you mean 'epochs'\?"):
        save()
    assert chosen() == ({}, {})


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("corpus=demo_en_", "no such preset; did you mean 'demo_en'. there are csd, demo_en"),
        ("train.epoch=3", r"train.epoch: no such key or group; did you mean 'train.epochs'\?"),
        ("+train.epoch=3", r"train.epoch: no such key; did you mean 'epochs'\?"),
        ("experiments=fast", r"did you mean 'experiment'\?"),
        (f"{OPTIONS}={{model:x}}", rf"is a block: name a key of it, or replace it: '~{OPTIONS}'"),
        ("train.epochs=3,4", "dvc exp run --queue -S train.epochs=3,4 tries several"),
        ("train.epochs", "expected group=preset or key=value"),
        ("~evaluate", "evaluate: conf/ has a value for this, which cannot be removed"),
        ("train.text_learning_rate=2.0e-5", r"train.text_learning_rate is 2e-05: with model.text.mode frozen"),
        ("train.epochs=-3", "train.epochs"),
    ],
)
def test_a_wrong_choice_is_refused_with_the_way_out_and_changes_nothing(project, choice, message):
    files = [project / "params.yaml", project / "conf/chosen.yaml", project / "conf/emptied.yaml"]
    before = [path.read_bytes() for path in files]
    with pytest.raises(ValueError, match=message):
        apply([choice])
    assert [path.read_bytes() for path in files] == before


def test_a_corpus_of_ones_own_must_say_what_the_defaults_leave_open(project):
    (project / "conf/corpus/mosi.yaml").write_text(
        "# @package _global_\n# MOSI, here.\nprepare: {corpus: mosi, layout: mmsa}\n", encoding="utf-8"
    )
    assert presets()["corpus"]["mosi"] == "MOSI, here"
    with pytest.raises(ValueError, match=r"prepare\.root"):
        apply(["corpus=mosi"])
    apply(["corpus=mosi", "prepare.root=/videos/mosi"])
    assert compose()["prepare"]["root"] == "/videos/mosi"


def test_every_preset_composes_and_says_what_it_is_for():
    for group, names in presets(ROOT / "conf").items():
        for name, meaning in names.items():
            compose([f"{group}={name}"], ROOT / "conf")
            assert len(meaning) > 10, f"{group}={name} has no comment"


def test_use_restores_params_yaml_after_dvc_has_written_it(project):
    before = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(yaml.safe_dump(compose(["train.epochs=3"])), encoding="utf-8")
    assert apply([], reset=True).changes == {"train.epochs": (3, 16)}
    assert (project / "params.yaml").read_text(encoding="utf-8") == before
