"""Why a condensed set works or not: sharpness, gradients, features, slices of a loss. Pure functions."""
