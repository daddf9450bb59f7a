"""Ray: the Broker with its elastic pool of workers, the mapper over actors, the label stream and the thin
trials.

Import from the modules: `trial` and `broker` need no torch, and trials are many.
"""
