"""Pages and sheets for people who would rather look than read."""
