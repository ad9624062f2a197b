"""Average precision of detectors."""
