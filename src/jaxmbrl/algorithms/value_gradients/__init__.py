"""Policy gradients that are back-propagated through a model: SVG, MAAC, BPTT, DHMBPO."""
