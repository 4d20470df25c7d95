"""What people look at: the report's page, contact sheets, and frames of a dataset before any ingest."""
