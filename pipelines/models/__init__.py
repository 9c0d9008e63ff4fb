"""Models on disk and in memory: bundles, their registry, LiteRT scoring, and what Keras is needed for to make them."""
