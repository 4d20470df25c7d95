"""SAM in batches: equal to segment_anything's own predictor, and safe to load."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from handdata.pipeline.annotation.masks import HandPrompt, mask_spill, sam_prompts
from handdata.pipeline.annotation.sam import SamSegmenter, best_masks, load_sam, sam_model_type
from handdata.schemas import WeightsError
from tests.fixtures.sam import build_small_sam


@pytest.fixture(scope="module")
def small_sam() -> Sam:
    return build_small_sam()


def random_image(size: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def open_hand(centre_x: float, centre_y: float, length: float) -> NDArray[np.float32]:
    """An open right hand, fingers up, (21, 2) pixels."""
    wrist = np.array([[0.0, 0.5]])
    thumb = np.array([[-0.2, 0.4], [-0.32, 0.25], [-0.42, 0.12], [-0.5, 0.0]])
    fingers = [
        np.stack([np.full(4, x) * np.array([0.8, 0.9, 1.0, 1.1]), top + np.array([0.5, 0.27, 0.13, 0.0])], axis=1)
        for x, top in ((-0.18, -0.47), (0.0, -0.5), (0.15, -0.46), (0.28, -0.36))
    ]
    shape = np.concatenate([wrist, thumb, *fingers])
    return (shape * length + (centre_x, centre_y)).astype(np.float32)


def hands(
    right: NDArray[np.float32] | None = None, left: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    keypoints, valid = np.zeros((42, 2), dtype=np.float32), np.zeros(42, dtype=bool)
    for rows, hand in ((slice(0, 21), right), (slice(21, 42), left)):
        if hand is not None:
            keypoints[rows], valid[rows] = hand, True
    return keypoints, valid


def test_batched_logits_equal_those_of_the_predictor(small_sam: Sam) -> None:
    images = [random_image(96, 1), random_image(200, 2), random_image(96, 4), random_image(128, 3)]
    one = sam_prompts(*hands(right=open_hand(48, 48, 60)))
    overlapping = sam_prompts(*hands(right=open_hand(80, 100, 100), left=open_hand(120, 110, 90)))
    apart = sam_prompts(*hands(right=open_hand(30, 60, 50), left=open_hand(95, 60, 50)))
    prompts: list[list[HandPrompt]] = [one, overlapping, [], apart]

    candidates = SamSegmenter(build_small_sam(), "cpu").predict(images, prompts)

    assert len({len(prompt.points) for prompt in overlapping}) == 2  # hands with and without negative points
    predictor = SamPredictor(small_sam)
    for image, of_image, got in zip(images, prompts, candidates, strict=True):
        predictor.set_image(image)
        for prompt, logits, quality in zip(of_image, got.logits, got.quality, strict=True):
            want_logits, want_quality, _ = predictor.predict(
                prompt.points,
                prompt.labels,
                box=prompt.box_xyxy.clip(0, image.shape[0] - 1),
                multimask_output=True,
                return_logits=True,
            )
            np.testing.assert_allclose(logits.numpy(), want_logits, atol=1e-3)
            np.testing.assert_allclose(quality.numpy(), want_quality, atol=1e-3)


def test_prompts_of_several_images_share_a_call_of_the_decoder(small_sam: Sam) -> None:
    calls: list[int] = []
    segmenter = SamSegmenter(build_small_sam(), "cpu")
    segmenter.sam.mask_decoder.register_forward_pre_hook(
        lambda _, __, named: calls.append(len(named["sparse_prompt_embeddings"])), with_kwargs=True
    )
    images = [random_image(96, seed) for seed in range(5)]
    prompts = [sam_prompts(*hands(right=open_hand(48, 48, 40 + seed))) for seed in range(5)]

    segmenter.predict(images, prompts)

    assert calls == [5]


def test_the_encoder_never_writes_out_the_attention_matrix() -> None:
    segmenter = SamSegmenter(build_small_sam(), "cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        segmenter.sam.image_encoder(torch.rand(1, 3, 128, 128))
    operations = {event.key for event in profile.key_averages()}
    assert "aten::scaled_dot_product_attention" in operations
    assert "aten::softmax" not in operations


def segment(
    segmenter: SamSegmenter,
    images: list[NDArray[np.uint8]],
    labels: list[tuple[NDArray[np.float32], NDArray[np.bool_]]],
) -> list[NDArray[np.bool_]]:
    proposals = segmenter.propose(images, [points for points, _ in labels], [joints for _, joints in labels])
    return [best_masks(candidates, *of_image) for candidates, of_image in zip(proposals, labels, strict=True)]


def test_a_batch_gives_the_masks_of_its_images_one_by_one(small_sam: Sam) -> None:
    segmenter = SamSegmenter(small_sam, "cpu")
    images = [random_image(64, seed) for seed in range(3)]
    labels = [hands(right=open_hand(32, 32, 40)), hands(left=open_hand(30, 30, 30)), hands()]

    together = segment(segmenter, images, labels)

    for image, of_image, mask in zip(images, labels, together, strict=True):
        assert mask.shape == (64, 64)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, segment(segmenter, [image], [of_image])[0])


def test_an_image_without_keypoints_gets_an_empty_mask(small_sam: Sam) -> None:
    assert not segment(SamSegmenter(small_sam, "cpu"), [random_image(64, 0)], [hands()])[0].any()


def test_candidates_come_the_most_expected_first(small_sam: Sam) -> None:
    segmenter = SamSegmenter(small_sam, "cpu")
    image, labels = random_image(64, 0), hands(right=open_hand(32, 32, 40))
    (candidates,) = segmenter.predict([image], [sam_prompts(*labels)])

    (proposed,) = segmenter.propose([image], [labels[0]], [labels[1]])

    best = int(candidates.quality[0].argmax())
    np.testing.assert_array_equal(proposed[0, 0], (candidates.logits[0, best] > small_sam.mask_threshold).numpy())


def test_a_whole_image_mask_is_cut_at_the_wrist() -> None:
    everywhere = build_small_sam()
    everywhere.mask_threshold = -1e6
    keypoints, valid = hands(right=open_hand(48, 32, 40))

    mask = segment(SamSegmenter(everywhere, "cpu"), [random_image(96, 0)], [(keypoints, valid)])[0]

    assert mask[:50].all()
    assert not mask[60:].any()
    assert mask_spill(mask, keypoints, valid) < 0.6


def test_no_images_give_no_masks(small_sam: Sam) -> None:
    assert SamSegmenter(small_sam, "cpu").propose([], [], []) == []


@pytest.mark.parametrize(("name", "width", "depth"), [("vit_h", 1280, 32), ("vit_l", 1024, 24), ("vit_b", 768, 12)])
def test_the_model_type_is_read_off_the_tensors(name: str, width: int, depth: int) -> None:
    state = {"image_encoder.pos_embed": torch.empty(1, 64, 64, width, device="meta")}
    for block in range(depth):
        state[f"image_encoder.blocks.{block}.norm1.weight"] = torch.empty(width, device="meta")
    assert sam_model_type(state) == name


def test_other_weights_are_rejected_with_their_size(small_sam: Sam) -> None:
    with pytest.raises(WeightsError, match="width 32, depth 2"):
        sam_model_type(small_sam.state_dict())
    with pytest.raises(WeightsError, match="not the weights of a Segment Anything model"):
        sam_model_type({"conv.weight": torch.zeros(1)})


def test_a_saved_model_loads_back_equal(small_sam: Sam, tmp_path: Path) -> None:
    torch.save(small_sam.state_dict(), tmp_path / "sam.pth")
    torch.manual_seed(1)

    loaded = load_sam(tmp_path / "sam.pth", build_small_sam)

    assert not loaded.training
    for name, tensor in small_sam.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)


def test_unreadable_checkpoints_are_named(small_sam: Sam, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no file .*missing\.pth"):
        load_sam(tmp_path / "missing.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"cannot read .*broken\.pth"):
        load_sam(tmp_path / "broken.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="does not hold a state dict"):
        load_sam(tmp_path / "list.pth")
    state = small_sam.state_dict()
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="does not fit the model"):
        load_sam(tmp_path / "part.pth", build_small_sam)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"image_encoder.pos_embed": Evil()}, file, protocol=2)
    with pytest.raises(WeightsError, match="cannot read"):
        load_sam(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
