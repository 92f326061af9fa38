"""Training: the recipe, the loop on Lightning, and the run folder that a stopped run goes on from."""
