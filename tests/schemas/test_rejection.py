"""A rejection has the id of the record that it stands for, and a text that any table takes."""

import numpy as np

from handdata.schemas import HandRecord, RecordError, RejectReason, record_name, rejections_to_table
from handdata.schemas.rejection import printable, rejection


def test_a_rejected_frame_has_the_id_that_its_record_would_have() -> None:
    record = HandRecord(
        source="hagrid",
        split="val",
        sequence_id="s",
        frame_index=7,
        camera_id="c",
        image_uri="a.jpg",
        width=1,
        height=1,
        viewpoint="exo",
        keypoints_valid=np.zeros(42),
        keypoints_2d=np.zeros((42, 2)),
        hand_state=("unknown", "unknown"),
    )
    assert record_name("hagrid", "val", "s", 7, "c") == record.record_id


def test_names_that_are_not_text_still_fit_the_rejected_table() -> None:
    error = RecordError(RejectReason.IMAGE_MISSING, "no \udcff")
    row = rejection("a/\udcff", "b/\ud800.jpg", error)
    assert (row.record_id, row.image_uri) == ("a/\\udcff", "b/\\ud800.jpg")
    assert rejections_to_table([row]).num_rows == 1
    assert printable("plain ü") == "plain ü"


def test_a_long_label_is_quoted_in_part() -> None:
    row = rejection("a", "b.jpg", RecordError(RejectReason.LABEL_CORRUPT, f"start {'x' * 10_000_000} end"))
    assert len(row.detail) <= 1000
    assert row.detail.startswith("start xxx")
    assert row.detail.endswith("xxx end")


def test_a_detail_holds_no_address_of_an_object() -> None:
    detail = f"cannot identify image file {object()!r}; [mov,mp4 @ 0x55d0c0ffee00] no moov at 0x10; {len!r}"
    row = rejection("a", "b.jpg", RecordError(RejectReason.IMAGE_CORRUPT, detail))
    expected = "cannot identify image file <object object>; [mov,mp4] no moov at 0x10; <built-in function len>"
    assert row.detail == expected


def test_what_is_wrong_with_a_record_is_one_line() -> None:
    error = RecordError(RejectReason.LABEL_CORRUPT, 'a.yml: no mapping\n  in "<text>", line 1:\n    a: 1\n')
    assert error.detail == 'a.yml: no mapping in "<text>", line 1: a: 1'
    assert "\n" not in str(error)
