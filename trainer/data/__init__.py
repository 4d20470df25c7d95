"""From annotated shards to batches of frame pairs. README.md says which module does what, in the order of the data."""
