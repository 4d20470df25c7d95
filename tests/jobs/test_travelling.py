"""What travels with a job: the settings of the shell that submits it, and none of its other variables."""

import pytest

from handdata.jobs.submit import travelling_variables
from handdata.pipeline.settings import Settings


def test_settings_travel_with_a_job_and_nothing_else_of_our_prefix_does(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "HANDDATA_WORKSPACE": "s3://bucket/hands",
        "HANDDATA_STUCK_AFTER_S": "30",
        "HANDDATA_ANNOTATE": '{"crop": "stable"}',
        "HANDDATA_ANNOTATE__IMAGE_SIZE": "64",
        "HANDDATA_ANNOTATE__QUALITY__REJECT": '["blurry"]',
        "handdata_annotate__quality__min_hand_px": "7",
    }
    others = (
        "HANDDATA_TOKEN",
        "HANDDATA_ANNOTATE_KEY",
        "HANDDATA_ANNOTATE__SECRET",
        "HANDDATA_",
        "HANDDATA_WORKSPACE_PW",
    )
    for name in (*others, "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert travelling_variables() == settings


def test_every_setting_travels_under_the_name_that_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"HANDDATA_{name.upper()}", raising=False)
    for name in ("jpeg_quality", "quality__min_phash_distance"):
        monkeypatch.setenv(f"HANDDATA_ANNOTATE__{name.upper()}", "60")
    settings = Settings()
    assert settings.annotate.jpeg_quality == settings.annotate.quality.min_phash_distance == 60
    assert len([name for name in travelling_variables() if "ANNOTATE__" in name]) == 2
