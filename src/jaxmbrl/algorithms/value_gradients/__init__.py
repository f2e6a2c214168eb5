"""Policy gradients through the derivatives of a model: SVG, MAAC, BPTT, DHMBPO."""
