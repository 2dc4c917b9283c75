"""How flows run: Prefect, DVC, processes, deployments."""
