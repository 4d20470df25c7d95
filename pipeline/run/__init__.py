"""``handdata annotate`` on a Ray cluster: the driver, its workers, and the estimate of a run."""
