"""How results show themselves: on matplotlib axes, in a terminal and in a notebook.

Nothing here knows a store or a model. matplotlib is imported by the modules that draw (style, heatmap, roles, scores),
and rich by `terminal`; both are imported where they are used, so that fasttrace itself is imported fast.
"""
