"""Model-free, off policy: SAC, REDQ, DroQ, TD3, DDPG."""
