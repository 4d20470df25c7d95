"""Pictures for people to look at: drawn hands, charts and PNG files, for pipeline, trainer and commands."""
