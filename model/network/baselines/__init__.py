"""Networks to compare DashFusion with."""
