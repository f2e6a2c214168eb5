"""Value expansion, critic targets from rollouts of a model: MVE, STEVE."""
