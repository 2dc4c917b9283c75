"""DashFusion: network, losses, mining, batching, training, evaluation. Needs torch, pyarrow, numpy, transformers."""
