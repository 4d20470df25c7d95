"""Read what datasets ship: paths, images, arrays, JSON, pickles, masks, videos and hand models."""
