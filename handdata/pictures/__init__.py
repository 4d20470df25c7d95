"""Drawing on pictures, charts and PNG files: shared by the pipeline, the trainer and the command line."""
