"""`dashfusion serve` by HTTP: the command's own answer, uploads that are none, limits, and nothing left of any."""

from __future__ import annotations

import errno
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import av
import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from flows.serving.app import sanitise_name
from flows.serving.errors import REASONS
from flows.serving.schema import Error, Result, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXT = "The phone was kind of pleasant."


@pytest.fixture(autouse=True)
def nothing_left(uploads) -> Iterator[None]:
    """No test may leave a file of an upload behind."""
    yield
    assert list(uploads.iterdir()) == []


def upload(client: Any, content: Path | bytes, name: str = "clip.mp4", **fields: Any) -> Any:
    data = content.read_bytes() if isinstance(content, Path) else content
    return client.post("/predict", files={"file": (name, data, "video/mp4")}, data=fields)


def refusal(answer: Any) -> tuple[int, str]:
    """Status and reason; the shape is checked as well."""
    told = answer.json()
    assert set(told) == {"error", "message"} and told["message"], told
    assert REASONS[told["error"]].status == answer.status_code
    return answer.status_code, told["error"]


def same(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == pytest.approx(other, abs=2e-3) if isinstance(one, float) else one == other


def test_the_answer_is_what_the_command_prints(client, corpus, long_clip):
    command = ["predict", str(long_clip), "--text", TEXT, "--level", "0.8", "--window", "3", "--json"]
    model = ["--model", str(corpus / "models-unaligned/best"), "--device", "cpu"]
    shown = CliRunner().invoke(app, [*command, *model])
    expected = json.loads(shown.stdout)
    answer = upload(client, long_clip, "my talk.mp4", text=f"  {TEXT} ", level="0.8", window="3")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert len(found["results"][0]["windows"]) > 5
    for content in (expected, found):
        assert set(content["results"][0].pop("seconds")) == {"decode", "features", "transcribe", "model"}
    expected["results"][0]["file"], expected["model"]["path"] = "my talk.mp4", "best"
    assert same(expected, found), (expected, found)


def test_without_a_text_the_other_modalities_are_scored(client, clip):
    result = upload(client, clip).json()["results"][0]
    assert result["used"] == ["audio", "vision"]
    assert "no_text" in [warning["code"] for warning in result["warnings"]]


def test_answers_are_as_the_schema_says_and_it_names_all_of_their_keys(client, clip, long_clip):
    schema = client.get("/openapi.json").json()
    told = upload(client, long_clip, text=TEXT, frames="true").json()
    for name, content in (
        ("Prediction", told),
        ("Prediction", upload(client, clip).json()),
        ("ModelFacts", client.get("/model").json()),
        ("Health", client.get("/health").json()),
        ("Error", upload(client, b"").json()),
    ):
        jsonschema.validate(content, {"$ref": f"#/components/schemas/{name}"} | {"components": schema["components"]})
    result = told["results"][0]
    assert {field.alias or name for name, field in Result.model_fields.items()} == set(result)
    assert {field.alias or name for name, field in Window.model_fields.items()} == set(result["windows"][0])


def test_the_schema_describes_everything(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/model", "/health"}
    for operation in (operation for path in schema["paths"].values() for operation in path.values()):
        assert operation["summary"] and operation["description"]
        for status, answer in operation["responses"].items():
            assert answer["content"]["application/json"]["schema"]["$ref"], status
    form = schema["components"]["schemas"]["Body_predict"]["properties"]
    assert all(field["description"] for field in form.values()) and "file" in form
    assert set(schema["paths"]["/predict"]["post"]["responses"]) == {
        str(status) for status in {200, *(reason.status for reason in REASONS.values())} - {404, 405}
    }
    assert get_args(Error.model_fields["error"].annotation) == tuple(REASONS)


def test_model_says_what_it_is_and_what_it_takes(client):
    facts = client.get("/model").json()
    assert next(iter(facts)) == "notice" and "real people mean nothing" in facts["notice"] and facts["generated"]
    assert (facts["corpus"], facts["label_range"], facts["modalities"]) == (
        "demo_en",
        [-3, 3],
        ["text", "audio", "vision"],
    )
    assert "valid_mae" in facts["metrics"] and facts["recogniser"] is None
    assert facts["limits"] == {"bytes": 4 << 20, "seconds": 60.0}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/etc/cron.d/job", "job"),
        ("..", ".."),
        ("a\x00b\x1b[31m.mp4", "ab[31m.mp4"),
        ("\u202egpj.exe", "gpj.exe"),
        ("x" * 5000, "x" * 200),
        ("dir/", "upload"),
        ("", "upload"),
        ("会议 记录.mp4", "会议 记录.mp4"),
    ],
)
def test_names_are_shown_without_their_folders(name, shown):
    assert sanitise_name(name) == shown


@pytest.mark.parametrize("name", ["../../escaped.mp4", "/tmp/escaped.mp4", "%2e%2e%2fescaped.mp4", "..\\escaped.mp4"])
def test_no_name_leads_out_of_the_folder(client, clip, uploads, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    answer = upload(client, clip, name)
    assert answer.status_code == 200 and answer.json()["results"][0]["file"].endswith("escaped.mp4")
    assert not list(tmp_path.rglob("*escaped*")) and not Path("/tmp/escaped.mp4").exists()


def zipped(clip: Path) -> bytes:
    path = clip.parent / "clip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(clip)
    content = path.read_bytes()
    path.unlink()
    return content


NO_CLIPS: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda clip: b"",
    "text": lambda clip: b"This is a letter, not a film.\n" * 50,
    "zip": zipped,
    "truncated": lambda clip: clip.read_bytes()[:3000],
    "subtitles": lambda clip: b"1\n00:00:01,000 --> 00:00:02,000\nno stream\n",
    "playlist": lambda clip: f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\nfile://{clip}\n#EXT-X-ENDLIST\n".encode(),
    "script": lambda clip: f"ffconcat version 1.0\nfile {clip.name}\n".encode(),
    "html": lambda clip: b"<!doctype html><script>alert(1)</script>",
    "noise": lambda clip: np.random.default_rng(0).bytes(20_000),
}


@pytest.mark.parametrize("kind", NO_CLIPS)
def test_what_is_called_a_clip_and_is_none_is_refused_by_its_content(client, clip, kind):
    answer = upload(client, NO_CLIPS[kind](clip), "holiday.mp4")
    assert refusal(answer) == (415, "not_media")
    assert "holiday.mp4" in answer.json()["message"] and "uploads" not in answer.json()["message"]


def test_a_clip_is_a_clip_whatever_it_is_called(client, clip):
    data = clip.read_bytes()
    answer = client.post("/predict", files={"file": ("notes.txt", data, "text/plain")}, data={"text": TEXT})
    assert answer.status_code == 200 and answer.json()["results"][0]["used"] == ["text", "audio", "vision"]


def write_pictures(path: Path, times: list[int], size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    """A video with grey pictures at these seconds."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height = size
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((*size[::-1], 3), 90, np.uint8), "rgb24")
            frame.pts, frame.time_base = time, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_ten_hours_are_refused_before_anything_is_decoded(client, tmp_path):
    answer = upload(client, write_pictures(tmp_path / "long.mp4", [0, 1, 36_000]))
    assert refusal(answer) == (422, "too_long")
    assert "10:00:0" in answer.json()["message"] and "1:00" in answer.json()["message"]


def test_a_length_that_no_header_tells_is_counted(client, tmp_path):
    live = write_pictures(tmp_path / "live.webm.mkv", list(range(200)), live="1")
    with av.open(str(tmp_path / "live.webm.mkv")) as container:
        assert not container.duration
    assert refusal(upload(client, live)) == (422, "too_long")


def test_huge_pictures_are_refused(client):
    answer = upload(client, b"YUV4MPEG2 W16000 H12000 F25:1 C420jpeg\nFRAME\n" + bytes(1000))
    assert refusal(answer) == (422, "too_many_pixels")
    assert "16000 x 12000" in answer.json()["message"]


def test_a_clip_that_is_cut_off_is_refused_with_the_reason(client, tmp_path):
    data = write_pictures(tmp_path / "whole.mkv", list(range(30)))
    answer = upload(client, data[: len(data) * 2 // 3], "torn.mkv")
    assert refusal(answer) == (422, "not_scorable")
    assert answer.json()["message"].startswith("torn.mkv: truncated")


@pytest.mark.parametrize("seed", range(12))
def test_damaged_copies_are_scored_or_refused_and_never_a_mistake_of_ours(client, clip, seed):
    generator = np.random.default_rng(seed)
    data = bytearray(clip.read_bytes())
    for place in generator.integers(0, len(data), int(generator.integers(1, 400))):
        data[place] = generator.integers(0, 256)
    if seed % 3 == 0:
        at = int(generator.integers(0, len(data)))
        del data[at : at + int(generator.integers(1, 5000))]
    answer = upload(client, bytes(data))
    assert answer.status_code == 200 or refusal(answer)[0] in (415, 422)


def test_a_clip_with_nothing_to_go_by_is_refused(client, tmp_path):
    answer = upload(client, write_pictures(tmp_path / "grey.mp4", [0, 1, 2]))
    assert refusal(answer) == (422, "not_scorable") and "nothing to score it by" in answer.json()["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"level": "0.7"}, {"level": "1.5"}, {"level": "nan"}, {"level": "high"}, {"window": "0"}, {"window": "inf"},
        {"hop": "-1"}, {"recognise": "perhaps"}, {"text": "x" * 20_001},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_their_range_are_refused_by_name(client, clip, fields):
    answer = upload(client, clip, **fields)
    assert refusal(answer) == (422, "invalid")
    assert next(iter(fields)) in answer.json()["message"]


def test_what_is_no_upload_is_refused(client, clip):
    data = clip.read_bytes()
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refusal(client.post("/predict", content=data)) == (415, "not_multipart")
    assert refusal(client.post("/predict", json={"file": "x"})) == (415, "not_multipart")
    assert refusal(client.post("/predict", content=b"nonsense", headers=form)) == (400, "bad_request")
    assert refusal(client.post("/predict", content=b"", headers={"Content-Type": "multipart/form-data"}))[0] == 400
    assert refusal(client.post("/predict", files={"other": data})) == (422, "invalid")
    assert refusal(client.post("/predict", data={"file": "x"}, files={"text": data})) == (422, "invalid")
    two = [("file", ("a.mp4", data)), ("file", ("b.mp4", data))]
    assert refusal(client.post("/predict", files=two)) == (400, "bad_request")
    many = {f"field{i}": "x" for i in range(50)}
    assert refusal(upload(client, clip, **many)) == (400, "bad_request")
    assert refusal(upload(client, clip, text="x" * 200_000)) == (400, "bad_request")
    assert refusal(client.get("/predict")) == (405, "method_not_allowed")
    for path in ("/nowhere", "/docs/", "/redoc", "/page.js/x", "/%2e%2e/pyproject.toml"):
        assert refusal(client.get(path)) == (404, "not_found")


@pytest.mark.parametrize("where", ["flows.serving.app.shutil.copyfileobj", "starlette.formparsers.UploadFile.write"])
def test_a_disk_that_is_full_is_told_of(client, clip, scoring_pool, monkeypatch, where):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(where, full)
    assert refusal(upload(client, clip)) == (503, "no_room") and scoring_pool.waiting == 0


def test_a_mistake_in_the_server_is_told_without_its_details(new_client, clip, monkeypatch):
    from flows.serving import app

    def fail(*_: Any) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(app, "to_document", fail)
    client = new_client()
    client._transport.raise_server_exceptions = False
    answer = upload(client, clip)
    assert refusal(answer) == (500, "internal") and "secret" not in answer.text


def test_the_page_asks_for_nothing_elsewhere_and_holds_no_script_itself(client):
    page, styles = client.get("/"), client.get("/page.css")
    answers = [client.get(f"/{name}.js") for name in ("page", "charts", "dom", "result", "sortable")]
    assert "text/html" in page.headers["content-type"]
    assert all("text/javascript" in answer.headers["content-type"] for answer in answers)
    assert (
        re.findall(r"<script(?![^>]*\ssrc=\"(?:page|sortable)\.js\")", page.text) == [] and " style=" not in page.text
    )
    assert not re.search(r"\son\w+=", page.text)
    scripts = "".join(answer.text for answer in answers)
    for text in (page.text, scripts.replace("http://www.w3.org/2000/svg", ""), styles.text):
        assert "http:" not in text and "https:" not in text and "//cdn" not in text and "@import" not in text
    assert "innerHTML" not in scripts and "eval(" not in scripts
    used = set(re.findall(r"\$\(\"([\w-]+)\"\)", scripts))
    assert used <= set(re.findall(r"\sid=\"([\w-]+)\"", page.text))


def test_the_api_page_asks_for_nothing_elsewhere_and_holds_no_script_itself(client):
    page, script, styles = (client.get(path) for path in ("/docs", "/docs.js", "/docs.css"))
    assert re.findall(r"<script(?![^>]*\ssrc=\"docs\.js\")", page.text) == [] and " style=" not in page.text
    assert not re.search(r"\son\w+=", page.text)
    for text in (page.text, script.text, styles.text):
        assert "http:" not in text and "https:" not in text and "@import" not in text
    assert "innerHTML" not in script.text and "eval(" not in script.text and ".style" not in script.text
    used = set(re.findall(r"\$\(\"([\w-]+)\"\)", script.text))
    assert used <= set(re.findall(r"\sid=\"([\w-]+)\"", page.text))


def test_every_answer_carries_the_headers_that_protect_the_page(client):
    for answer in (client.get("/"), client.get("/model"), client.get("/nowhere"), client.post("/predict")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers
