"""Parts of a split."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from model.data import ClipTable
from model.slices import SLICES, slice_rows


def test_a_modality_misleads_where_its_own_label_is_of_the_opposite_sign(dataset_writer, tmp_path):
    own = [1.0, -1.0, 0.0, None, 2.0, -2.0]
    whole = [1.0, 1.0, -1.0, -1.0, -2.0, 0.0]

    def change(split, table):
        for name, values in (("label", whole), ("label_text", own)):
            column = pa.array((values * 4)[: len(table)], pa.float32())
            table = table.set_column(table.schema.get_field_index(name), name, column)
        return table

    clips = ClipTable.read(dataset_writer(tmp_path, clips=dict.fromkeys(("train", "valid", "test"), 6), change=change),
                           "test", 32)  # fmt: skip
    assert SLICES[0] == "text misleads"
    assert slice_rows(clips, "text misleads").tolist() == [False, True, False, False, True, False]
    assert not slice_rows(clips, "audio misleads").any(), "nobody has labelled audio alone"


def test_a_clip_can_be_made_to_lack_a_modality(dataset):
    clips = ClipTable.read(dataset, "train", 32)
    rows = np.arange(len(clips)) % 2 == 0
    without = clips.without("audio", rows)
    lengths = without.lengths()
    assert not lengths[rows, 1].any() and np.array_equal(lengths[~rows], clips.lengths()[~rows])
    assert without.batch(np.arange(4)).lacking >= {"audio"} and clips.lengths()[rows, 1].any()
