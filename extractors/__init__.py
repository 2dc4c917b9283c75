"""From media to feature sequences: decoding, extractors, word timing, the feature store, alignment."""
