"""Metrics, intervals, calibration and explanations."""
