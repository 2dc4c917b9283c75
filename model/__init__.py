"""DashFusion: data, network, training, evaluation, prediction. Runs on a bare GPU machine."""
