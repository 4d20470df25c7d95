"""Reading what datasets ship: paths, pictures, arrays, JSON, pickles, masks, videos and hand models."""
