"""Model-free off-policy methods: SAC, REDQ, DroQ, TD3, DDPG, DQN, QT-Opt, NAF."""
