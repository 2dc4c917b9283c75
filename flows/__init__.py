"""Prefect flows, one a stage, and the `dashfusion` command: order, retries, reporting; no computation."""
