"""From annotated shards to batches of frame pairs: index, candidates, order, reading, augmentation, stacking."""
