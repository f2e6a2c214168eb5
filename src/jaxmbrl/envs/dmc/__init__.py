"""DeepMind Control's tasks whose equations of motion are written out: cartpole, pendulum, point mass,
reacher, acrobot."""
