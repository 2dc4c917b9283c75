"""Word times from tables, TextGrids and `.csd` files, whole, odd and hostile."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from corpora.manifest import Clip
from extractors.transcripts.word_timings import MAX_TEXTGRID_BYTES, read_word_files, read_word_table
from extractors.transcripts.words import Word


def clip(video="v", name="1", duration=None):
    return Clip(f"{video}/{name}", video, "train", "en", "", "", duration=duration)


def words(*times):
    return tuple(Word(*one) for one in times)


class TestTable:
    HEAD = "clip_id,index,word,start,end\n"

    @pytest.fixture
    def write(self, tmp_path):
        def write(text, encoding="utf-8"):
            path = tmp_path / "words.csv"
            path.write_bytes(text.encode(encoding))
            return path

        return write

    def test_words_by_clip_whatever_the_order_of_columns_and_with_a_byte_order_mark(self, write):
        path = write('end,word,clip_id,index,start\n1,"Well,",v/1,0,0.5\n2,好,v/2,0,1\n1.5,so,v/1,1,1\n', "utf-8-sig")
        assert read_word_table(path) == {
            "v/1": words(("Well,", 0.5, 1), ("so", 1, 1.5)),
            "v/2": words(("好", 1, 2)),
        }

    def test_only_the_corpus_clips_are_given(self, write):
        path = write(self.HEAD + "v/1,0,a,0,1\nother/1,0,b,0,1\n")
        assert read_word_files(path, [clip(), clip(name="2")]) == {"v/1": words(("a", 0, 1))}

    def test_a_table_of_another_corpus_is_refused(self, write):
        with pytest.raises(ValueError, match=r"none of the 1 clips, such as v/1; it has: x/1"):
            read_word_files(write(self.HEAD + "x/1,0,a,0,1\n"), [clip()])

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("v/1,0,a,x,1\n", r"words\.csv, line 2: clip v/1, word 'a': its times are 'x' and '1'"),
            ("v/1,0,a,1\n", "line 2: clip v/1, word 'a': its times are '1' and None"),
            ("v/1,0,a,nan,1\n", "nan to 1 s is not a valid time"),
            ("v/1,0,a,1,inf\n", "1 to inf s is not a valid time"),
            ("v/1,0,a,-1,1\n", "-1 to 1 s is not a valid time"),
            ("v/1,0,a,2,1\n", "2 to 1 s is not a valid time"),
            ("v/1,0,a,1,2\nv/1,1,b,0,1\n", "line 3: clip v/1: .*'b'.* comes after .*'a'"),
            ("v/1,1,a,1,2\n", "has word 1 where word 0 is expected"),
            ("v/1,zero,a,1,2\n", "has word zero where word 0 is expected"),
            ("v/1\n", "has word None where word 0 is expected"),
            ("v/1,0," + "a" * 200_000 + ",1,2\n", "line 2: not a CSV table in UTF-8: field larger"),
        ],
    )
    def test_what_is_wrong_is_named_with_its_line(self, write, rows, message):
        with pytest.raises(ValueError, match=message):
            read_word_table(write(self.HEAD + rows))

    def test_another_encoding_is_refused(self, write):
        with pytest.raises(ValueError, match=r"words\.csv.*not a CSV table in UTF-8"):
            read_word_table(write(self.HEAD + "v/1,0,Käse,0,1\n", "latin-1"))

    def test_a_column_that_is_absent_is_named(self, write):
        with pytest.raises(ValueError, match=r"no column end; has \['clip_id', 'index', 'word', 'start'\]"):
            read_word_table(write("clip_id,index,word,start\n"))

    def test_words_may_end_a_little_after_the_clip_and_no_more(self, write):
        path = write(self.HEAD + "v/1,0,a,0.5,1.2\n")
        assert read_word_files(path, [clip(duration=1.0)]) == {"v/1": words(("a", 0.5, 1.0))}
        with pytest.raises(ValueError, match=r"clip v/1, word 'a' ends at 1\.2 s, but the clip lasts 0\.90 s"):
            read_word_files(path, [clip(duration=0.9)])


def long_grid(*tiers, end=2.0):
    """Praat's long text format. A tier is a name and its (start, end, label); a name in capitals is of points."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for i, (name, entries) in enumerate(tiers, 1):
        points = name.isupper()
        lines += [f"    item [{i}]:", f'        class = "{"TextTier" if points else "IntervalTier"}"']
        lines += [f'        name = "{name}"', "        xmin = 0", f"        xmax = {end}"]
        lines += [f"        {'points' if points else 'intervals'}: size = {len(entries)}"]
        for j, (start, stop, label) in enumerate(entries, 1):
            label = label.replace('"', '""')
            if points:
                lines += [f"        points [{j}]:", f"            number = {start}", f'            mark = "{label}"']
                continue
            lines += [f"        intervals [{j}]:", f"            xmin = {start}", f"            xmax = {stop}"]
            lines += [f'            text = "{label}"']
    return "\n".join(lines) + "\n"


def short_grid(*tiers, end=2.0):
    """Praat's short text format."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", f"{end}", "<exists>", f"{len(tiers)}"]
    for name, entries in tiers:
        lines += ['"IntervalTier"', f'"{name}"', "0", f"{end}", f"{len(entries)}"]
        for start, stop, label in entries:
            lines += [f"{start}", f"{stop}", '"' + label.replace('"', '""') + '"']
    return "\n".join(lines) + "\n"


ENTRIES = [(0, 0.25, "sil"), (0.25, 0.75, "hello"), (0.75, 1, ""), (1, 1.5, '"你"'), (1.5, 2.0, "SP")]
SPOKEN = words(("hello", 0.25, 0.75), ('"你"', 1, 1.5))


class TestTextGrids:
    @pytest.fixture(autouse=True)
    def reader(self):
        pytest.importorskip("praatio")

    @pytest.fixture
    def write(self, tmp_path):
        def write(text, name="v/1.TextGrid", encoding="utf-8"):
            path = tmp_path / "grids" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode(encoding))
            return tmp_path / "grids"

        return write

    @pytest.mark.parametrize("make", [long_grid, short_grid])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_both_formats_and_all_encodings_without_the_silences(self, write, make, encoding):
        phones = ("phones", [(0, 2.0, "HH")])
        folder = write(make(phones, ("words", ENTRIES)), encoding=encoding)
        assert read_word_files(folder, [clip(duration=2.0)]) == {"v/1": SPOKEN}

    def test_windows_line_ends(self, write):
        assert read_word_files(write(long_grid(("word", ENTRIES)).replace("\n", "\r\n")), [clip()])["v/1"] == SPOKEN

    def test_the_only_interval_tier_holds_the_words_whatever_its_name(self, write):
        assert read_word_files(write(long_grid(("abc", ENTRIES), ("TONES", [(1, 1, "H*")]))), [clip()])["v/1"] == SPOKEN

    def test_several_tiers_none_of_them_of_words_are_refused(self, write):
        with pytest.raises(ValueError, match=r"v/1\.TextGrid: which of the interval tiers 'a', 'b' holds the words"):
            read_word_files(write(long_grid(("a", ENTRIES), ("b", ENTRIES))), [clip()])
        with pytest.raises(ValueError, match=r"interval tiers \(none\)"):
            read_word_files(write(long_grid(("TONES", []))), [clip()])

    def test_several_speakers_words_are_put_in_the_order_of_time(self, write):
        one, two = [(0, 0.5, "a"), (0.5, 1, ""), (1, 2.0, "c")], [(0, 0.5, ""), (0.5, 1, "b"), (1, 2.0, "sp")]
        folder = write(long_grid(("Ann - words", one), ("Ann - phones", one), ("Bob - words", two)))
        assert [word.text for word in read_word_files(folder, [clip()])["v/1"]] == ["a", "b", "c"]

    @pytest.mark.parametrize("name", ["v_1.TextGrid", "x/v$_$1.textgrid", "v/1.TextGrid"])
    def test_files_are_found_by_the_clips_id_in_its_usual_spellings(self, write, name):
        write(long_grid(("words", [])), "stranger/9.TextGrid")
        assert read_word_files(write(long_grid(("words", ENTRIES)), name), [clip(), clip(name="2")]) == {"v/1": SPOKEN}

    def test_dots_in_a_clips_id_are_no_suffix(self, write):
        folder = write(long_grid(("words", ENTRIES)), "v.a/1.5.TextGrid")
        assert read_word_files(folder, [clip("v.a", "1.5")]) == {"v.a/1.5": SPOKEN}

    def test_a_name_that_fits_two_clips_and_two_files_of_one_clip_are_refused(self, write):
        clips = [clip("a_b", "c"), clip("a", "b_c")]
        folder = write(long_grid(("words", ENTRIES)), "a_b_c.TextGrid")
        with pytest.raises(ValueError, match=r"a_b_c\.TextGrid: may be clip a/b_c or a_b/c; move it"):
            read_word_files(folder, clips)
        (folder / "a_b_c.TextGrid").unlink()
        write(long_grid(("words", ENTRIES)), "v_1.TextGrid")
        with pytest.raises(ValueError, match="are both clip v/1; remove one"):
            read_word_files(write(long_grid(("words", ENTRIES))), [clip()])

    def test_folders_without_any_or_of_another_corpus_are_refused(self, tmp_path, write):
        (tmp_path / "grids").mkdir()
        with pytest.raises(ValueError, match=r"no \.TextGrid in it"):
            read_word_files(tmp_path / "grids", [clip()])
        folder = write(long_grid(("words", ENTRIES)), "other/7.TextGrid")
        with pytest.raises(ValueError, match="none of the 1 clips, such as v/1; it has: other/7"):
            read_word_files(folder, [clip()])

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "no TextGrid",
            '{"tiers": 3}',
            "[]",
            "ooBinaryFile\x08TextGrid",
            long_grid(("words", ENTRIES)).replace("0.75", "minus"),
            long_grid(("words", [(1, 0.5, "back")])),
            long_grid(("words", [(0, 1.5, "a"), (1, 2.0, "overlap")])),
            long_grid(("words", ENTRIES), ("words", ENTRIES)),
            long_grid(("words", ENTRIES))[:-90],
            short_grid(("words", ENTRIES))[:-25],
            long_grid(("words", ENTRIES)).replace("xmax = 2.0", "xmax = 1" + "0" * 400),
        ],
    )
    def test_damaged_files_are_refused_by_name(self, write, text):
        with pytest.raises(ValueError, match=r"v/1\.TextGrid.*save it again"):
            read_word_files(write(text), [clip()])

    def test_other_encodings_and_absurd_sizes_are_refused(self, write):
        with pytest.raises(ValueError, match=r"v/1\.TextGrid: not a TextGrid"):
            read_word_files(write(long_grid(("words", [(0, 2.0, "Käse")])), encoding="latin-1"), [clip()])
        folder = write("")
        with (folder / "v/1.TextGrid").open("wb") as handle:
            handle.truncate(MAX_TEXTGRID_BYTES + 1)
        with pytest.raises(ValueError, match="64 MiB are too large for a TextGrid"):
            read_word_files(folder, [clip()])


class TestCsd:
    @pytest.fixture
    def write(self, tmp_path):
        h5py = pytest.importorskip("h5py")

        def write(entries, name="words", dtype="S16"):
            path = tmp_path / f"{name}.csd"
            with h5py.File(path, "w") as file:
                file.create_group(f"{name}/metadata")
                data = file.create_group(f"{name}/data")
                for key, (features, intervals) in entries.items():
                    data[f"{key}/features"] = np.array(features, dtype)
                    data[f"{key}/intervals"] = np.array(intervals, np.float64)
            return path

        return write

    @pytest.fixture
    def video(self, write):
        """Words of a video of ten seconds and its two segments, one from 1 to 4 s, one from 5 to 9 s."""
        texts = [["sp"], ["one"], ["two"], ["sp"], ["three"], ["after"]]
        times = [(0, 1.5), (1.5, 2), (2, 4.25), (4.25, 5), (4.75, 6), (9.5, 10)]
        return write({"v": (texts, times)}), write({"v": ([[3.0], [-1.0]], [(1, 4), (5, 9)])}, "labels", np.float32)

    CLIPS = (clip(name="1", duration=3.0), clip(name="2", duration=4.0))
    CUT: ClassVar = {"v/1": words(("one", 0.5, 1), ("two", 1, 3)), "v/2": words(("three", 0, 1))}

    def test_clips_are_cut_out_of_their_videos(self, video):
        assert read_word_files(video[0], self.CLIPS, video[1]) == self.CUT

    def test_clips_count_from_0_where_there_is_one_numbered_0(self, video):
        clips = [clip(name="0", duration=3.0), clip(name="1", duration=4.0)]
        assert list(read_word_files(video[0], clips, video[1]).values()) == list(self.CUT.values())

    def test_part_of_a_corpus_is_cut_the_same(self, video):
        assert read_word_files(video[0], self.CLIPS[1:], video[1]) == {"v/2": self.CUT["v/2"]}

    def test_files_aligned_to_the_segments_give_the_same(self, write):
        pieces = {
            "v[0]": ([["sp"], ["one"], ["two"]], [(1, 1.5), (1.5, 2), (2, 4)]),
            "v[1]": ([["three"], ["three"]], [(5, 6), (5, 6)]),
        }
        labels = {"v[0]": ([[3.0]], [(1, 4)]), "v[1]": ([[-1.0]], [(5, 9)])}
        path = write(pieces)
        assert read_word_files(path, self.CLIPS, write(labels, "labels", np.float32)) == self.CUT

    def test_words_stay_inside_a_clip_that_is_shorter_than_its_segment(self, video):
        clips = [clip(name="1", duration=2.5), clip(name="2", duration=4.0)]
        assert read_word_files(video[0], clips, video[1])["v/1"][-1] == Word("two", 1, 2.5)

    def test_strings_of_any_length(self, write, video):
        import h5py

        path = write({"v": ([[b"one"], ["zwölf".encode()]], [(1.5, 2), (2, 3)])}, dtype=h5py.string_dtype("utf-8"))
        assert [word.text for word in read_word_files(path, self.CLIPS, video[1])["v/1"]] == ["one", "zwölf"]

    def test_words_in_another_file_are_refused(self, video):
        import h5py

        with h5py.File(video[0], "a") as file:
            del file["words/data/v/features"]
            file["words/data/v/features"] = h5py.ExternalLink(str(video[1]), "labels/data/v/features")
        with pytest.raises(ValueError, match=r"words\.csd: refused: 'words/data/v/features' is a link"):
            read_word_files(video[0], self.CLIPS, video[1])

    def test_the_segments_must_be_given_and_only_here(self, video, tmp_path):
        with pytest.raises(ValueError, match=r"give also the \.csd with the clips' starts and ends as segments"):
            read_word_files(video[0], self.CLIPS)
        (tmp_path / "words.csv").write_text("clip_id,index,word,start,end\n")
        with pytest.raises(ValueError, match=r"segments belong to a \.csd of words"):
            read_word_files(tmp_path / "words.csv", self.CLIPS, video[1])

    def test_clips_that_are_no_rows_of_the_segments_are_refused(self, video):
        with pytest.raises(ValueError, match=r"clip v/3 would be segment 2 \(clips count from 1\).*has 2 of them"):
            read_word_files(video[0], [clip(name="3")], video[1])
        with pytest.raises(ValueError, match="clip v/one has no number"):
            read_word_files(video[0], [clip(name="one")], video[1])
        with pytest.raises(ValueError, match=r"differ from the clips' durations by 4\.5 s in the median"):
            read_word_files(video[0], [clip(name="1", duration=7.5), clip(name="2", duration=8.5)], video[1])
        with pytest.raises(ValueError, match="none of the 1 clips"):
            read_word_files(video[0], [clip("other")], video[1])

    @pytest.mark.parametrize(
        ("features", "intervals", "message"),
        [
            ([["a"], ["b"]], [(0, 1)], r"key 'v': features must be 1 strings \[n, 1\], found \(2, 1\)"),
            ([["a", "b"]], [(0, 1)], "features must be 1 strings"),
            ([["a"]], [(0, 1, 2)], r"intervals must be numbers \[n, 2\], found \(1, 3\)"),
            ([["a"]], [(2, 1)], "key 'v': no time runs from 2 to 1 s"),
            ([["a"]], [(np.nan, 1)], "no time runs from nan to 1 s"),
            ([["a"]], [(-1, 1)], "no time runs from -1 to 1 s"),
            ([[b"\xff"]], [(0, 1)], "a word is not in UTF-8"),
        ],
    )
    def test_impossible_content_is_named_with_its_key(self, write, video, features, intervals, message):
        with pytest.raises(ValueError, match=message):
            read_word_files(write({"v": (features, intervals)}), self.CLIPS, video[1])

    def test_word_vectors_are_no_words(self, write, video):
        path = write({"v": (np.zeros((1, 300)), [(0, 1)])}, dtype=np.float32)
        with pytest.raises(ValueError, match=r"found \(1, 300\) of float32; give the words, not their embeddings"):
            read_word_files(path, self.CLIPS, video[1])

    @pytest.mark.parametrize("key", ["v[x]", "v[1", "v[]", "v[1][2]"])
    def test_odd_keys_are_refused(self, write, video, key):
        with pytest.raises(ValueError, match="neither a video nor video"):
            read_word_files(write({key: ([["a"]], [(0, 1)])}), self.CLIPS, video[1])

    def test_segments_that_are_words_are_refused(self, write, video):
        path = write({"v[0]": ([["a"], ["b"]], [(0, 1), (1, 2)])}, "labels")
        with pytest.raises(ValueError, match="several intervals, so these are not segments"):
            read_word_files(video[0], self.CLIPS, path)
        path = write({"v": ([["a"]], [(0, 1)]), "v[0]": ([["a"]], [(0, 1)])}, "labels")
        with pytest.raises(ValueError, match="segment 0 of video v occurs twice"):
            read_word_files(video[0], self.CLIPS, path)

    def test_declared_sizes_are_not_believed(self, tmp_path, video):
        import h5py

        path = tmp_path / "huge.csd"
        with h5py.File(path, "w") as file:
            entry = file.create_group("words/data/v")
            entry.create_dataset("features", (10**12, 1), "S16", chunks=(1024, 1))
            entry.create_dataset("intervals", (10**12, 2), "f8", chunks=(1024, 2))
        with pytest.raises(ValueError, match=r"key 'v': intervals of shape \(1000000000000, 2\).* too large"):
            read_word_files(path, self.CLIPS, video[1])

    def test_entries_of_other_kinds_are_refused(self, tmp_path, video):
        import h5py

        path = tmp_path / "odd.csd"
        for make, message in (
            (lambda file: file.create_dataset("words/data/v", (1,), "f4"), "key 'v': no dataset 'intervals'"),
            (lambda file: file.create_group("words/data/v/intervals"), "key 'v': no dataset 'intervals'"),
            (lambda file: file.create_dataset("words/data", (1,), "f4"), "no computational sequence"),
            (
                lambda file: [file.create_group(f"{name}/data") for name in "ab"],
                "no computational sequence.*or several",
            ),
            (
                lambda file: file.create_group("words/data/v").create_dataset("intervals", data=h5py.Empty("f8")),
                "large",
            ),
        ):
            with h5py.File(path, "w") as file:
                make(file)
            with pytest.raises(ValueError, match=message):
                read_word_files(path, self.CLIPS, video[1])

    def test_what_is_no_hdf5_or_cut_off_is_refused(self, tmp_path, video):
        whole = video[0].read_bytes()
        for content in (b"", b"no HDF5", whole[: len(whole) // 2]):
            video[0].write_bytes(content)
            with pytest.raises(ValueError, match=r"words\.csd: not a whole \.csd: .*get it again"):
                read_word_files(video[0], self.CLIPS, video[1])


def test_what_is_not_there_or_of_another_kind_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no word times here; give a \.csv"):
        read_word_files(tmp_path / "nowhere", [clip()])
    (tmp_path / "words.txt").touch()
    with pytest.raises(ValueError, match=r"read from a \.csv, a \.csd or a folder of TextGrids"):
        read_word_files(tmp_path / "words.txt", [clip()])


@pytest.mark.parametrize(("package", "name"), [("praatio", "grids"), ("h5py", "words.csd")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package, name):
    (tmp_path / "grids").mkdir()
    (tmp_path / "words.csd").touch()
    monkeypatch.setattr("extractors.transcripts.word_timings.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"needs? the package {package}; pip install -e '\.\[words\]'"):
        read_word_files(tmp_path / name, [clip()])
