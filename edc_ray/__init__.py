"""Dataset condensation (EDC) that runs in one process or on a Ray cluster."""
