"""DashFusion: network, losses, mining, batching, training, evaluation. Runs on a bare GPU machine."""
