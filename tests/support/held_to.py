"""How closely every family and variant is held to transformers, in float64, as docs/reference/models.md states."""

LOGITS = 1e-12  # of the largest logit, to transformers' logits
GRIDS = 1e-11  # absolute, each cell of a grid to a hooked forward of transformers
SCORES = 1e-6  # relative, probabilities after an edit to those of weights that are really written
