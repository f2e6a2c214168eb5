"""On-policy methods: policy gradients and trust regions, on real trajectories and on those of a learned model."""
