"""Gymnasium's, DeepMind Control's and PETS's MuJoCo tasks on MJX."""
