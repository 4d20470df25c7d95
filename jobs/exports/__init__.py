"""``handdata export dataset``: annotated samples in the layouts that other people's tools open."""
