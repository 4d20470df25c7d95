"""Source cards: who made each dataset, under which licence, and what it labels.

Facts are those of each dataset's own homepage, paper and repository; "unconfirmed" marks what none of them states.
"""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict


class SourceCard(BaseModel):
    """What a user needs to know about a dataset before downloading it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The name in ``--source``, in the ``source`` column and in folder names."""
    title: str
    license: str
    """The data's licence (not that of its code)."""
    commercial_use: Literal["yes", "no", "unconfirmed"]
    redistribution: Literal["yes", "no", "unconfirmed"]
    homepage: str
    size: str
    """Number of images or clips, and disk space where known."""
    viewpoint: Literal["ego", "exo", "ego and exo"]
    multi_view: bool
    """Synchronised cameras see the same moment."""
    video: bool
    """Consecutive frames of one camera."""
    labels: str
    """What it annotates."""
    citation: str


_CARDS: Final[tuple[SourceCard, ...]] = (
    SourceCard(
        name="synthetic",
        title="Synthetic hands, rendered by handdata",
        license="Apache-2.0",
        commercial_use="yes",
        redistribution="yes",
        homepage="built in: handdata synth",
        size="as many frames as asked for",
        viewpoint="exo",
        multi_view=True,
        video=True,
        labels="2D and 3D keypoints of both hands, hand masks, cameras (all exact)",
        citation="none needed",
    ),
    SourceCard(
        name="dexycb",
        title="DexYCB",
        license="CC BY-NC 4.0",
        commercial_use="no",
        redistribution="yes",
        homepage="https://dex-ycb.github.io",
        size="about 582,000 images, 119 GB",
        viewpoint="exo",
        multi_view=True,
        video=True,
        labels="2D and 3D keypoints of one hand, hand masks, cameras",
        citation="Chao et al., DexYCB: A Benchmark for Capturing Hand Grasping of Objects, CVPR 2021",
    ),
    SourceCard(
        name="arctic",
        title="ARCTIC",
        license="MPI data and software licence (non-commercial, registered users only)",
        commercial_use="no",
        redistribution="no",
        homepage="https://arctic.is.tue.mpg.de",
        size="2.1 M images, 116 GB cropped or 649 GB full",
        viewpoint="ego and exo",
        multi_view=True,
        video=True,
        labels="2D and 3D keypoints of both hands, cameras",
        citation="Fan et al., ARCTIC: A Dataset for Dexterous Bimanual Hand-Object Manipulation, CVPR 2023",
    ),
    SourceCard(
        name="interhand26m",
        title="InterHand2.6M (5 fps)",
        license="CC BY-NC 4.0",
        commercial_use="no",
        redistribution="yes",
        homepage="https://mks0601.github.io/InterHand2.6M/",
        size="2.6 M images",
        viewpoint="exo",
        multi_view=True,
        video=True,
        labels="2D and 3D keypoints of both hands, cameras",
        citation="Moon et al., InterHand2.6M: A Dataset and Baseline for 3D Interacting Hand Pose Estimation, "
        "ECCV 2020",
    ),
    SourceCard(
        name="reinterhand",
        title="Re:InterHand",
        license="CC BY-NC 4.0",
        commercial_use="no",
        redistribution="yes",
        homepage="https://mks0601.github.io/ReInterHand/",
        size="10 captures, hundreds of GB",
        viewpoint="ego and exo",
        multi_view=True,
        video=True,
        labels="2D and 3D keypoints of both hands, masks, cameras",
        citation="Moon et al., A Dataset of Relighted 3D Interacting Hands, NeurIPS 2023 Datasets and Benchmarks",
    ),
    SourceCard(
        name="assemblyhands",
        title="AssemblyHands",
        license="CC BY-NC 4.0 (toolkit and parent dataset; of the labels unconfirmed)",
        commercial_use="no",
        redistribution="unconfirmed",
        homepage="https://assemblyhands.github.io",
        size="3.0 M images, of these 490,000 ego",
        viewpoint="ego and exo",
        multi_view=True,
        video=True,
        labels="2D and 3D keypoints of both hands, cameras",
        citation="Ohkawa et al., AssemblyHands: Towards Egocentric Activity Understanding via 3D Hand Pose, CVPR 2023",
    ),
    SourceCard(
        name="ego4d",
        title="Ego4D hands and objects, with HInt keypoints",
        license="Ego4D licence agreement (signed per person or institution)",
        commercial_use="unconfirmed",
        redistribution="no",
        homepage="https://ego4d-data.org",
        size="about 3,600 hours; 23,000 frames with HInt keypoints",
        viewpoint="ego",
        multi_view=False,
        video=True,
        labels="hand centre points and boxes; 2D keypoints of one hand on HInt frames",
        citation="Grauman et al., Ego4D, CVPR 2022; Pavlakos et al., Reconstructing Hands in 3D (HInt), CVPR 2024",
    ),
    SourceCard(
        name="visor",
        title="EPIC-KITCHENS VISOR",
        license="CC BY-NC 4.0",
        commercial_use="no",
        redistribution="yes",
        homepage="https://epic-kitchens.github.io/VISOR/",
        size="50,700 sparse frames",
        viewpoint="ego",
        multi_view=False,
        video=True,
        labels="masks of both hands (no keypoints)",
        citation="Darkhalil et al., EPIC-KITCHENS VISOR Benchmark, NeurIPS 2022 Datasets and Benchmarks",
    ),
    SourceCard(
        name="hoi4d",
        title="HOI4D",
        license="unconfirmed: treat as research only",
        commercial_use="unconfirmed",
        redistribution="unconfirmed",
        homepage="https://hoi4d.github.io",
        size="2.4 M RGB-D frames in about 4,000 clips",
        viewpoint="ego",
        multi_view=False,
        video=True,
        labels="2D keypoints of the labelled hands, masks, cameras; 3D with the user's MANO files",
        citation="Liu et al., HOI4D: A 4D Egocentric Dataset for Category-Level Human-Object Interaction, CVPR 2022",
    ),
    SourceCard(
        name="rhd",
        title="Rendered Handpose Dataset (RHD)",
        license="research use only",
        commercial_use="no",
        redistribution="no",
        homepage="https://lmb.informatik.uni-freiburg.de/resources/datasets/RenderedHandposeDataset.en.html",
        size="43,986 images",
        viewpoint="exo",
        multi_view=False,
        video=False,
        labels="2D and 3D keypoints of both hands, part masks, intrinsics",
        citation="Zimmermann and Brox, Learning to Estimate 3D Hand Pose from Single RGB Images, ICCV 2017",
    ),
    SourceCard(
        name="renderih",
        title="RenderIH",
        license="unconfirmed: no dataset licence is stated",
        commercial_use="unconfirmed",
        redistribution="unconfirmed",
        homepage="https://adwardlee.github.io/view_renderih/",
        size="about 1 M images",
        viewpoint="exo",
        multi_view=False,
        video=False,
        labels="MANO parameters of both hands (keypoints need the user's MANO files)",
        citation="Li et al., RenderIH: A Large-scale Synthetic Dataset for 3D Interacting Hand Pose Estimation, "
        "ICCV 2023",
    ),
    SourceCard(
        name="dart",
        title="DARTset",
        license="MIT by its download page, research only by its homepage",
        commercial_use="unconfirmed",
        redistribution="unconfirmed",
        homepage="https://dart2022.github.io/",
        size="about 800,000 images",
        viewpoint="exo",
        multi_view=False,
        video=False,
        labels="2D and 3D keypoints of the right hand, masks with accessories",
        citation="Gao et al., DART: Articulated Hand Model with Diverse Accessories and Rich Textures, NeurIPS 2022",
    ),
    SourceCard(
        name="hagrid",
        title="HaGRID (v1, v2 and v2-1M)",
        license="HaGRID public licence (a rework of CC BY-SA 4.0)",
        commercial_use="yes",
        redistribution="yes",
        homepage="https://github.com/hukenovs/hagrid",
        size="552,992 (v1) or 1,086,158 (v2-1M) images; 119 GB as the light v2-1M",
        viewpoint="exo",
        multi_view=False,
        video=False,
        labels="hand boxes and gestures; 2D keypoints by MediaPipe (v1, v2-1M)",
        citation="Kapitanov et al., HaGRID: HAnd Gesture Recognition Image Dataset, WACV 2024",
    ),
    SourceCard(
        name="wlasl",
        title="WLASL",
        license="C-UDA 1.0, academic and computational use only",
        commercial_use="no",
        redistribution="no",
        homepage="https://dxli94.github.io/WLASL/",
        size="21,095 clips",
        viewpoint="exo",
        multi_view=False,
        video=True,
        labels="signs and person boxes (no keypoints)",
        citation="Li et al., Word-level Deep Sign Language Recognition from Video, WACV 2020",
    ),
    SourceCard(
        name="foundhand10m",
        title="FoundHand-10M (the packed release)",
        license="CC BY-NC 4.0; the thirteen datasets in it keep their own, partly stricter terms",
        commercial_use="no",
        redistribution="yes",
        homepage="https://ivl.cs.brown.edu/research/foundhand.html",
        size="about 10 M crops",
        viewpoint="ego and exo",
        multi_view=True,
        video=True,
        labels="2D keypoints of both hands, hand masks; 3D keypoints and cameras where a label file carries them",
        citation="Chen et al., FoundHand: Large-Scale Domain-Specific Learning for Controllable Hand Image Generation, "
        "CVPR 2025",
    ),
)

SOURCE_CARDS: Final[dict[str, SourceCard]] = {card.name: card for card in _CARDS}
"""The cards of all built-in sources by name."""
