"""Pixels without data as a network sees them: the image, mirrored at the nearest edge of what is known."""

import cv2
import numpy as np

from caswit.raster.reader import Bool, UInt8


def mirrored(image: UInt8, known: Bool, unknown: Bool | None = None) -> UInt8:
    """Return (3, H, W) in which unknown pixels are those as far behind the nearest known one.

    Where nothing is known, or nothing unknown, the image is returned as it is.

    Args:
        image: (3, H, W).
        known: (H, W) where it has data. Where the mirror image of a pixel is unknown too, the nearest known one stands.
        unknown: (H, W) pixels to fill; None: all that are not known.
    """
    unknown = ~known if unknown is None else unknown
    if not (unknown.any() and known.any()):
        return image
    height, width = known.shape
    _, label = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    place = np.zeros(label.max() + 1, np.int64)
    place[label[known]] = np.flatnonzero(known)
    rows, cols = np.nonzero(unknown)
    nearest = place[label[rows, cols]]
    behind_row, behind_col = 2 * (nearest // width) - rows, 2 * (nearest % width) - cols
    inside = (behind_row >= 0) & (behind_row < height) & (behind_col >= 0) & (behind_col < width)
    behind = np.where(inside, behind_row * width + behind_col, nearest)
    behind = np.where(known.ravel()[behind], behind, nearest)
    filled = image.copy()
    filled[:, rows, cols] = image.reshape(len(image), -1)[:, behind]
    return filled
