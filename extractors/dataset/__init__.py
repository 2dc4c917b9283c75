"""Datasets: features of the three modalities, aligned and split."""
