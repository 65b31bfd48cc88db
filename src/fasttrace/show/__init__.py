"""What people see: results on matplotlib axes, in a terminal and in a notebook, and how far a computation is.

Nothing here reads a store or a model. matplotlib is imported by the modules that draw (style, heatmap, roles, scores),
and rich by terminal, progress, watch and page. These are imported where they are used, so that fasttrace itself is
imported fast.
"""
