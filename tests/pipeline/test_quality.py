"""Flags follow from stored numbers and thresholds alone; gates reject once, with a reason of their own."""

from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from handdata.pipeline.quality import JUDGED_COLUMNS, OBSERVED_FLAGS, flags_of, judge
from handdata.pipeline.settings import FLAG_THRESHOLDS, AnnotateSettings, QualitySettings
from handdata.schemas import AnnotatedSample, EncodedImage, Pair, RejectReason, samples_to_table
from handdata.schemas.sample import Flag

SIZE = 64


def sample(frame: int = 0, sequence: str = "s", camera: str = "0", **columns: object) -> AnnotatedSample:
    """A right hand of 100 px in the middle of a 200 x 200 image; its crop of 128 px is 64 crop pixels wide."""
    keypoints, valid = np.zeros((42, 2)), np.zeros(42, bool)
    keypoints[:21], valid[:21] = 32, True
    name = f"synthetic/train/{sequence}/{frame:06d}-{camera}"
    fields: dict[str, object] = {
        "sample_id": name,
        "record_id": name,
        "unit_id": "u",
        "source": "synthetic",
        "split": "train",
        "sequence_id": sequence,
        "frame_index": frame,
        "camera_id": camera,
        "timestamp_s": None,
        "subject_id": None,
        "origin_id": None,
        "viewpoint": "exo",
        "hand_state": ("labelled", "absent"),
        "image_uri": f"/{name}.jpg",
        "video_frame": None,
        "width": 200,
        "height": 200,
        "camera_model": "pinhole",
        "camera_dist": None,
        "camera_t_world": None,
        "license": "",
        "image": EncodedImage(bytes=b"jpeg"),
        "hand_mask": EncodedImage(bytes=b"png"),
        "keypoints_2d": keypoints,
        "keypoints_valid": valid,
        "keypoints_origin": ("dataset", None),
        "keypoints_score": Pair(1, 0),
        "agreement_px": (None, None),
        "hand_px": Pair(100, 0),
        "mask_origin": "dataset",
        "mask_extent": "hand",
        "mask_score": 1.0,
        "mask_spill": 0.0,
        "sharpness": 100.0,
        "contrast": 30.0,
        "phash": (frame * 0x9E3779B97F4A7C15) % 2**63,
        "crop_xyxy": (36.0, 36.0, 164.0, 164.0),
        "pad_ltrb": (0, 0, 0, 0),
        "crop_mode": "frame",
        "keypoints_3d": None,
        "camera_k": None,
        "flags": (),
        "annotator_hash": "h",
    }
    return AnnotatedSample(**{**fields, **columns})


def judged(samples: list[AnnotatedSample], **settings: object) -> list[tuple[str, ...]]:
    table = samples_to_table(samples).select(JUDGED_COLUMNS)
    return flags_of(table, SIZE, QualitySettings(**settings))


def test_a_good_sample_has_no_flag() -> None:
    assert judged([sample()]) == [()]


@pytest.mark.parametrize(
    ("flag", "columns"),
    [
        ("low_mask_coverage", {"mask_score": 0.5}),
        ("mask_spill", {"mask_spill": 0.2}),
        ("small_hand", {"hand_px": Pair(100, 30)}),
        ("blurry", {"sharpness": 1.5}),
        ("no_content", {"contrast": 1.0}),
        ("truncated", {"width": 90}),
        ("labels_disagree", {"agreement_px": (6.0, None)}),  # 12 px of the full image, 0.12 hands
    ],
)
def test_each_threshold_has_its_flag(flag: str, columns: dict) -> None:
    assert judged([sample(**columns)]) == [(flag,)]


def test_numbers_that_are_missing_flag_nothing() -> None:
    bare = sample(mask_score=None, mask_spill=None, agreement_px=(None, None), contrast=None)
    assert judged([bare]) == [()]
    older = samples_to_table([bare]).select(JUDGED_COLUMNS).drop_columns("contrast")
    assert flags_of(older, SIZE, QualitySettings(min_contrast=100)) == [()]


def test_a_hand_is_truncated_by_the_share_of_its_own_joints() -> None:
    keypoints, valid = np.full((42, 2), 32.0), np.ones(42, bool)
    keypoints[:7, 0] = 60  # a third of the right hand at column 156 of the image
    cut = sample(keypoints_2d=keypoints, keypoints_valid=valid, width=150)
    assert judged([cut]) == judged([cut], max_truncation=0.3) == [("truncated",)]
    assert judged([cut], max_truncation=0.34) == [()]


def test_what_annotation_observed_is_kept_and_what_it_judged_is_not() -> None:
    earlier = ("blurry", *sorted(OBSERVED_FLAGS), "small_hand")
    assert judged([sample(flags=earlier)]) == [tuple(sorted(OBSERVED_FLAGS))]


def test_near_duplicates_are_compared_with_the_last_frame_that_was_kept() -> None:
    # One bit more a frame: each is near its predecessor, but the fourth is far enough from the first.
    drifting = [sample(frame, phash=(1 << frame) - 1) for frame in range(7)]
    assert [bool(flags) for flags in judged(drifting)] == [False, True, True, False, True, True, False]
    assert judged(drifting, min_phash_distance=0) == [()] * 7


def test_near_duplicates_lie_in_one_sequence_and_camera() -> None:
    still = [sample(0, phash=-1), sample(0, camera="1", phash=-1), sample(0, sequence="t", phash=-1)]
    assert judged(still) == [()] * 3
    assert judged([*still, sample(1, camera="1", phash=-1)])[3] == ("near_duplicate",)


def test_a_frame_that_a_gate_rejects_is_no_reason_to_drop_the_next() -> None:
    frames = [sample(0, phash=0, sharpness=1.0), sample(1, phash=0), sample(2, phash=0)]
    accepted, rejections = judge(frames, SIZE, QualitySettings(reject={"blurry", "near_duplicate"}))
    assert [row.frame_index for row in accepted] == [1]
    assert [row.reason for row in rejections] == [
        RejectReason.QUALITY_BLURRY,
        RejectReason.QUALITY_NEAR_DUPLICATE,
    ]


def test_a_record_that_several_gates_reject_is_rejected_once_and_names_all() -> None:
    bad = sample(sharpness=1.0, hand_px=Pair(20, 0), mask_score=0.1)
    accepted, (rejection,) = judge([bad], SIZE, QualitySettings(reject={"small_hand", "blurry"}))
    assert not accepted
    assert rejection.reason == "quality_blurry"
    assert rejection.record_id == bad.record_id
    assert "blurry, low_mask_coverage, small_hand" in rejection.detail


def test_no_samples_are_judged_to_none() -> None:
    assert judge([], SIZE, QualitySettings(reject={"blurry"})) == ([], [])


numbers = st.floats(0, 1, width=32)
drawn_samples = st.lists(
    st.builds(
        lambda camera, values, bits, width: {
            "camera": camera,
            "mask_score": values[0],
            "mask_spill": values[1],
            "sharpness": values[2] * 10,
            "hand_px": Pair(values[3] * 100, 0),
            "agreement_px": (values[4] * 10, None),
            "phash": bits,
            "width": width,
        },
        st.sampled_from("ab"),
        st.tuples(*[numbers] * 5),
        st.integers(0, 15),
        st.integers(80, 200),
    ),
    max_size=12,
).map(lambda rows: [sample(frame, **row) for frame, row in enumerate(rows)])
thresholds = st.builds(
    QualitySettings,
    min_mask_score=numbers,
    max_mask_spill=numbers,
    min_hand_px=st.floats(0, 100),
    max_truncation=numbers,
    min_sharpness=st.floats(0, 10),
    max_disagreement=numbers,
    min_phash_distance=st.integers(0, 5),
    reject=st.frozensets(st.sampled_from(get_args(Flag))),
)


@given(drawn_samples, thresholds)
def test_judging_stored_rows_again_changes_nothing(samples: list[AnnotatedSample], settings: QualitySettings) -> None:
    accepted, rejections = judge(samples, SIZE, settings)
    assert len(accepted) + len(rejections) == len(samples)
    again = flags_of(samples_to_table(accepted).select(JUDGED_COLUMNS), SIZE, settings)
    assert again == [row.flags for row in accepted]
    assert not any(settings.reject & set(row.flags) for row in accepted)


@given(drawn_samples, thresholds, thresholds)
def test_stricter_thresholds_keep_every_flag(
    samples: list[AnnotatedSample], one: QualitySettings, other: QualitySettings
) -> None:
    strict = QualitySettings(
        **{
            name: (max if name.startswith("min_") else min)(getattr(one, name), getattr(other, name))
            for name in one.thresholds()
        }
    )
    table = samples_to_table(samples).select(JUDGED_COLUMNS)
    # Near-duplicates are the exception: a frame dropped earlier changes which frame the next is compared with.
    few, many = (
        [set(flags) - {"near_duplicate"} for flags in flags_of(table, SIZE, settings)]
        for settings in (QualitySettings(**one.thresholds()), strict)
    )
    assert all(less <= more for less, more in zip(few, many, strict=True))


def test_every_flag_has_a_threshold_or_was_observed_and_every_flag_has_a_reason() -> None:
    assert set(get_args(Flag)) == set(FLAG_THRESHOLDS) | OBSERVED_FLAGS
    assert set(FLAG_THRESHOLDS.values()) == set(QualitySettings().thresholds())
    for flag in get_args(Flag):
        assert RejectReason(f"quality_{flag}")


def test_an_unknown_gate_is_rejected() -> None:
    with pytest.raises(ValidationError):
        QualitySettings(reject={"ugly"})


def test_thresholds_that_only_flag_are_no_part_of_a_samples_identity() -> None:
    def digest(**quality: object) -> str:
        return AnnotateSettings(quality=QualitySettings(**quality)).digest({})

    assert digest() == digest(min_hand_px=60)
    assert digest() != digest(reject={"small_hand"})
    assert digest(reject={"small_hand"}) != digest(reject={"small_hand"}, min_hand_px=60)
    assert digest(reject={"small_hand"}) == digest(reject={"small_hand"}, min_sharpness=9, min_contrast=9)


def test_slices_of_a_table_are_judged_like_whole_tables() -> None:
    table = samples_to_table([sample(frame, sharpness=float(frame)) for frame in range(6)]).select(JUDGED_COLUMNS)
    whole = flags_of(table, SIZE, QualitySettings())
    parts = pa.concat_tables([table.slice(0, 1), table.slice(1, 5)])
    assert flags_of(parts, SIZE, QualitySettings()) == whole
    assert flags_of(table.slice(1, 4), SIZE, QualitySettings()) == whole[1:5]


def test_a_threshold_is_a_number_that_json_can_hold() -> None:
    with pytest.raises(ValueError, match="finite number"):
        QualitySettings(min_hand_px=float("inf"))
