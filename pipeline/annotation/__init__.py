"""One record becomes one annotated sample: decode, find hands, crop, mask, measure. Loads no Ray."""
