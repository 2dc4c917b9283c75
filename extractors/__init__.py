"""Feature extraction: extractors, word timings, the feature store, alignment into datasets."""
