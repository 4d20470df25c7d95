"""The hands of one unit: found frame after frame, and given their sides when all frames are known."""

from collections.abc import Sequence
from dataclasses import replace

from handdata.pipeline.annotation.detector import Detection, HandDetector
from handdata.pipeline.annotation.keypoints import FrameKeypoints, join_keypoints, needs_detector
from handdata.pipeline.annotation.people import may_show_people, of_one_person
from handdata.pipeline.annotation.sides import Located, agree_on_sides
from handdata.pipeline.annotation.tracking import HandTracker, runs_of
from handdata.pipeline.annotation.unsided import on_named_sides
from handdata.pipeline.settings import KeypointsPolicy
from handdata.schemas import OTHER_SIDE, HandRecord, Side
from handdata.schemas.arrays import ByteArray


class UnitHands:
    """Locates the hands of a unit's frames one after another, and knows their sides when all frames are located.

    Args:
        records: Records of the unit, run after run, each run in the order of its frames.
        detector: MediaPipe; None where the policy needs no detections.
        policy: Choice of labels, detections or both.

    """

    def __init__(self, records: Sequence[HandRecord], detector: HandDetector | None, policy: KeypointsPolicy) -> None:
        self.records = records
        self._policy = policy
        self._tracker = None if detector is None else HandTracker(detector)
        searched = [record for record in records if needs_detector(record, policy)]
        self._run_of = {
            searched[position].record_id: (number, len(run))
            for number, run in enumerate(runs_of(searched))
            for position in run
        }
        self._run = -1
        self._located: list[Located] = []
        self._frames: dict[str, FrameKeypoints] = {}

    def locate(self, record: HandRecord, image: ByteArray) -> FrameKeypoints:
        """Return the keypoints of the next frame; sides may still change.

        Raises:
            RecordError: No hand is found, or labels of two hands whose sides nobody knows.

        """
        detections: list[Detection] = []
        if self._tracker is not None and record.record_id in self._run_of:
            run, frames = self._run_of[record.record_id]
            if run != self._run:
                self._run = run
                self._tracker.start_run(frames)
            detections = self._tracker.locate(record, image)
            if record.is_mirrored:
                detections = [replace(detection, side=OTHER_SIDE[detection.side]) for detection in detections]
        others: list[Detection] = []
        if may_show_people(record):
            detections, others = of_one_person(detections)
        if self._policy != "mediapipe":
            record = on_named_sides(record, detections)
        frame = join_keypoints(record, detections, self._policy, others)
        self._located.append(Located(record, detections, others))
        self._frames[record.record_id] = frame
        return frame

    def agreed(self) -> dict[str, FrameKeypoints]:
        """Return the keypoints of all frames with hands by ``record_id``, with the sides on which the unit agrees."""
        return self._frames | self.changed()

    def changed(self) -> dict[str, FrameKeypoints]:
        """Return the keypoints of the frames in which a hand has another side than when it was located."""
        agreed = agree_on_sides(self._located, self._policy)
        return {
            after.record.record_id: join_keypoints(after.record, after.detections, self._policy, after.others)
            for before, after in zip(self._located, agreed, strict=True)
            if _sides(before) != _sides(after)
        }


def _sides(frame: Located) -> dict[int, tuple[Side, bool]]:
    return {detection.track: (detection.side, detection.contested) for detection in frame.detections}
