"""The geometry of hands in images: joints read back from heatmaps, limbs, the reference carried to another pose.

Plain functions of tensors in float32, for whole batches, without learning. N pairs, C channels, H x W pixels (of
latents, where the picture is one). Poses are the 42 joints of ``handdata.schemas.joints``: (x, y), x right, y down,
(0, 0) the centre of the top-left pixel.
"""
