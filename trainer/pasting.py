"""Pasting of drawn pixels into an image: with a soft edge, and nothing outside the region touched."""

from typing import Final

import cv2
import numpy as np

from handdata.schemas.arrays import BoolArray, ByteArray

EDGE_SHARE: Final = 1 / 64
"""Width of the soft edge over the side of the square that was drawn: half a latent pixel of the published network."""


def paste_softly(image: ByteArray, drawn: ByteArray, region: BoolArray, edge_px: float) -> ByteArray:
    """Return a copy of an image (H, W, 3) that shows ``drawn`` (H, W, 3) in a region (H, W).

    The edge is soft on the inside: the share of the drawn pixels grows from the region's border to 1, over ``edge_px``
    or, in a narrower part of it, to that part's middle. Outside the region no pixel changes. Where the region ends with
    the image, there is no edge.
    """
    distance = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    count, labels = cv2.connectedComponents(region.astype(np.uint8))
    part = np.asarray(labels, dtype=np.intp)[region]
    middle = np.zeros(count, np.float32)
    np.maximum.at(middle, part, distance[region])
    width = np.clip(middle, 1.0, edge_px)[part]  # of each part its own: a thin one is drawn, too
    share = np.minimum(distance[region] / width, 1)[:, None]
    pasted = image.copy()
    pasted[region] = np.round(share * drawn[region] + (1 - share) * image[region]).astype(np.uint8)
    return pasted
